"""Which function of torch is replaced by which of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.memory.functions import activation as act
from efftrain.memory.functions.activation import Shape, replace_activation
from efftrain.memory.functions.batch_norm import replace_batch_norm
from efftrain.memory.functions.conv import replace_conv, replace_conv_transpose
from efftrain.memory.functions.dropout import replace_dropout
from efftrain.memory.functions.gated import replace_mul
from efftrain.memory.functions.layer_norm import replace_group_norm, replace_layer_norm
from efftrain.memory.functions.linear import replace_linear
from efftrain.memory.functions.pool import (
    replace_adaptive_avg_pool2d,
    replace_avg_pool2d,
    replace_max_pool2d,
)
from efftrain.memory.functions.rms_norm import replace_rms_norm
from efftrain.memory.scope import Scope

Replacement = Callable[..., Any]


def _fixed(shape: Shape, *, over: bool = False) -> Replacement:
    """Of a function without numbers that never, or always, writes over its input."""

    def replace(scope: Scope, input: Tensor) -> Any:
        return replace_activation(scope, input, shape, over)

    return replace


def _switched(shape: Shape) -> Replacement:
    """Of a function without numbers that takes `inplace`."""

    def replace(scope: Scope, input: Tensor, inplace: bool = False) -> Any:
        return replace_activation(scope, input, shape, inplace)

    return replace


def _hardtanh(
    scope: Scope, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    return replace_activation(scope, input, act.hardtanh(min_val, max_val), inplace)


def _relu6(scope: Scope, input: Tensor, inplace: bool = False) -> Any:
    return replace_activation(scope, input, act.hardtanh(0.0, 6.0), inplace)


def _leaky_relu(
    scope: Scope, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Any:
    return replace_activation(scope, input, act.leaky_relu(negative_slope), inplace)


def _elu(scope: Scope, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Any:
    return replace_activation(scope, input, act.elu(alpha), inplace)


def _gelu(scope: Scope, input: Tensor, *, approximate: str = "none") -> Any:
    return replace_activation(scope, input, act.gelu(approximate), False)


REPLACED: dict[Any, Replacement] = {
    F.conv1d: replace_conv,
    F.conv2d: replace_conv,
    F.conv3d: replace_conv,
    F.conv_transpose1d: replace_conv_transpose,
    F.conv_transpose2d: replace_conv_transpose,
    F.conv_transpose3d: replace_conv_transpose,
    F.linear: replace_linear,
    F.batch_norm: replace_batch_norm,
    F.layer_norm: replace_layer_norm,
    F.group_norm: replace_group_norm,
    F.rms_norm: replace_rms_norm,
    F.relu: _switched(act.relu()),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.leaky_relu: _leaky_relu,
    F.silu: _switched(act.silu()),
    F.gelu: _gelu,
    F.hardswish: _switched(act.hardswish()),
    F.hardsigmoid: _switched(act.hardsigmoid()),
    F.mish: _switched(act.mish()),
    F.elu: _elu,
    F.sigmoid: _fixed(act.sigmoid()),
    F.tanh: _fixed(act.tanh()),
    **dict.fromkeys((torch.relu, Tensor.relu), _fixed(act.relu())),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _fixed(act.relu(), over=True)),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _fixed(act.sigmoid())),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _fixed(act.tanh())),
    F.max_pool2d: replace_max_pool2d,
    F.avg_pool2d: replace_avg_pool2d,
    F.adaptive_avg_pool2d: replace_adaptive_avg_pool2d,
    F.dropout: replace_dropout,
    torch.mul: replace_mul,
    Tensor.mul: replace_mul,
}
