"""Shapes of the results of those operators that torch takes longest to find.

Each rule holds for dense floating point tensors on the CPU that lie in memory in the plain order, all of
one type; for anything else it answers None, and torch is asked. That the answers are torch's own is
tested call by call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Shape(NamedTuple):
    """A tensor that is not there.

    Attributes:
        sizes: Of its dimensions.
        strides: Elements from one position of a dimension to the next.
        dtype: Its element type.
        device: Where it would be.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def memory_bytes(self) -> int:
        """The least that holds all of its elements."""
        if 0 in self.sizes:
            return 0
        steps = zip(self.sizes, self.strides, strict=True)
        return self.dtype.itemsize * (1 + sum((size - 1) * stride for size, stride in steps))


Shapes = tuple[Shape | None, ...]
Rule = Callable[[Sequence[Any]], Shapes | None]
_FLOATS = (torch.float32, torch.float64)


def plain(tensors: Sequence[Any]) -> bool:
    """Whether all are of one floating point type and lie on the CPU in the plain order."""
    dtype = tensors[0].dtype
    return dtype in _FLOATS and all(
        type(t) is FakeTensor
        and t.dtype is dtype
        and t.fake_device.type == "cpu"
        and t.stride() == _plain_strides(t.shape)
        for t in tensors
    )


def _plain_strides(sizes: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(sizes):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _like(tensor: Any, sizes: Sequence[int] | None = None) -> Shape:
    sizes = tuple(tensor.shape if sizes is None else sizes)
    return Shape(sizes, _plain_strides(sizes), tensor.dtype, tensor.fake_device)


def _elementwise(args: Sequence[Any]) -> Shapes | None:
    """A tensor in the plain order, as large as its operands together.

    The operands need not be dense: slices of channels, and one number for a channel, will do.
    """
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    first: Any = tensors[0]
    if first.dtype not in _FLOATS or not all(_in_order(t, first.dtype) for t in tensors):
        return None
    sizes = first.shape
    if any(t.shape != sizes for t in tensors):
        dimensions = {t.dim() for t in tensors}
        columns = [set(column) - {1} for column in zip(*(t.shape for t in tensors), strict=False)]
        if len(dimensions) > 1 or any(len(column) > 1 for column in columns):
            return None
        sizes = tuple(max(column, default=1) for column in columns)
    return (_like(first, sizes),)


def _in_order(tensor: Any, dtype: torch.dtype) -> bool:
    """Whether later dimensions lie closer together, and no two positions in one place."""
    if type(tensor) is not FakeTensor or tensor.dtype is not dtype or not tensor.numel():
        return False
    if tensor.fake_device.type != "cpu":
        return False
    within = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if size > 1:
            if stride < within:
                return False
            within = stride * size
    return True


def _written(args: Sequence[Any]) -> Shapes | None:
    """As `_elementwise`, over the first operand."""
    shapes = _elementwise(args)
    fits = shapes is not None and shapes[0] is not None and shapes[0].sizes == args[0].shape
    return shapes if fits else None


def _batch_norm(args: Sequence[Any]) -> Shapes | None:
    """The result and, in training, mean and 1 / deviation of each channel."""
    image = args[0]
    given = [t for t in args[1:5] if t is not None]
    if not plain([image, *given]) or any(t.shape != image.shape[1:2] for t in given):
        return None
    channel = _like(image, (image.shape[1] if args[5] else 0,))
    return (_like(image), channel, channel)


def _batch_norm_backward(args: Sequence[Any]) -> Shapes | None:
    """Gradients for the input, the weight and the bias, as the mask asks for."""
    gradient, image, *given = args[:7]
    if not plain([gradient, image, *(t for t in given if t is not None)]):
        return None
    channel = _like(image, (image.shape[1],))
    return _masked((_like(image), channel, channel), args[9])


def _layer_norm(args: Sequence[Any]) -> Shapes | None:
    """The result, mean and 1 / deviation; these keep the dimensions that they were taken over."""
    image, normalized = args[:2]
    given = [t for t in args[2:4] if t is not None]
    if not plain([image, *given]) or not image.numel():
        return None
    kept = image.shape[: image.dim() - len(normalized)]
    if any(
        tuple(shape) != image.shape[len(kept) :]
        for shape in (normalized, *(t.shape for t in given))
    ):
        return None
    moment = _like(image, (*kept, *(1 for _ in normalized)))
    return (_like(image), moment, moment)


def _layer_norm_backward(args: Sequence[Any]) -> Shapes | None:
    """Gradients for the input, the weight and the bias, as the mask asks for."""
    gradient, image, _, mean, deviation, weight, bias, mask = args
    tensors = [gradient, image, mean, deviation, *(t for t in (weight, bias) if t is not None)]
    if not plain(tensors) or not image.numel():
        return None
    shapes = (image, weight, bias)
    if any(asked and given is None for asked, given in zip(mask, shapes, strict=True)):
        return None
    return _masked(tuple(None if t is None else _like(t) for t in shapes), mask)


def _convolution(args: Sequence[Any]) -> Shapes | None:
    """Images [N, C, H, W] with weights [O, C / groups, h, w], not transposed."""
    image, weight, bias, stride, padding, dilation, transposed, _, groups = args
    tensors = [t for t in (image, weight, bias) if t is not None]
    if transposed or not plain(tensors) or image.dim() != 4 or weight.dim() != 4:
        return None
    if weight.shape[1] * groups != image.shape[1] or weight.shape[0] % groups:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    if not len(stride) == len(padding) == len(dilation) == 2:
        return None
    sides = [
        (side + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for side, kernel, jump, pad, step in zip(
            image.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    if min(sides) < 1 or not image.numel():
        return None
    return (_like(image, (image.shape[0], weight.shape[0], *sides)),)


def _convolution_backward(args: Sequence[Any]) -> Shapes | None:
    """Gradients for the image, the weight and the bias, as the mask asks for."""
    gradient, image, weight = args[:3]
    mask = args[10]
    if not plain([gradient, image, weight]) or gradient.dim() != 4 or args[7]:
        return None
    shapes = (_like(image), _like(weight), _like(weight, weight.shape[:1]))
    return _masked(shapes, mask)


def _masked(shapes: Shapes, mask: Sequence[bool]) -> Shapes:
    return tuple(shape if asked else None for shape, asked in zip(shapes, mask, strict=True))


_aten = torch.ops.aten
_ELEMENTWISE: list[Any] = [
    _aten.relu, _aten.threshold_backward, _aten.hardtanh, _aten.hardtanh_backward,
    _aten.silu, _aten.silu_backward, _aten.hardswish, _aten.hardswish_backward,
    _aten.hardsigmoid, _aten.hardsigmoid_backward, _aten.sigmoid, _aten.sigmoid_backward,
    _aten.gelu, _aten.gelu_backward,
]  # fmt: skip
_WRITTEN: list[Any] = [
    _aten.relu_, _aten.hardtanh_, _aten.silu_, _aten.hardswish_, _aten.hardsigmoid_, _aten.sigmoid_,
]  # fmt: skip

RULES: dict[Any, Rule] = {
    **{packet.default: _elementwise for packet in _ELEMENTWISE},
    **{packet.default: _written for packet in _WRITTEN},
    _aten.add.Tensor: _elementwise,
    _aten.mul.Tensor: _elementwise,
    _aten.add_.Tensor: _written,
    _aten.mul_.Tensor: _written,
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
}
