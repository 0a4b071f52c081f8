"""Norms as scale and shift: what a fold takes out of them, and what is left in their place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from efftrain.surgery.equality import in_eval

_TORCH_NORMS = (
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]  # the base of all batch and instance norms
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_SCALES = ("weight", "scale", "gamma")
_SHIFTS = ("bias", "shift", "beta")
_FLAGS = ("affine", "elementwise_affine")  # what torch's norms remember of having a weight
_EPSILON = 1e-5  # of the frozen batch norms that keep it in their code instead of an attribute
_TOLERANCE = 1e-5  # several norms compute in float32 whatever they are given


def is_norm(module: nn.Module) -> bool:
    """Whether a module calls itself a norm and has a scale, a shift or running statistics.

    It only decides what is looked at and listed; what a norm does is tried out.
    """
    if keeps_statistics(module):
        return True
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    named = isinstance(module, _TORCH_NORMS) or "norm" in type(module).__name__.lower()
    holds_layers = any(True for child in module.children() for _ in child.parameters())
    return named and bool(own) and not holds_layers


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a norm has running statistics, so that it is a fixed scale and shift in eval mode."""
    kept = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return all(isinstance(one, Tensor) for one in kept)


def fixed_affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift that a norm with running statistics applies in eval mode.

    Args:
        module: A batch norm, frozen or not, or an instance norm that tracks.

    Returns:
        gamma / sqrt(variance + epsilon) and beta - mean x scale, each [C], in the module's dtype.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.2
    """
    any_module: Any = module
    mean: Tensor = any_module.running_mean.detach().flatten()
    variance: Tensor = any_module.running_var.detach().flatten()
    scale = (variance + float(getattr(module, "eps", _EPSILON))).rsqrt()
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor):
        scale = scale * weight.detach().flatten()
    shift = -mean * scale
    return scale, shift + bias.detach().flatten() if isinstance(bias, Tensor) else shift


def what_follows(module: nn.Module) -> nn.Module:
    """What a batch norm does after normalising: timm's fused layers drop and activate.

    Args:
        module: A norm with running statistics.

    Returns:
        `nn.Identity`, the activation, or dropout and activation in a sequence. The parts are the
        module's own.
    """
    parts = {
        name: part
        for name in ("drop", "act")
        if isinstance(part := getattr(module, name, None), nn.Module)
        and not isinstance(part, nn.Identity)
    }
    if not parts:
        return nn.Identity()
    if len(parts) == 1:
        return next(iter(parts.values()))
    sequence = nn.Sequential()
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence


class OwnAffine:
    """Scale and shift that a norm applies last, found by trying.

    Args:
        module: A norm.
        names: Local names of its scale and shift; None for the one it has not.
        offset: Whether the scale is applied as 1 + w.
        dim: The dimension of its output that holds the channels, from 0.
    """

    def __init__(
        self, module: nn.Module, names: tuple[str | None, str | None], offset: bool, dim: int
    ) -> None:
        """Keep the parts."""
        self.module = module
        self.names = names
        self.offset = offset
        self.dim = dim

    def values(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, each [C], in float64 on the CPU."""
        scale, shift = (self._value(name) for name in self.names)
        one = scale if scale is not None else shift
        assert one is not None, "a norm without either is no candidate"
        scale = torch.ones_like(one) if scale is None else scale + float(self.offset)
        return scale, torch.zeros_like(one) if shift is None else shift

    def make_neutral(self) -> None:
        """Set scale and shift to what changes nothing."""
        neutral(self.module, self.names, self.offset)

    def _value(self, name: str | None) -> Tensor | None:
        if name is None:
            return None
        return cast("Tensor", getattr(self.module, name)).detach().cpu().double().flatten()


def find_own_affine(module: nn.Module, shape: torch.Size) -> OwnAffine | None:
    """Find out how a norm applies its scale and shift, on a copy of it.

    Args:
        module: A norm that takes one tensor.
        shape: Of an input that it really got.

    Returns:
        None where its output is not (something) x scale + shift along one dimension: an activation
        follows, it takes two inputs, its scale has several dimensions.
    """
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    names = (_first_of(_SCALES, own), _first_of(_SHIFTS, own))
    sizes = {p.numel() for p in own.values()}
    flat = all(sum(n > 1 for n in p.shape) <= 1 for p in own.values())
    if len(own) != sum(name is not None for name in names) or len(sizes) != 1 or not flat:
        return None
    noise = torch.Generator().manual_seed(0)
    trial = copy_in_float64(module)
    sample = 3.0 * torch.randn(shape, generator=noise, dtype=torch.float64)
    with in_eval(trial):
        for name, parameter in trial.named_parameters(recurse=False):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=noise, dtype=torch.float64))
            if name == names[1]:
                parameter.neg_()  # told apart from the scale
        try:
            found = cast("object", trial(sample))
        except (
            Exception
        ):  # it takes something else than one tensor; foreign code may raise anything
            return None
        if not isinstance(found, Tensor):
            return None
        drawn = [None if name is None else _flat(trial, name) for name in names]
        for offset in (False, True) if names[0] else (False,):
            neutral(trial, names, offset)
            bare = cast("Tensor", trial(sample))
            for dim in (place for place, n in enumerate(found.shape) if n in sizes):
                if _is_affine(found, bare, drawn, offset, dim):
                    return OwnAffine(module, names, offset, dim)
    return None


def neutral(module: nn.Module, names: tuple[str | None, ...], offset: bool) -> None:
    """Set a norm's scale to 1, or to 0 where it is applied as 1 + w, and its shift to 0."""
    with torch.no_grad():
        for name, value in zip(names, (0.0 if offset else 1.0, 0.0), strict=True):
            if isinstance(held := getattr(module, name or "", None), Tensor):
                held.fill_(value)


def drop_affine(module: nn.Module) -> None:
    """Take scale and shift out of one of torch's norms, as `affine=False` would have built it."""
    for name in ("weight", "bias"):
        if isinstance(getattr(module, name, None), nn.Parameter):
            module.register_parameter(name, None)
    for flag in _FLAGS:
        if hasattr(module, flag):
            object.__setattr__(module, flag, False)


def can_drop_affine(module: nn.Module, shape: torch.Size) -> bool:
    """Whether a norm with neutral scale and shift does the same without them; tried on a copy.

    Args:
        module: A norm that takes one tensor.
        shape: Of an input that it really got.
    """
    if not isinstance(module, _TORCH_NORMS):
        return False
    trial = copy_in_float64(module)
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with in_eval(trial):
        neutral(trial, ("weight", "bias"), offset=False)
        expected = cast("Tensor", trial(sample))
        drop_affine(trial)
        try:
            found = cast("Tensor", trial(sample))
        except Exception:  # a subclass that reads its weight; foreign code may raise anything
            return False
        return torch.allclose(expected, found)


def copy_in_float64(module: nn.Module) -> nn.Module:
    """A copy to try things on: float64 on the CPU."""
    return copy.deepcopy(module).to(device="cpu", dtype=torch.float64)


def _is_affine(
    found: Tensor, bare: Tensor, drawn: list[Tensor | None], offset: bool, dim: int
) -> bool:
    shape = [-1 if place == dim else 1 for place in range(found.ndim)]
    scale, shift = drawn
    expected = bare
    if scale is not None:
        expected = expected * (scale + float(offset)).view(shape)
    if shift is not None:
        expected = expected + shift.view(shape)
    return float((found - expected).abs().max()) <= _TOLERANCE * float(found.abs().max())


def _first_of(names: Iterable[str], known: Mapping[str, object]) -> str | None:
    return next((name for name in names if name in known), None)


def _flat(module: nn.Module, name: str) -> Tensor:
    return cast("Tensor", getattr(module, name)).detach().clone().flatten()
