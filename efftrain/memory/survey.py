"""What is known of a module before it runs: what it will keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import (
    _BatchNorm,  # pyright: ignore[reportPrivateUsage]  # the base of every batch norm
)
from torch.nn.modules.conv import (
    _ConvNd,  # pyright: ignore[reportPrivateUsage]  # the base of every convolution
)

_MASKED = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Hardsigmoid)
_INPUT = (nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish, nn.ELU)
_FOREIGN = {
    nn.SyncBatchNorm: "its statistics cross processes",
    nn.PReLU: "its slope is trained, and reads the input",
    nn.Softplus: "it reads its input",
    nn.Softmax: "it reads its output",
    nn.MultiheadAttention: "attention reads queries, keys, values and its output",
    nn.Bilinear: "it reads both inputs",
}


@dataclass(frozen=True)
class Known:
    """Of a module.

    Attributes:
        keeps: What it keeps now, where that is less than before.
        reason: Why it keeps what it kept; None where that is nothing, or it has modules in it that
            speak for themselves.
    """

    keeps: str | None = None
    reason: str | None = None


def describe(module: nn.Module, special: bool, masks: bool) -> Known:
    """What is known of a module.

    Args:
        module: Any.
        special: Whether its formula was recognised.
        masks: Whether an activation in it may keep a mask.
    """
    if special:
        return Known("its input")
    if isinstance(module, _ConvNd):
        if module.weight.requires_grad:
            return Known(reason="its weight is trained, and the gradient reads the input")
        return Known("nothing but its weight")
    if isinstance(module, nn.SyncBatchNorm):
        return Known(reason=_FOREIGN[nn.SyncBatchNorm])
    if isinstance(module, _BatchNorm):
        return Known("its input, for itself and the activation after it")
    if isinstance(module, _MASKED):
        if masks:
            return Known("nothing after a norm, else one bit per element")
        return Known(reason="a trainable layer beside it keeps its output anyway")
    if isinstance(module, _INPUT):
        return Known("nothing after a norm, else its input")
    if isinstance(module, nn.MaxPool2d):
        return Known("4 bits or a byte per output")
    if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        return Known("nothing")
    if type(module) is nn.Dropout:
        return Known("one bit per element")
    if isinstance(module, nn.RMSNorm):
        return Known("its input")
    for kind, reason in _FOREIGN.items():
        if isinstance(module, kind):
            return Known(reason=reason)
    return _foreign(module)


def _foreign(module: nn.Module) -> Known:
    """A module without modules in it, with parameters of its own, that is none of torch's."""
    own = [cast(Tensor, one) for one in module.parameters(recurse=False)]
    if any(True for _ in module.children()) or not own:
        return Known()
    if type(module).__module__.startswith("torch.nn."):
        return Known()
    return Known(reason="what it computes is not known; its calls of torch's functions keep less")
