"""Activations and multiply-accumulates of each layer, along the depth of the network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from efftrain.profiling.layers import Layer
from efftrain.profiling.report import Profile
from efftrain.render.profile_kinds import KINDS, MEANINGS, Kind, find_kinds
from efftrain.render.profile_totals import WHOLE
from efftrain.render.quantity import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# Okabe and Ito's colours, which people who see few colours can tell apart; on white and on black.
COLORS: dict[Kind, str] = {
    "conv": "#0072b2",
    "depthwise": "#d55e00",
    "linear": "#009e73",
    "attention": "#cc79a7",
    "norm": "#e69f00",
    "activation": "#56b4e9",
    "other": "#8c8c8c",
}

MOST_GROUPS = 24  # names below the axis
LONGEST_NAME = 18


def draw_layers(figure: FigureBase, profile: Profile) -> None:
    """Draw two panels of bars, one for each layer that makes activations or multiplies."""
    from matplotlib.ticker import EngFormatter

    layers = [layer for layer in profile.layers if layer.activations or layer.macs]
    kinds = find_kinds(profile)
    upper, lower = figure.subplots(2, 1, sharex=True)
    activations = ("activations\n(elements)", [layer.activations for layer in layers])
    products = ("MACs\n(multiply-accumulates)", [layer.macs for layer in layers])
    there = {kinds[layer.path] for layer in layers}
    for axes, (label, values) in ((upper, activations), (lower, products)):
        for kind in KINDS:
            if kind not in there:
                continue
            those = [n for n, layer in enumerate(layers) if kinds[layer.path] == kind]
            heights = [values[n] for n in those]
            axes.bar(those, heights, width=0.9, color=COLORS[kind], label=MEANINGS[kind])
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlim(-1, max(len(layers), 1))
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    _mark_peak(upper, profile, layers)
    _mark_strides((upper, lower), profile, layers)
    name_groups((upper, lower), [layer.path for layer in layers])
    handles: list[Any]
    handles, labels = lower.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    figure.suptitle(
        "Each layer at inference of one sample, in the order in which they run (predicted)",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip


def groups_of(paths: Sequence[str], most: int = MOST_GROUPS) -> list[tuple[str, int, int]]:
    """Name, first and last number of neighbours that begin alike.

    As long names as leave no more than `most` groups; where that leaves few of a deep model, some
    of its many blocks, evenly spaced.
    """
    best: list[tuple[str, int, int]] = []
    for depth in range(1, 2 + max((path.count(".") for path in paths), default=0)):
        found: list[tuple[str, int, int]] = []
        begins = [".".join(path.split(".")[:depth]) for path in paths]
        for name, numbers in groupby(range(len(paths)), key=begins.__getitem__):
            each = list(numbers)
            found.append((name, each[0], each[-1]))
        if len(found) > most:
            return best if len(best) >= most // 4 else found[:: -(-len(found) // most)]
        best = found
    return best


def _mark_peak(axes: Axes, profile: Profile, layers: Sequence[Layer]) -> None:
    """A dot as high as all that is alive at the peak, over the layer where that is."""
    found = profile.activations
    numbers = [n for n, layer in enumerate(layers) if layer.path == found.peak_layer]
    axes.set_ylim(0, max(found.peak, *(layer.activations for layer in layers), 1) * 1.12)
    if not numbers:  # at a layer that is fused into the one before it
        axes.set_title(f"peak: {count_text(found.peak)} alive at {found.peak_layer or WHOLE}")
        return
    (x,) = numbers[:1]
    axes.vlines(x, layers[x].activations, found.peak, linestyles="dotted", colors="#d7373f")
    axes.plot([x], [found.peak], "o", color="#d7373f", markersize=5, zorder=5)
    right = x > len(layers) / 2
    axes.annotate(
        f"peak: {count_text(found.peak)} alive at {found.peak_layer}",
        (x, found.peak),
        xytext=(-8 if right else 8, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        fontsize=8,
        parse_math=False,
    )


def _mark_strides(panels: Sequence[Axes], profile: Profile, layers: Sequence[Layer]) -> None:
    """A line where the map gets smaller, and how much smaller than the image it is from there."""
    numbers = {layer.path: number for number, layer in reversed(list(enumerate(layers)))}
    changes = [(numbers[p], s) for p, s in profile.receptive_field.stride_schedule if p in numbers]
    for number, (x, stride) in enumerate(changes):
        for axes in panels:
            axes.axvline(x - 0.5, color="#8c8c8c", linewidth=0.8, linestyle="dashed", zorder=0)
        close = number + 1 < len(changes) and changes[number + 1][0] - x < len(layers) / 30
        panels[1].annotate(
            f"1/{stride}",
            (x - 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-1 if close else 1, 2),
            textcoords="offset points",
            ha="right" if close else "left",
            fontsize=7.5,
        )
    if changes:
        panels[1].annotate(
            "width of the map:",
            (0.0, 1.0),
            xycoords="axes fraction",
            xytext=(-20, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
        )


def name_groups(panels: Sequence[Axes], paths: Sequence[str]) -> None:
    """Shade every second group of layers that belong together, and write its name below the last panel."""
    found = groups_of(paths)
    for _, first, last in found[1::2]:
        for axes in panels:
            axes.axvspan(first - 0.5, last + 0.5, color="#8c8c8c", alpha=0.12, linewidth=0)
    axes = panels[-1]
    axes.set_xticks([(first + last) / 2 for _, first, last in found])
    axes.set_xticklabels(
        [end_of(name) for name, _, _ in found],
        rotation=45, ha="right", rotation_mode="anchor", fontsize=7.5, parse_math=False,
    )  # fmt: skip
    for each in panels:
        each.tick_params(axis="x", length=0)


def end_of(path: str) -> str:
    """As many of a path's last names as there is room for."""
    while len(path) > LONGEST_NAME and "." in path:
        path = path.partition(".")[2]
    return path if len(path) <= LONGEST_NAME else f"..{path[2 - LONGEST_NAME :]}"
