"""Find every normalization layer of a model by what it does, not by what it is called.

The rule is in `norm_rule`. A layer that calls itself a norm and is none by the rule is a suspect:
reported by name, never silently dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn
from torch.nn.parameter import is_lazy

from efftrain.errors import ConfigError
from efftrain.peft.bn_stats import moves_in_training
from efftrain.peft.norm_rule import (
    NormRule,
    calls_itself_norm,
    frozen_affine,
    holds_only_vectors,
    named_roles,
    names_of,
)
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.probe import Probe
from efftrain.peft.tree import join, own_parameters, walk


@dataclass(frozen=True)
class NormSite:
    """One normalization layer.

    Attributes:
        path: Where it is in the model.
        kind: Its class name.
        channels: Elements of its scale or bias; 0 where it has neither and does not say.
        scale: Full name of the parameter that multiplies, or None.
        bias: Full name of the parameter that is added, or None.
        shared_with: Other paths at which the same module or the same parameter appears.
        affine: Whether it has a scale or a bias, as parameters or as buffers.
        offset: Whether the scale acts as (1 + w): the identity is w = 0.
        frozen: Full names of the buffers that hold scale and bias in a frozen batch norm.
        running: Whether it keeps running statistics, which training would move.
    """

    path: str
    kind: str
    channels: int
    scale: str | None
    bias: str | None
    shared_with: tuple[str, ...] = ()
    affine: bool = True
    offset: bool = False
    frozen: tuple[str, ...] = ()
    running: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its scale and bias, those that there are."""
        return tuple(name for name in (self.scale, self.bias) if name is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Suspect:
    """A layer that calls itself a norm and could not be shown to be one.

    Attributes:
        path: Where it is in the model.
        kind: Its class name.
        parameters: Full names of its own parameters.
        refuted: Whether it was run and does not normalise, as MobileBERT's NoNorm; else it could
            not be run alone, and nobody knows.
    """

    path: str
    kind: str
    parameters: tuple[str, ...]
    refuted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def find_norms(model: nn.Module, extra_norms: Iterable[str] = ()) -> list[NormSite]:
    """List the normalization layers of a model, each once.

    Args:
        model: Any module, with weights or on the meta device. It is not changed.
        extra_norms: Class names (`DyT`) or full names (`my.layers.DyT`) to count as norms although
            they do not normalise, such as a dynamic tanh.

    Returns:
        One site per distinct layer, in the order in which the model registers them.

    Raises:
        ConfigError: `extra_norms` names a class that the model does not have, or a layer has no
            shape yet (lazy).
    """
    return survey(model, extra_norms)[0]


def survey(
    model: nn.Module, extra_norms: Iterable[str] = ()
) -> tuple[list[NormSite], list[Suspect]]:
    """As `find_norms`, and the layers that only call themselves norms."""
    extra = frozenset([extra_norms] if isinstance(extra_norms, str) else extra_norms)
    _check_extra(model, extra)
    canonical = {id(p): name for name, p in model.named_parameters()}
    paths: dict[int, list[str]] = {}
    holders: dict[int, list[str]] = {}  # paths of the modules that hold a parameter
    for path, module in walk(model, duplicates=True):
        paths.setdefault(id(module), []).append(path)
        for parameter in own_parameters(module).values():
            holders.setdefault(id(parameter), []).append(path)

    judge = NormRule(extra)
    verdicts = [(path, module, judge(module)) for path, module in walk(model)]
    proven = {type(module) for _, module, verdict in verdicts if verdict and verdict.normalises}
    sites: list[NormSite] = []
    suspects: list[Suspect] = []
    for path, module, verdict in verdicts:
        own = own_parameters(module)
        if own and type(module) in proven and not (verdict and verdict.normalises):
            verdict = named_roles(module)  # one of its class does: this one is switched off
        if verdict and verdict.normalises:
            shared = [*paths[id(module)], *(at for p in own.values() for at in holders[id(p)])]
            sites.append(_site(path, module, verdict, canonical, shared))
        elif own and calls_itself_norm(path, module) and holds_only_vectors(module):
            names = tuple(canonical[id(p)] for p in own.values())
            suspects.append(
                Suspect(path, type(module).__name__, names, refuted=verdict is not None)
            )
    return sites, suspects


def _site(
    path: str,
    module: nn.Module,
    roles: Probe,
    canonical: dict[int, str],
    shared: list[str],
) -> NormSite:
    own = own_parameters(module)
    frozen = frozen_affine(module)
    scale = own.get(roles.scale or "")
    bias = own.get(roles.bias or "")
    for parameter in (scale, bias):
        if parameter is not None and is_lazy(parameter):
            raise ConfigError(
                f"peft: {path} ({type(module).__name__}) has no shape yet; "
                "run one batch through the model first"
            )
    affine = [one for one in (scale, bias) if one is not None]
    affine += [module.get_buffer(name) for name in frozen]
    return NormSite(
        path=path,
        kind=type(module).__name__,
        channels=affine[0].numel() if affine else _declared_channels(module),
        scale=None if scale is None else canonical[id(scale)],
        bias=None if bias is None else canonical[id(bias)],
        shared_with=tuple(dict.fromkeys(at for at in shared if at != path)),
        affine=bool(affine),
        offset=roles.offset,
        frozen=tuple(join(path, name) for name in frozen),
        running=moves_in_training(module),
    )


def _declared_channels(module: nn.Module) -> int:
    for name in ("num_features", "num_channels", "normalized_shape", "hidden_size", "dim"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
        if isinstance(value, tuple):
            return math.prod(cast("tuple[int, ...]", value))
    return 0


def _check_extra(model: nn.Module, extra: frozenset[str]) -> None:
    known = frozenset[str]().union(*(names_of(module) for module in model.modules()))
    problems = [
        f"peft.extra_norms={name} names no class of this model{did_you_mean(name, known)}"
        for name in sorted(extra - known)
    ]
    if problems:
        raise ConfigError(*problems)
