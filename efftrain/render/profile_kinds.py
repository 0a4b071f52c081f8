"""What kind of layer a layer is, for colours and legends."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal, get_args

from efftrain.profiling.layers import Layer
from efftrain.profiling.report import Profile

Kind = Literal["conv", "depthwise", "linear", "attention", "norm", "activation", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MEANINGS: dict[Kind, str] = {
    "conv": "convolution",
    "depthwise": "depthwise, grouped convolution",
    "linear": "linear",
    "attention": "attention",
    "norm": "normalization",
    "activation": "activation function",
    "other": "other (pool, sum, copy)",
}

_LINEAR = {"mm", "addmm", "linear", "matmul"}
_ATTENTION = {"bmm", "baddbmm", "_softmax", "_safe_softmax"}
_ACTIVATIONS = {
    "relu", "hardtanh", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "elu",
    "leaky_relu", "mish", "softplus", "glu", "_prelu_kernel", "celu", "threshold",
}  # fmt: skip


def find_kinds(profile: Profile) -> dict[str, Kind]:
    """The kind of each layer, by path, told from the operators that it runs."""
    operators: dict[str, set[str]] = defaultdict(set)
    for entry in profile.inference.entries:
        operators[entry.path].add(entry.operator)
    return {layer.path: kind_of(layer, operators[layer.path]) for layer in profile.layers}


def kind_of(layer: Layer, operators: set[str]) -> Kind:
    """The kind of a layer that runs these operators."""
    bare = {operator.removesuffix("_") for operator in operators}
    if any("scaled_dot_product" in name for name in bare) or bare & _ATTENTION:
        return "attention"
    if "convolution" in bare:
        return "depthwise" if _is_grouped(layer) else "conv"
    if bare & _LINEAR:
        return "linear"
    if any("norm" in name and "linalg" not in name for name in bare) or "Norm" in layer.type:
        return "norm"
    # a block that ends in `relu(x + y)` is a sum with a function after it
    if bare & _ACTIVATIONS and not bare & {"add", "sub", "cat", "mean"}:
        return "activation"
    return "other"


def _is_grouped(layer: Layer) -> bool:
    """Whether a convolution reads a part of its input channels for each output.

    A dense one multiplies kernel x input channels for each output, so that the channels divide the
    products; a depthwise one multiplies the kernel alone, 9 or 25 or 49.
    """
    outputs = math.prod(layer.output_shape)
    if len(layer.input_shape) < 2 or not outputs or "Transpose" in layer.type:
        return False
    return (layer.macs // outputs) % layer.input_shape[1] != 0
