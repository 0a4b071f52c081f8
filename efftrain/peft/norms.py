"""Find every normalization layer of a model by what it does, not by what it is called.

Three kinds of evidence, strongest first: the layer is one of torch's own types; it normalises when
it is run alone (see `probe`); the user named its class in `peft.extra_norms`. A class that calls
itself a norm and shows none of the three is a suspect: reported by name, never silently dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import (
    _NormBase,  # pyright: ignore[reportPrivateUsage]  # the base of every batch and instance norm
)
from torch.nn.parameter import is_lazy

from efftrain.errors import ConfigError
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.probe import Probe, probe
from efftrain.peft.tree import join, own_buffers, own_parameters, walk

TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""torch's own norms; timm's fused norm-and-activation layers are subclasses of these."""

_SCALE_NAMES = ("weight", "scale", "gamma", "g", "gain", "alpha_weight", "a_2")
_BIAS_NAMES = ("bias", "beta", "shift", "b", "b_2")


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

    judge = _Judge(extra)
    verdicts = [(path, module, judge(module)) for path, module in walk(model)]
    proven = {type(module) for _, module, verdict in verdicts if verdict and verdict.normalises}
    sites: list[NormSite] = []
    suspects: list[Suspect] = []
    for path, module, verdict in verdicts:
        own = own_parameters(module)
        if own and type(module) in proven and not (verdict and verdict.normalises):
            verdict = _named_roles(module)  # one of its class does: this one is switched off
        if verdict and verdict.normalises:
            shared = [*paths[id(module)], *(at for p in own.values() for at in holders[id(p)])]
            sites.append(_site(path, module, verdict, canonical, shared))
        elif own and _calls_itself_norm(path, module) and _holds_only_vectors(module):
            names = tuple(canonical[id(p)] for p in own.values())
            suspects.append(
                Suspect(path, type(module).__name__, names, refuted=verdict is not None)
            )
    return sites, suspects


class _Judge:
    """Decides whether modules are norms; asks only one of each kind."""

    def __init__(self, extra: frozenset[str]) -> None:
        self.extra = extra
        self.answers: dict[object, Probe | None] = {}

    def __call__(self, module: nn.Module) -> Probe | None:
        """What the module is: a norm or none, with its parameters' roles; None if unknown."""
        if isinstance(module, TORCH_NORMS) or names_of(module) & self.extra:
            return _named_roles(module)
        if _frozen_affine(module):
            return Probe(normalises=True)
        if own_parameters(module):
            worth_asking = _holds_only_vectors(module)
        else:  # without parameters, only a leaf that says what it is: not a block that wraps norms
            named = "norm" in type(module).__name__.lower()
            worth_asking = named and len(list(module.modules())) == 1
        if not worth_asking:
            return None
        key = self._kind(module)
        if key not in self.answers:
            self.answers[key] = probe(module)
        answer = self.answers[key]
        if answer and answer.normalises and answer.scale is None and answer.bias is None:
            return _named_roles(module, answer.offset)
        return answer

    def _kind(self, module: nn.Module) -> object:
        shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
        # options such as add_unit_offset make one class behave in two ways
        options = tuple(
            (name, value)
            for name, value in sorted(vars(module).items())
            if isinstance(value, bool | str) and name != "training"
        )
        return type(module), shapes, options


def _site(
    path: str,
    module: nn.Module,
    roles: Probe,
    canonical: dict[int, str],
    shared: list[str],
) -> NormSite:
    own = own_parameters(module)
    frozen = _frozen_affine(module)
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
        running="running_var" in own_buffers(module),
    )


def names_of(module: nn.Module) -> frozenset[str]:
    """The names by which an option may mean a module's class: short and full."""
    kind = type(module)
    return frozenset((kind.__name__, kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}"))


def _named_roles(module: nn.Module, offset: bool = False) -> Probe:
    """Roles by local name; a lone parameter of another name is the scale."""
    own = own_parameters(module)
    scale = next((name for name in _SCALE_NAMES if name in own), None)
    bias = next((name for name in _BIAS_NAMES if name in own), None)
    if scale is None:
        scale = next((name for name in own if name != bias), None)
    return Probe(True, scale, bias, offset)


def _frozen_affine(module: nn.Module) -> tuple[str, ...]:
    """Local names of scale and bias where a batch norm keeps them as buffers."""
    buffers = own_buffers(module)
    if not {"running_mean", "running_var"} <= set(buffers):
        return ()
    return tuple(name for name in ("weight", "bias") if name in buffers)


def _calls_itself_norm(path: str, module: nn.Module) -> bool:
    """By its class, or by the name under which its owner keeps it."""
    return "norm" in f"{type(module).__name__} {path.rpartition('.')[2]}".lower()


def _holds_only_vectors(module: nn.Module) -> bool:
    """Whether no parameter in it is a matrix; [C, 1, 1] counts as a vector of C."""
    return all(
        not is_lazy(p) and sum(size > 1 for size in p.shape) <= 1 for p in module.parameters()
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
