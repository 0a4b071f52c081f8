"""Modules that are written in steps and are recognised by what they compute: RMSNorm of many models.

Dozens of classes hold the same few lines, and some hold others. So none is known by name: a module
with one weight vector and an epsilon is run on a few numbers, and what it gives tells which formula it
follows, if any.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from efftrain.memory.forward import Special
from efftrain.memory.functions.rms_norm import normalize_rms
from efftrain.memory.scope import Scope, is_plain, needs_grad

_EPS_NAMES = ("variance_epsilon", "eps", "epsilon")


class RMSNormForward:
    """Forward of an RMSNorm whose formula is known.

    Args:
        eps_name: Attribute that holds what is added to the mean square.
        offset: Added to the weight: 1 in Gemma's.
    """

    def __init__(self, eps_name: str, offset: float) -> None:
        """Keep the formula."""
        self.eps_name = eps_name
        self.offset = offset

    def __call__(self, module: nn.Module, scope: Scope, input: Any) -> Any:
        """Normalize, as the module does it."""
        weight = cast(Tensor, module.weight)
        if (
            not isinstance(input, Tensor)
            or not is_plain(input, weight)
            or not needs_grad(input, weight)
        ):
            return NotImplemented
        if input.shape[-1:] != weight.shape:
            return NotImplemented
        eps = float(getattr(module, self.eps_name))
        if input.dtype in (torch.float32, torch.float64) and input.dtype == weight.dtype:
            return normalize_rms(scope, input, weight, eps, self.offset)
        # in low precision the order of rounding is the module's own
        original = type(module).forward.__get__(module)
        return normalize_rms(scope, input, weight, eps, self.offset, original)


def find_special(module: nn.Module) -> Special | None:
    """What can stand in for a module's forward; None where its own is run.

    Args:
        module: Any; on the meta device nothing is recognised.
    """
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    if (
        set(own) != {"weight"}
        or cast(Tensor, weight).dim() != 1
        or any(True for _ in module.children())
        or isinstance(module, (nn.RMSNorm, nn.LayerNorm))
        or dict(module.named_buffers(recurse=False))
    ):
        return None
    for name in _EPS_NAMES:
        eps = getattr(module, name, None)
        if isinstance(eps, float):
            offset = _offset_of(module, cast(Tensor, weight), eps)
            return None if offset is None else RMSNormForward(name, offset)
    return None


def _offset_of(module: nn.Module, weight: Tensor, eps: float) -> float | None:
    """0 or 1: which RMSNorm a module is; None where it is none.

    It is run in float64, on the CPU, on rows whose mean square is far above, near and below epsilon.
    """
    if weight.is_meta:
        return None
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)  # pyright: ignore[reportPrivateUsage]
    vector = torch.linspace(0.5, 1.5, weight.numel(), dtype=torch.float64)
    twin._parameters["weight"] = nn.Parameter(vector, requires_grad=False)  # pyright: ignore[reportPrivateUsage]
    twin.__dict__.pop("forward", None)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, weight.numel(), generator=generator, dtype=torch.float64)
    rows = (
        rows * torch.tensor([[1.0], [eps**0.5], [eps**0.5 / 10]], dtype=torch.float64)
        + 0.1 * eps**0.5
    )
    try:
        with torch.no_grad():
            y = type(twin).forward(twin, rows)
    except Exception:
        return None  # it asks for more than a tensor
    if not isinstance(y, Tensor) or y.shape != rows.shape:
        return None
    normal = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    for offset in (0.0, 1.0):
        # most compute in float32 whatever they are given
        if torch.allclose(y.double(), normal * (offset + vector), rtol=1e-5, atol=1e-6):
            return offset
    return None
