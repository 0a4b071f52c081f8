"""BatchNorm and the activation after it as one: forward, forward again, backward.

    z = weight * (x - mean) * rstd + bias        y = act(z)

Backward needs x, mean and rstd alone: z, and with it the activation's derivative, is recomputed. So
neither z nor y has to be kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efftrain.memory.kernels.activation import Activation, activate, activation_backward
from efftrain.memory.kernels.backend import fusible
from efftrain.memory.kernels.cpp import batch_norm as cpp

_aten = torch.ops.aten


@fusible(cpp.batch_norm_act)
def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    act: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize, scale, shift and activate.

    Args:
        x: [N, C, ...].
        weight: [C]; None is 1.
        bias: [C]; None is 0.
        running_mean: [C]; updated in place in training where given.
        running_var: [C]; updated in place in training where given.
        training: Statistics of this batch, else the running ones.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.
        act: What follows the norm.

    Returns:
        y like x, and mean and rstd, [C], for `batch_norm_act_backward`. Of running statistics, mean is
        `running_mean` itself.
    """
    y, mean, rstd = torch.native_batch_norm(
        x, weight, bias, running_mean, running_var, training, momentum, eps
    )
    if not training:
        assert running_mean is not None  # native_batch_norm has refused it
        assert running_var is not None
        mean, rstd = running_mean, torch.rsqrt(running_var + eps)
    return activate(y, act), mean, rstd


@fusible(cpp.batch_norm_act_again)
def batch_norm_act_again(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    act: Activation = "none",
) -> Tensor:
    """What `batch_norm_act` gave once more, from its statistics; running statistics stay.

    Args:
        x: [N, C, ...].
        weight: [C]; None is 1.
        bias: [C]; None is 0.
        mean: [C].
        rstd: [C], 1 / sqrt(variance + eps).
        act: What follows the norm.
    """
    return activate(_affine(x, weight, bias, mean, rstd), act)


@fusible(cpp.batch_norm_act_backward)
def batch_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    training: bool,
    act: Activation = "none",
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, weight and bias.

    Args:
        grad: Gradient of y, like x.
        x: [N, C, ...].
        weight: [C]; None is 1.
        bias: [C]; None is 0.
        mean: [C], as `batch_norm_act` gave it.
        rstd: [C], as `batch_norm_act` gave it.
        training: Whether the statistics were those of this batch.
        act: What followed the norm.
        needs_dx: Without it, None stands for the gradient of x.

    Returns:
        dx like x, dweight and dbias [C]; the latter two also where there is no weight or bias.
    """
    if act != "none":
        z = _affine(x, weight, bias, mean, rstd)
        grad = activation_backward(grad, z, act)
    # torch's operator takes variance and eps of running statistics, and adds them
    running_mean, running_var = (None, None) if training else (mean, rstd.pow(-2))
    dx, dweight, dbias = _aten.native_batch_norm_backward(
        grad,
        x,
        weight,
        running_mean,
        running_var,
        mean,
        rstd,
        training,
        0.0,
        [needs_dx, True, True],
    )
    return (dx if needs_dx else None), dweight, dbias


def _affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> Tensor:
    """The z of above in x's dtype: one multiplication, one addition, as torch's own kernel does it."""
    scale = rstd if weight is None else weight * rstd
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1,) + (1,) * (x.dim() - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)
