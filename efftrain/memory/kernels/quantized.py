"""Eight bits in place of what backward reads: the input of an eval BatchNorm, GELU's derivative.

With running statistics the gradients of a BatchNorm's x and bias do not depend on x; only that of its
weight does. So an 8-bit x makes dweight alone inexact, and the error does not travel to other layers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.errors import EfftrainError
from efftrain.memory.kernels.activation import Activation, activate
from efftrain.memory.kernels.backend import fusible
from efftrain.memory.kernels.cpp import batch_norm_8bit, elementwise
from efftrain.memory.kernels.derivative_grid import LOW, STEP

QUANTIZABLE: tuple[str, ...] = ("none", "relu", "relu6")
"""Activations whose derivative is 0 or 1, which code 0 can stand for."""

LEVELS = 255
_SMALLEST_STEP = 1e-20  # of a plane whose values are all the same


@fusible(batch_norm_8bit.batch_norm_act_8bit)
def batch_norm_act_8bit(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float,
    act: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """BatchNorm by running statistics and its activation, with x in 8 bits for backward.

    Each plane (one sample's channel) has a grid of its own, from the smallest to the largest x that
    passes the activation. After an activation, code 0 means that no gradient passes.

    Args:
        x: [N, C, ...].
        weight: [C]; None is 1.
        bias: [C]; None is 0.
        running_mean: [C].
        running_var: [C].
        eps: Added to the variance.
        act: none, relu or relu6.

    Returns:
        y like x; codes, uint8, like x; low and step, [N, C] in fp32, so that x is about
        low + step * code; rstd [C].

    Raises:
        EfftrainError: The activation's derivative is not 0 or 1.
    """
    _refuse(act)
    shape = (-1,) + (1,) * (x.dim() - 2)
    rstd = torch.rsqrt(running_var + eps)
    scale = rstd if weight is None else weight * rstd
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    z = torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)
    y = activate(z, act)
    wide = x.float()
    passes = _passes(z, act)
    over = tuple(range(2, x.dim()))
    lowest, highest = wide, wide
    if passes is not None:
        lowest = wide.masked_fill(~passes, math.inf)
        highest = wide.masked_fill(~passes, -math.inf)
    low, high = (lowest.amin(over), highest.amax(over)) if over else (lowest, highest)
    low, high = low.where(high >= low, 0), high.where(high >= low, 0)
    first = 0 if passes is None else 1
    step = ((high - low) / (LEVELS - first)).clamp(min=_SMALLEST_STEP)
    low = low - first * step
    full = low.shape + (1,) * (x.dim() - 2)
    codes = ((wide - low.view(full)) / step.view(full)).round()
    codes = codes.clamp(first, LEVELS)
    if passes is not None:
        codes = codes.where(passes, 0)
    return y, codes.to(torch.uint8), low, step, rstd


@fusible(batch_norm_8bit.batch_norm_act_8bit_backward)
def batch_norm_act_8bit_backward(
    grad: Tensor,
    codes: Tensor,
    low: Tensor,
    step: Tensor,
    weight: Tensor | None,
    running_mean: Tensor,
    rstd: Tensor,
    *,
    act: Activation = "none",
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x and bias, exact, and of weight, from the 8-bit x.

    Args:
        grad: Gradient of y, [N, C, ...].
        codes: As `batch_norm_act_8bit` gave them.
        low: [N, C].
        step: [N, C].
        weight: [C]; None is 1.
        running_mean: [C].
        rstd: [C].
        act: As in `batch_norm_act_8bit`.
        needs_dx: Without it, None stands for the gradient of x.

    Returns:
        dx like grad, dweight and dbias [C] in fp32.
    """
    _refuse(act)
    shape = (-1,) + (1,) * (grad.dim() - 2)
    over = (0, *range(2, grad.dim()))
    if act != "none":
        grad = grad.where(codes > 0, 0)
    dx = None
    if needs_dx:
        scale = rstd if weight is None else weight * rstd
        dx = (grad * scale.view(shape)).to(grad.dtype)
    full = low.shape + (1,) * (grad.dim() - 2)
    centred = torch.addcmul((low - running_mean).view(full), codes.float(), step.view(full))
    wide = grad.float()
    return dx, (wide * centred).sum(over) * rstd, wide.sum(over)


@fusible(elementwise.gelu_8bit)
def gelu_8bit(x: Tensor, *, approximate: str = "none") -> tuple[Tensor, Tensor]:
    """GELU, and its derivative in 256 even steps over its range.

    Args:
        x: Of any shape.
        approximate: none or tanh.

    Returns:
        y like x, and codes, uint8, like x. The derivative is off by at most half of STEP,
        0.0025.
    """
    wide = x.float()
    derivative = torch.ops.aten.gelu_backward(torch.ones_like(wide), wide, approximate=approximate)
    codes = ((derivative - LOW) / STEP).round().clamp(0, LEVELS).to(torch.uint8)
    return F.gelu(x, approximate=approximate), codes


@fusible(elementwise.gelu_8bit_backward)
def gelu_8bit_backward(grad: Tensor, codes: Tensor) -> Tensor:
    """Gradient of x.

    Args:
        grad: Gradient of y.
        codes: As `gelu_8bit` gave them.
    """
    return (grad * (codes.float() * STEP + LOW)).to(grad.dtype)


def _passes(z: Tensor, act: Activation) -> Tensor | None:
    """Where a gradient passes the activation; None for everywhere."""
    if act == "relu":
        return z > 0
    if act == "relu6":
        return (z > 0) & (z < 6)
    return None


def _refuse(act: Activation) -> None:
    if act not in QUANTIZABLE:
        raise EfftrainError(
            f"8 bits cannot stand for the derivative of {act!r}; use one of {QUANTIZABLE}, or keep x"
        )
