"""One bit for what backward of a ReLU needs to know of each element.

Eight elements share a byte, the first in the lowest bit, in the order in which they lie in memory
under the memory format that is given. The last byte is filled with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efftrain.memory.kernels.backend import fusible
from efftrain.memory.kernels.cpp import bits as cpp
from efftrain.memory.kernels.layout import memory_format_of

BITS = 8


@fusible()
def pack_bits(mask: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A mask of bools as bits.

    Args:
        mask: Of any shape.
        memory_format: The order of elements in which the bits stand.

    Returns:
        uint8, [ceil(elements / 8)].
    """
    return _pack(_in_order(mask, memory_format))


@torch.no_grad()
def unpack_bits(
    bits: Tensor,
    shape: tuple[int, ...],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The mask that `pack_bits` packed, of that shape and memory format."""
    mask = torch.empty(shape, dtype=torch.bool, device=bits.device, memory_format=memory_format)
    _in_order(mask, memory_format).copy_(_unpack(bits, mask.numel()))
    return mask


@fusible(cpp.add_relu)
def add_relu(a: Tensor, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """ReLU of a sum, and where it is above zero.

    Args:
        a: Of any shape.
        b: Like a; None for the ReLU of a alone.

    Returns:
        y, in a's memory format, and the bits of y > 0 in that order.
    """
    layout = memory_format_of(a)
    y = (a if b is None else a + b).relu().contiguous(memory_format=layout)
    return y, _pack(_in_order(y > 0, layout))


@fusible(cpp.mask_grad)
def mask_grad(
    grad: Tensor, bits: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """The gradient where the bit is set, else 0: backward of `add_relu`, for each of its inputs.

    Args:
        grad: Of the packed mask's shape.
        bits: uint8, [ceil(elements / 8)].
        memory_format: The one under which the bits were packed; the result has it.
    """
    return grad.contiguous(memory_format=memory_format) * unpack_bits(
        bits, tuple(grad.shape), memory_format
    )


def _in_order(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """All elements in one row, as they lie in memory; a view of x where x lies so."""
    if memory_format == torch.channels_last:
        x = x.permute(0, 2, 3, 1)
    elif memory_format == torch.channels_last_3d:
        x = x.permute(0, 2, 3, 4, 1)
    return x.reshape(-1)


def _pack(row: Tensor) -> Tensor:
    missing = -row.numel() % BITS
    eights = torch.nn.functional.pad(row.to(torch.uint8), (0, missing)).view(-1, BITS)
    return (eights << _places(row.device)).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, count: int) -> Tensor:
    eights = bits[:, None] >> _places(bits.device) & 1
    return eights.view(-1)[:count].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(BITS, dtype=torch.uint8, device=device)
