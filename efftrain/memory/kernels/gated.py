"""Gated linear units: act(gate) * up (SwiGLU, GeGLU, ReGLU), kept by their two inputs alone.

Source: https://arxiv.org/abs/2002.05202
"""

from __future__ import annotations

from torch import Tensor

from efftrain.memory.kernels.activation import Activation, activate, activation_backward
from efftrain.memory.kernels.backend import fusible
from efftrain.memory.kernels.cpp import elementwise as cpp


@fusible(cpp.gated)
def gated(gate: Tensor, up: Tensor, *, act: Activation = "silu") -> Tensor:
    """act(gate) * up.

    Args:
        gate: Of any shape.
        up: Like gate.
        act: silu for SwiGLU, gelu or gelu_tanh for GeGLU.
    """
    return activate(gate, act) * up


@fusible(cpp.gated_backward)
def gated_backward(
    grad: Tensor, gate: Tensor, up: Tensor, *, act: Activation = "silu"
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up.

    Args:
        grad: Gradient of the product, like gate.
        gate: Of any shape.
        up: Like gate.
        act: As in `gated`.
    """
    return activation_backward(grad * up, gate, act), grad * activate(gate, act)
