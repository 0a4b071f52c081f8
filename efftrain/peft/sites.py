"""Where each norm stands: in the stem, before the attention, after the feed-forward, at the end.

The order in which modules are registered says little: a LLaMA block registers its norms last, and
`norm1` stands before the attention in a ViT and after it in a Swin V2. So one forward is watched.
Without one, only what the structure shows is told: stem, block, downsample, final.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.blocks import find_blocks
from efftrain.peft.norms import NormSite, find_norms
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.tree import has_parameters, walk

Run = Callable[[nn.Module], object]

STATIC = ("stem", "block", "downsample", "final")
"""Sites that need no forward: before the first block, in one, where it narrows, after the last."""

WATCHED = ("before_attention", "in_attention", "after_attention",
           "before_mlp", "in_mlp", "after_mlp")  # fmt: skip
"""Sites that one forward shows. A norm between attention and feed-forward is both."""

SITES = (*STATIC, *WATCHED)

_ATTENTION = ("attention", "attn")
_MLP = ("mlp", "feedforward", "feed_forward", "ffn", "intermediate", "moe", "fc1", "linear1",
        "densereludense")  # fmt: skip
_PARTS = {"attention": _ATTENTION, "mlp": _MLP}
_DOWNSAMPLES = ("downsample", "shortcut")


def find_sites(
    model: nn.Module, run: Run | None = None, extra_norms: Iterable[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Tell where each norm stands.

    Args:
        model: Any module; it is not changed.
        run: Runs one forward, such as `lambda model: model(batch)`; without gradients, in eval
            mode. Without it only the `STATIC` sites are told.
        extra_norms: Class names to count as norms.

    Returns:
        Path of each norm to those of `SITES` that it stands at; a norm in no block may have none.
    """
    norms = find_norms(model, extra_norms)
    events = _watch(model, norms, run) if run is not None else []
    blocks = find_blocks(model)
    order = [path for _, _, path in events] or [path for path, _ in walk(model)]
    places = {site.path: _static(site, blocks, order) for site in norms}
    for path, place in _watched(events):
        if place not in places[path]:
            places[path].append(place)
    return {path: tuple(sorted(found, key=SITES.index)) for path, found in places.items()}


def choose_sites(
    model: nn.Module, sites: Iterable[str], run: Run | None, extra_norms: Iterable[str] = ()
) -> frozenset[str]:
    """Paths of the norms that stand at any of the sites.

    Args:
        model: Any module.
        sites: Some of `SITES`.
        run: Runs one forward; needed for the sites in `WATCHED`.
        extra_norms: Class names to count as norms.

    Raises:
        ConfigError: An unknown site, one that needs a forward when there is none, or one at which
            this model has no norm; one line each.
    """
    wanted = tuple(sites)
    problems = [
        f"peft.sites={site} is not a site{did_you_mean(site, SITES)}; allowed are {', '.join(SITES)}"
        for site in wanted
        if site not in SITES
    ]
    if not problems and run is None:
        problems = [
            f"peft.sites={site} shows only in a forward; pass run=lambda model: model(batch), or "
            f"choose from {', '.join(STATIC)}"
            for site in wanted
            if site in WATCHED
        ]
    if problems:
        raise ConfigError(*problems)
    places = find_sites(model, run, extra_norms)
    there = sorted({place for found in places.values() for place in found}, key=SITES.index)
    empty = [site for site in wanted if site not in there]
    if empty:
        raise ConfigError(
            f"peft.sites={empty[0]}: {type(model).__name__} has no norm there; it has norms at "
            f"{', '.join(there) or 'none of the sites'}"
        )
    return frozenset(path for path, found in places.items() if set(found) & set(wanted))


def _watch(model: nn.Module, norms: list[NormSite], run: Run) -> list[tuple[str, str, str]]:
    """Run once and note, in order, (begin or end or norm, kind, path)."""
    events: list[tuple[str, str, str]] = []
    blocks = find_blocks(model)
    kinds = dict.fromkeys(blocks, "block") | _parts(model, blocks)
    names = {site.path for site in norms}

    def note(what: str, kind: str, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            events.append((what, kind, path))

        return hook

    hooks: list[Any] = []
    for path, module in walk(model):
        if path in names:
            hooks.append(module.register_forward_pre_hook(note("norm", "norm", path)))
        if path in kinds:
            hooks.append(module.register_forward_pre_hook(note("begin", kinds[path], path)))
            hooks.append(module.register_forward_hook(note("end", kinds[path], path)))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return events


def _parts(model: nn.Module, blocks: tuple[str, ...]) -> dict[str, str]:
    """What is called attention or feed-forward inside the blocks, by class or by name.

    Of nested attentions the innermost counts (BERT's holds the projection and the norm after it,
    too), of nested feed-forwards the outermost (its layers may be called so as well).
    """
    inside = tuple(f"{block}." for block in blocks)
    found: dict[str, str] = {}
    for path, module in walk(model):
        label = f"{type(module).__name__} {path.rpartition('.')[2]}".lower()
        if path.startswith(inside) and "norm" not in label and has_parameters(module):
            kinds = [kind for kind, words in _PARTS.items() if any(word in label for word in words)]
            if kinds:
                found[path] = kinds[0]
    attentions = [path for path, kind in found.items() if kind == "attention"]
    feeds = [path for path, kind in found.items() if kind == "mlp"]
    nested = {path for path in attentions if any(one.startswith(f"{path}.") for one in attentions)}
    nested |= {path for path in feeds if any(path.startswith(f"{one}.") for one in feeds)}
    return {path: kind for path, kind in found.items() if path not in nested}


def _static(site: NormSite, blocks: tuple[str, ...], order: list[str]) -> list[str]:
    """Before, in or after the blocks, in the order of the calls or else of registration."""
    places: list[str] = []
    owner = site.path.rpartition(".")[0]
    # an encoder's last norm stands before the decoder's blocks
    stack = [path for path in blocks if path.startswith(f"{owner}.")] or list(blocks)
    called = [order.index(path) for path in stack if path in order]
    if any(site.path.startswith(f"{block}.") for block in blocks):
        places.append("block")
    elif called and site.path in order:
        at = order.index(site.path)
        places += ["stem"] * (at < min(called)) + ["final"] * (at > max(called))
    if any(word in site.path.lower() for word in _DOWNSAMPLES):
        places.append("downsample")
    return places


def _watched(events: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(norm, site) for every norm that stands next to, or in, an attention or a feed-forward."""
    found: list[tuple[str, str]] = []
    within: list[str] = []
    for index, (what, kind, path) in enumerate(events):
        if what == "norm":
            around = [one for one in within if one != "block"]
            if around:
                found.append((path, f"in_{around[-1]}"))
                continue
            before, after = _neighbour(events, index, -1), _neighbour(events, index, 1)
            if before is not None and before[0] == "end" and before[1] != "block":
                found.append((path, f"after_{before[1]}"))
            if after is not None and after[0] == "begin" and after[1] != "block":
                found.append((path, f"before_{after[1]}"))
        elif what == "begin":
            within.append(kind)
        elif within:
            within.pop()
    return found


def _neighbour(
    events: list[tuple[str, str, str]], index: int, step: int
) -> tuple[str, str, str] | None:
    """The event beside a norm's own."""
    at = index + step
    return events[at] if 0 <= at < len(events) else None
