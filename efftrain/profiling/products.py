"""Multiply-accumulates of matrix products and convolutions, from the shapes of a call.

One formula for each operator that torch's dispatcher can hand to a kernel. `torch.utils.flop_counter`
has most of them; those it gets wrong, or lacks, as of torch 2.13 and 2.15, are marked "repairs".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from efftrain.graph.observer import Call

Formula = Callable[[Call], int]


def _argument(call: Call, position: int, name: str) -> Any:
    return call.args[position] if len(call.args) > position else call.kwargs[name]


def _product(first: int) -> Formula:
    """[*, m, k] x [*, k, n], where the operands stand at `first` and after it."""

    def macs(call: Call) -> int:
        a, b = call.args[first], call.args[first + 1]
        return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)

    return macs


def linear(call: Call) -> int:
    """[*, k] x [n, k] -> [*, n]; the weight may be packed, so its shape is not read."""
    return call.outputs[0].numel() * call.args[0].shape[-1]


def convolution(call: Call) -> int:
    """Input [N, C, *], weight [O, C / groups, *k]; transposed: weight [C, O / groups, *k].

    Each output element (transposed: each input element) meets weight.shape[1:]; what falls on
    padding counts, as in every published figure.
    """
    image, weight = call.args[0], call.args[1]
    transposed = len(call.args) > 6 and call.args[6] is True
    points = image if transposed else call.outputs[0]
    return points.numel() * math.prod(weight.shape[1:])


def convolution_backward(call: Call) -> tuple[int, int]:
    """For the input and for the weight: each as many as forward, where it is asked for.

    Repairs torch's formula, which counts the weight's gradient of a grouped convolution `groups`
    times (pytorch#183405).
    """
    gradient, image, weight = call.args[:3]
    points = image if _argument(call, 7, "transposed") else gradient
    once = points.numel() * math.prod(weight.shape[1:])
    mask = _argument(call, 10, "output_mask")
    return once * bool(mask[0]), once * bool(mask[1])


def trilinear(call: Call) -> int:
    """nn.Bilinear: one for each element of the product of its three operands, broadcast.

    Repairs a missing formula.
    """
    operands: list[Tensor] = list(call.args[:3])
    shapes: list[list[int]] = []
    for operand, added in zip(operands, call.args[3:6], strict=True):
        shape = list(operand.shape)
        for position in sorted(added):
            shape.insert(position, 1)
        shapes.append(shape)
    return math.prod(max(sides) for sides in zip(*shapes, strict=True))  # each is 1 or the same


def pairwise_distance(call: Call) -> int:
    """Distances of [*, P, M] and [*, R, M]: one of M elements for each pair. Repairs a missing formula."""
    return call.outputs[0].numel() * call.args[0].shape[-1]


PRODUCTS: dict[str, Formula] = {
    "mm": _product(0),
    "bmm": _product(0),
    "mv": _product(0),
    "dot": _product(0),
    "vdot": _product(0),
    "addmm": _product(1),
    "addmm_": _product(1),
    "addmv": _product(1),
    "baddbmm": _product(1),
    "baddbmm_": _product(1),
    "addbmm": _product(1),
    "_addmm_activation": _product(1),
    "_int_mm": _product(0),
    "_scaled_mm": _product(0),
    "linear": linear,
    "_weight_int8pack_mm": linear,
    "_weight_int4pack_mm": linear,
    "mkldnn_linear": linear,
    "_trilinear": trilinear,
    "_cdist_forward": pairwise_distance,
    "_euclidean_dist": pairwise_distance,
    "convolution": convolution,
    "_convolution": convolution,
    "convolution_overrideable": convolution,
    "cudnn_convolution": convolution,
    "mkldnn_convolution": convolution,
    "miopen_convolution": convolution,
    "_slow_conv2d_forward": convolution,
    "_conv_depthwise2d": convolution,
    "conv_depthwise3d": convolution,
}
