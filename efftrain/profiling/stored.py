"""How many numbers a tensor stands for, and the bytes that really hold them.

The two differ where weights are packed (4 bits in bytes), quantized (whole numbers beside their scales)
or shared out over devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def parameter_elements(parameter: Tensor) -> int:
    """Numbers that a parameter stands for in the whole model.

    A packed one says its own shape in `quant_state` (bitsandbytes, and transformers after it); one that
    DeepSpeed's ZeRO-3 has shared out is empty and says it in `ds_numel`; a DTensor's is that of all shards.
    """
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    if shape is not None:
        return math.prod(shape)
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def memory_name(tensor: Tensor) -> Any:
    """Names what a tensor holds: equal for two that are tied, by memory if not by name."""
    if hasattr(tensor, "__tensor_flatten__") or tensor.layout is not torch.strided:
        return id(tensor)
    memory = cast(Any, tensor.untyped_storage())._cdata
    return memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors in the whole model, memory that two of them share counted once."""
    return sum(_distinct(part for tensor in tensors for part in _parts(tensor, local=False)))


def local_bytes(tensors: Iterable[Tensor]) -> int | None:
    """Bytes of them that this process holds; None where none of them is shared out."""
    held = list(tensors)
    if not any(_is_shared_out(tensor) for tensor in held):
        return None
    return sum(_distinct(part for tensor in held for part in _parts(tensor, local=True)))


def packed_tensors(module: nn.Module) -> list[Tensor]:
    """Weights and biases that a layer of torch.ao.nn.quantized holds in no parameter of its own."""
    if not any(
        base.__module__.startswith("torch.ao.nn.quantized") for base in type(module).__mro__
    ):
        return []
    layer: Any = module
    if isinstance(getattr(layer, "_packed_params", None), nn.Module):
        return []  # that one holds them
    if hasattr(layer, "get_weight"):  # of a recurrent layer
        return [*layer.get_weight().values(), *layer.get_bias().values()]
    if hasattr(layer, "_weight_bias"):
        return [tensor for tensor in layer._weight_bias() if tensor is not None]
    if hasattr(layer, "_packed_weight"):  # of an embedding
        return [layer._weight()]
    return []


def _is_shared_out(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local") or hasattr(tensor, "ds_numel")


def _parts(tensor: Tensor, *, local: bool) -> Iterator[tuple[Any, int]]:
    """The plain tensors that a tensor is made of: what names each one's memory, and its bytes."""
    value: Any = tensor
    if hasattr(value, "ds_numel"):
        elements = value.ds_tensor.numel() if local else value.ds_numel
        yield id(value), elements * value.element_size()
    elif hasattr(value, "to_local"):
        if local:
            yield from _parts(value.to_local(), local=True)
        else:
            part = value.to_local()
            each = stored_bytes([part]) / part.numel() if part.numel() else value.element_size()
            yield id(value), round(value.numel() * each)
    elif hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _parts(getattr(value, name), local=local)
    elif value.layout is torch.sparse_coo:
        yield from _dense(value._indices(), value._values())
    elif value.layout is not torch.strided:
        names = ("crow_indices", "col_indices", "ccol_indices", "row_indices")
        by_rows = value.layout in (torch.sparse_csr, torch.sparse_bsr)
        used = names[:2] if by_rows else names[2:]
        yield from _dense(value.values(), *(getattr(value, name)() for name in used))
    elif value.is_quantized:
        yield id(value), value.numel() * value.element_size()
        if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            yield from _dense(value.q_per_channel_scales(), value.q_per_channel_zero_points())
    else:
        yield from _dense(value, *_beside(value))


def _dense(*tensors: Tensor) -> Iterator[tuple[Any, int]]:
    for tensor in tensors:
        held = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        yield memory_name(tensor), held


def _beside(parameter: Any) -> list[Tensor]:
    """Scales of a packed parameter of bitsandbytes: of its blocks (4 bits) or its rows (8 bits)."""
    found: list[Tensor] = []
    state = getattr(parameter, "quant_state", None)
    while state is not None:  # the scales may be quantized themselves
        held = cast("dict[str, Any]", state.__dict__)
        found += [value for value in held.values() if isinstance(value, Tensor)]
        state = getattr(state, "state2", None)
    rows = getattr(parameter, "SCB", None)
    return [*found, rows] if isinstance(rows, Tensor) else found


def _distinct(parts: Iterable[tuple[Any, int]]) -> Iterable[int]:
    return dict(parts).values()
