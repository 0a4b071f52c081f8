"""Activation functions by name, and their derivative from what went in."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.errors import EfftrainError

Activation: TypeAlias = Literal["none", "relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

_aten = torch.ops.aten


def activate(z: Tensor, act: Activation) -> Tensor:
    """The activation of `z`, as torch computes it.

    Raises:
        EfftrainError: The activation has no kernel.
    """
    match act:
        case "none":
            return z
        case "relu":
            return F.relu(z)
        case "relu6":
            return F.relu6(z)
        case "hardswish":
            return F.hardswish(z)
        case "silu":
            return F.silu(z)
        case "gelu":
            return F.gelu(z)
        case "gelu_tanh":
            return F.gelu(z, approximate="tanh")
        case _:
            raise EfftrainError(f"no kernel for activation {act!r}; there are {ACTIVATIONS}")


def activation_backward(grad: Tensor, z: Tensor, act: Activation) -> Tensor:
    """`grad` times the derivative of the activation at `z`, as torch computes it.

    Args:
        grad: Gradient of the output.
        z: Input of the activation, of `grad`'s shape and dtype.
        act: Its name.

    Raises:
        EfftrainError: The activation has no kernel.
    """
    match act:
        case "none":
            return grad
        case "relu":
            return _aten.threshold_backward(grad, z, 0)
        case "relu6":
            return _aten.hardtanh_backward(grad, z, 0.0, 6.0)
        case "hardswish":
            return _aten.hardswish_backward(grad, z)
        case "silu":
            return _aten.silu_backward(grad, z)
        case "gelu":
            return _aten.gelu_backward(grad, z)
        case "gelu_tanh":
            return _aten.gelu_backward(grad, z, approximate="tanh")
        case _:
            raise EfftrainError(f"no kernel for activation {act!r}; there are {ACTIVATIONS}")
