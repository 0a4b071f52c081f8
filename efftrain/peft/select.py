"""Choose which parameters train. Nothing changes in the model until `apply`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.anatomy import GROUPS, Anatomy
from efftrain.peft.blocks import choose_blocks
from efftrain.peft.methods import METHODS, OUTSIDE_BLOCKS, split_method
from efftrain.peft.norms import Suspect
from efftrain.peft.patterns import match_all
from efftrain.peft.selection import Selection
from efftrain.peft.sites import Run, choose_sites


def select(
    model: nn.Module,
    method: str = "norm",
    *,
    head: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    also: Iterable[str] = (),
    extra_norms: Iterable[str] = (),
    last_k: int | None = None,
    blocks: str | None = None,
    norm_kinds: Iterable[str] = (),
    sites: Iterable[str] = (),
    run: Run | None = None,
) -> Selection:
    """Name the parameters that a method trains.

    Args:
        model: Any module, with weights or on the meta device. It is not changed.
        method: One of `METHODS`, or several joined with `+`, such as `norm+head`.
        head: Path of the head, where it should not be searched for.
        include: Keep only these of what the method chooses: globs or dotted prefixes on parameter
            names (`layer4`, `*.norm1.*`).
        exclude: Leave these out.
        also: Add these, whatever the method and the blocks say.
        extra_norms: Class names to count as norms although they do not normalise (`DyT`).
        last_k: Only the last k blocks. A head that the method asks for stays in.
        blocks: Only these blocks: a slice (`0:4`, `-2:`) or numbers (`0,1`). As above for the head.
        norm_kinds: Of the norms, only those of these classes: globs such as `LayerNorm*`.
        sites: Of the norms, only those that stand here; see `find_sites`.
        run: Runs one forward, for the sites that only a forward shows.

    Returns:
        The selection; print it to see what would train.

    Raises:
        ConfigError: An unknown method, head or class; a pattern that matches nothing; nothing
            selected, or everything although the method is not `full`; a layer that calls itself a
            norm and is not recognised as one, while the method trains norms.
    """
    include, exclude, also = _listed(include), _listed(exclude), _listed(also)
    extra_norms = _listed(extra_norms)
    parts = split_method(method)
    anatomy = Anatomy.of(model, head, extra_norms)
    chosen = _chosen_by_method(anatomy, parts, blocks, last_k)
    if any("norm" in part for part in parts):
        _refuse_gaps(anatomy, exclude)
    chosen = _narrow_norms(anatomy, chosen, _listed(norm_kinds), _listed(sites), run, extra_norms)
    chosen = _narrow(anatomy, chosen, include, exclude, also)
    _refuse_nothing_and_everything(anatomy, method, parts, chosen)
    return _describe(anatomy, method, parts, chosen)


def _listed(patterns: Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _chosen_by_method(
    anatomy: Anatomy, parts: tuple[str, ...], blocks: str | None, last_k: int | None
) -> frozenset[str]:
    if "last_k" in parts and last_k is None and blocks is None:
        raise ConfigError("peft.method=last_k needs peft.last_k, the number of blocks to train")
    chosen = frozenset[str]().union(*(METHODS[part](anatomy) for part in parts))
    if blocks is None and last_k is None:
        return chosen
    inside = chosen & anatomy.inside(choose_blocks(anatomy.model, blocks, last_k))
    if any(part in OUTSIDE_BLOCKS for part in parts):
        inside |= anatomy.inside(anatomy.heads)
    return inside


def _refuse_gaps(anatomy: Anatomy, exclude: tuple[str, ...]) -> None:
    """A norm that is not recognised would silently stay frozen: say so, with its class."""
    left_out = frozenset(name for pattern in exclude for name in anatomy.matching(pattern))
    gaps = [
        suspect
        for suspect in anatomy.suspects
        if not suspect.refuted and not left_out.issuperset(suspect.parameters)
    ]
    if not gaps:
        return
    raise ConfigError(
        f"peft.method: norm-like layers not recognised in {type(anatomy.model).__name__}: "
        f"{_counted(gaps)}; add peft.extra_norms={_kinds(gaps)} to train them, or exclude them by "
        f"name with peft.exclude=[{gaps[0].path}]"
    )


def _counted(suspects: Iterable[Suspect]) -> str:
    first: dict[str, str] = {}
    for suspect in suspects:
        first.setdefault(suspect.kind, suspect.path)
    counts = Counter(suspect.kind for suspect in suspects)
    return ", ".join(f"{kind} ({counts[kind]}, first at {path})" for kind, path in first.items())


def _kinds(suspects: Iterable[Suspect]) -> str:
    return f"[{','.join(dict.fromkeys(suspect.kind for suspect in suspects))}]"


def _narrow_norms(
    anatomy: Anatomy,
    chosen: frozenset[str],
    kinds: tuple[str, ...],
    sites: tuple[str, ...],
    run: Run | None,
    extra_norms: tuple[str, ...],
) -> frozenset[str]:
    """Drop the norms of other classes and at other sites; what is no norm is not touched."""
    norms = anatomy.norms
    if kinds:
        there = match_all({site.kind for site in norms}, kinds, "peft.norm_kinds")
        norms = tuple(site for site in norms if site.kind in there)
    if sites:
        paths = choose_sites(anatomy.model, sites, run, extra_norms)
        norms = tuple(site for site in norms if site.path in paths)
    left = {name for site in norms for name in site.parameters}
    return chosen - (anatomy.norm_names - left)


def _narrow(
    anatomy: Anatomy,
    chosen: frozenset[str],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    also: tuple[str, ...],
) -> frozenset[str]:
    every = anatomy.aliases
    left = [name for name, first in every.items() if first in chosen]
    if include:
        kept = match_all(left, include, "peft.include", every)
        chosen = frozenset(every[name] for name in kept)
    if exclude:
        # a pattern that names an unrecognised norm has done its work: see _refuse_gaps
        gaps = {name for suspect in anatomy.suspects for name in suspect.parameters}
        left = [name for name, first in every.items() if first in chosen | gaps]
        dropped = match_all(left, exclude, "peft.exclude", every)
        chosen -= {every[name] for name in dropped}
    if also:
        chosen |= {every[name] for name in match_all(every, also, "peft.also")}
    return chosen


def _refuse_nothing_and_everything(
    anatomy: Anatomy, method: str, parts: tuple[str, ...], chosen: frozenset[str]
) -> None:
    name, count = type(anatomy.model).__name__, len(anatomy.parameters)
    if not chosen:
        kinds = sorted({site.kind for site in anatomy.norms if not site.parameters})
        frozen = any(site.frozen for site in anatomy.norms)
        hint = "see what there is with model.named_parameters(), or choose another peft.method"
        if "norm" in method and frozen:
            hint = f"scale and bias of {', '.join(kinds)} are buffers: call thaw_norms(model) first"
        elif "norm" in method and kinds:
            hint = f"{', '.join(kinds)} have no scale or bias: add them with peft.add_affine=true"
        elif "ssf" in parts:
            hint = "put the scales and shifts there first, with add_ssf(model)"
        elif "norm" in method and anatomy.suspects:
            hint = (
                f"{_counted(anatomy.suspects)} are called norms and do not normalise: count them in "
                f"with peft.extra_norms={_kinds(anatomy.suspects)}"
            )
        raise ConfigError(f"peft.method={method} matched 0 of {count} parameters in {name}; {hint}")
    if "full" not in parts and len(chosen) == count:
        raise ConfigError(
            f"peft.method={method} selects all {count} parameters of {name}; narrow it with "
            "peft.include or peft.exclude, or say peft.method=full"
        )


def _describe(
    anatomy: Anatomy, method: str, parts: tuple[str, ...], chosen: frozenset[str]
) -> Selection:
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    frozen: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    trainable_bytes = 0
    for name, parameter in anatomy.parameters.items():
        if name not in chosen:
            frozen[name.split(".")[0]] += parameter.numel()
            continue
        role = anatomy.role(name)
        groups[role].append(name)
        sizes[role] += parameter.numel()
        trainable_bytes += parameter.numel() * parameter.element_size()
    notes: list[str] = []
    passed = [one for one in anatomy.suspects if one.refuted and not chosen & set(one.parameters)]
    if passed and any("norm" in part for part in parts):
        notes.append(
            f"not counted as norms, as they do not normalise: {_counted(passed)}; "
            f"peft.extra_norms={_kinds(passed)} counts them in"
        )
    return Selection(
        notes=tuple(notes),
        method=method,
        groups={group: tuple(names) for group, names in groups.items() if names},
        sizes={group: sizes[group] for group in GROUPS if groups[group]},
        total=sum(parameter.numel() for parameter in anatomy.parameters.values()),
        trainable=sum(sizes.values()),
        trainable_bytes=trainable_bytes,
        frozen=dict(frozen),
        drifting=tuple(site.path for site in anatomy.norms if site.running),
        norms=tuple(site for site in anatomy.norms if chosen.intersection(site.parameters)),
        heads=anatomy.heads if any(part in OUTSIDE_BLOCKS for part in parts) else (),
    )
