"""The rule by which a module is a normalization layer, and what each of its parameters does.

Three kinds of evidence, strongest first: it is one of torch's own types, or keeps a mean and a
variance as such layers do; it normalises when it is run alone (see `probe`); the user named its
class in `peft.extra_norms`.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import (
    _NormBase,  # pyright: ignore[reportPrivateUsage]  # the base of every batch and instance norm
)
from torch.nn.parameter import is_lazy

from efftrain.peft.probe import Probe, probe
from efftrain.peft.tree import own_buffers, own_parameters

TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""torch's own norms; timm's fused norm-and-activation layers are subclasses of these."""

_SCALE_NAMES = ("weight", "scale", "gamma", "g", "gain", "alpha", "a_2")
_BIAS_NAMES = ("bias", "beta", "shift", "b", "b_2")


class NormRule:
    """Says of each module whether it is a norm; asks only one of each kind.

    Args:
        extra: Class names, short or full, that the user counts as norms.
    """

    def __init__(self, extra: frozenset[str]) -> None:
        """Start without answers."""
        self.extra = extra
        self._answers: dict[object, Probe | None] = {}

    def __call__(self, module: nn.Module) -> Probe | None:
        """What a module is: a norm or none, with its parameters' roles; None if nobody knows."""
        if isinstance(module, TORCH_NORMS) or names_of(module) & self.extra:
            return named_roles(module)
        if {"running_mean", "running_var"} <= set(own_buffers(module)):
            return named_roles(module)  # a frozen batch norm divides by what it stores
        if not self._is_worth_asking(module):
            return None
        key = self._kind(module)
        if key not in self._answers:
            self._answers[key] = probe(module)
        answer = self._answers[key]
        if answer and answer.normalises and answer.scale is None and answer.bias is None:
            return named_roles(module, answer.offset)
        return answer

    def _is_worth_asking(self, module: nn.Module) -> bool:
        if own_parameters(module):
            return holds_only_vectors(module)
        # without parameters, only a leaf that says what it is: not a block that wraps a norm
        return "norm" in type(module).__name__.lower() and len(list(module.modules())) == 1

    def _kind(self, module: nn.Module) -> object:
        shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
        # options such as add_unit_offset make one class behave in two ways
        options = tuple(
            (name, value)
            for name, value in sorted(vars(module).items())
            if isinstance(value, bool | str) and name != "training"
        )
        return type(module), shapes, options


def named_roles(module: nn.Module, offset: bool = False) -> Probe:
    """The roles of a norm's parameters by local name; a lone one of another name is the scale.

    Args:
        module: A norm.
        offset: Whether its scale is known to act as (1 + w).
    """
    own = own_parameters(module)
    scale = next((name for name in _SCALE_NAMES if name in own), None)
    bias = next((name for name in _BIAS_NAMES if name in own), None)
    if scale is None:
        scale = next((name for name in own if name != bias), None)
    return Probe(True, scale, bias, offset)


def frozen_affine(module: nn.Module) -> tuple[str, ...]:
    """Local names of scale and bias where a batch norm keeps them as buffers."""
    buffers = own_buffers(module)
    if not {"running_mean", "running_var"} <= set(buffers):
        return ()
    return tuple(name for name in ("weight", "bias") if name in buffers)


def names_of(module: nn.Module) -> frozenset[str]:
    """The names by which an option may mean a module's class: short and full."""
    kind = type(module)
    return frozenset((kind.__name__, kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}"))


def calls_itself_norm(path: str, module: nn.Module) -> bool:
    """Whether it is called a norm, by its class or by its owner."""
    return "norm" in f"{type(module).__name__} {path.rpartition('.')[2]}".lower()


def holds_only_vectors(module: nn.Module) -> bool:
    """Whether no parameter in it is a matrix; [C, 1, 1] counts as a vector of C."""
    return all(
        not is_lazy(p) and sum(size > 1 for size in p.shape) <= 1 for p in module.parameters()
    )
