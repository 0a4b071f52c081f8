"""A machine's two ceilings, and where a model's layers stand below them.

Source: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from efftrain.profiling.report import Profile
from efftrain.profiling.roofline import Ceilings, Roofline
from efftrain.render.profile_figure_layers import COLORS
from efftrain.render.profile_kinds import KINDS, MEANINGS, Kind, find_kinds
from efftrain.render.profile_table import shortened
from efftrain.render.profile_totals import WHOLE, machine_text
from efftrain.render.quantity import count_text, milliseconds_text, ratio_text
from efftrain.units import MS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

LABELS = 6
LONGEST_PATH = 44
SMALLEST_LOSS = 0.001  # of all the time, below which a layer is not named
BINS_PER_DECADE = 6
LARGEST_DOT = 900.0  # points squared, for all of the time


@dataclass(frozen=True)
class Dot:
    """Layers that compute and move equally much.

    Attributes:
        path: Of the first.
        layers: How many.
        kind: Of them.
        intensity: FLOP for each byte.
        flops_per_s: That they reach at most.
        predicted_ms: Of all of them.
        lost_ms: Of these, what they would not take if memory were no limit.
    """

    path: str
    layers: int
    kind: Kind
    intensity: float
    flops_per_s: float
    predicted_ms: float
    lost_ms: float


def draw_roofline(figure: FigureBase, profile: Profile, roofline: Roofline) -> None:
    """Draw the roofline with a dot for each layer, and below it where the time goes."""
    from matplotlib.collections import PathCollection

    ceilings = roofline.ceilings
    dots = find_dots(profile, roofline)
    dtype = main_dtype(profile, ceilings)
    ridge = ceilings.ridge(dtype)
    xs = [dot.intensity for dot in dots] + [ridge]
    left, right = 10 ** math.floor(math.log10(min(xs))), max(xs) * 5
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    _draw_ceilings(upper, ceilings, dtype, (left, right))
    _draw_dots(upper, dots)
    upper.set_xlim(left, right)
    _label_worst(upper, dots)
    _draw_times(lower, dots, (left, right))
    every = sum(layer.predicted_ms or 0 for layer in profile.layers)
    memory = sum(layer.predicted_ms or 0 for layer in profile.layers if layer.bound == "memory")
    for axes in (upper, lower):
        axes.axvline(ridge, color="#8c8c8c", linewidth=0.8, linestyle="dashed", zorder=0)
    if every:
        sides = ("memory", memory, "right", -5), ("compute", every - memory, "left", 5)
        for bound, time, align, offset in sides:
            lower.annotate(
                f"bound by {bound}: {100 * time / every:.0f} % of {milliseconds_text(every)} ms",
                (ridge, 1.0), xycoords=("data", "axes fraction"), xytext=(offset, 2),
                textcoords="offset points", ha=align, fontsize=8,
            )  # fmt: skip
    still = every - sum(dot.predicted_ms for dot in dots)
    if still > 0.005 * every:
        lower.annotate(f"without any operation: {milliseconds_text(still)} ms", (0.01, 0.9),
                       xycoords="axes fraction", fontsize=7.5, va="top")  # fmt: skip
    lower.set_xlabel("arithmetic intensity (FLOP/byte)")
    handles, labels = upper.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, title="share of the predicted time", loc="outside lower center",
        ncols=min(len(labels), 4), title_fontsize=8,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40.0])
    figure.suptitle(
        f"Roofline of {machine_text(ceilings)}: inference of one sample"
        f" (layers predicted, ceilings {ceilings.source.partition(' ')[0]})",
        x=0.01, ha="left", fontsize=11, parse_math=False,
    )  # fmt: skip


def main_dtype(profile: Profile, ceilings: Ceilings) -> str:
    """The data type with a ceiling that does most of the model's operations."""
    flops: dict[str, int] = defaultdict(int)
    for entry in profile.inference.entries:
        flops[entry.dtype] += entry.flops
    return max(ceilings.flops_per_s, key=lambda dtype: flops[dtype])


def find_dots(profile: Profile, roofline: Roofline) -> list[Dot]:
    """Layers with a predicted time and an intensity; those alike are one."""
    kinds = find_kinds(profile)
    groups: dict[tuple[object, ...], list[Dot]] = defaultdict(list)
    for layer in profile.layers:
        if layer.intensity and layer.predicted_ms:
            per_s = layer.flops / layer.predicted_ms * MS_PER_S
            lost = layer.predicted_ms - roofline.layers[layer.path].compute_ms
            groups[kinds[layer.path], layer.type, layer.flops, layer.bytes_moved].append(
                Dot(layer.path, 1, kinds[layer.path], layer.intensity, per_s, layer.predicted_ms,
                    max(lost, 0.0))
            )  # fmt: skip
    return [
        Dot(
            path=those[0].path,
            layers=len(those),
            kind=those[0].kind,
            intensity=those[0].intensity,
            flops_per_s=those[0].flops_per_s,
            predicted_ms=sum(dot.predicted_ms for dot in those),
            lost_ms=sum(dot.lost_ms for dot in those),
        )
        for those in groups.values()
    ]


def _draw_ceilings(axes: Axes, ceilings: Ceilings, dtype: str, xs: tuple[float, float]) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

    for name, peak in sorted(ceilings.flops_per_s.items(), key=lambda each: each[0] == dtype):
        ridge = peak / ceilings.bytes_per_s
        main = name == dtype
        start = ridge if not main else xs[0]
        line = sorted({start, min(max(ridge, start), xs[1]), xs[1]})
        ys = [min(peak, x * ceilings.bytes_per_s) for x in line]
        axes.plot(line, ys, color="#5f7390" if main else "#8c8c8c", linewidth=1.8 if main else 0.9,
                  linestyle="solid" if main else "dashed", zorder=1)  # fmt: skip
        axes.annotate(f"{name}: {count_text(peak)}FLOP/s", (xs[1], peak), xytext=(-3, 4),
                      textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("attainable (FLOP/s)")
    axes.grid(alpha=0.2, linewidth=0.6)
    peak, ridge = ceilings.flops_per_s[dtype], ceilings.ridge(dtype)
    axes.set_ylim(xs[0] * ceilings.bytes_per_s * 0.6, max(ceilings.flops_per_s.values()) * 2.2)
    axes.plot([ridge], [peak], "D", color="#5f7390", markersize=5, zorder=4)
    axes.annotate(f"ridge {ratio_text(ridge)} FLOP/byte", (ridge, peak), xytext=(-4, 6),
                  textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    # in the middle of the slope, on the side that no layer can be on
    x = math.sqrt(xs[0] * ridge)
    axes.annotate(f"memory: {count_text(ceilings.bytes_per_s)}B/s", (x, x * ceilings.bytes_per_s),
                  xytext=(-8, 8), textcoords="offset points", ha="right", fontsize=8)  # fmt: skip


def _draw_dots(axes: Axes, dots: list[Dot]) -> None:
    total = sum(dot.predicted_ms for dot in dots) or 1.0
    for kind in KINDS:
        those = [dot for dot in dots if dot.kind == kind]
        if not those:
            continue
        share = 100 * sum(dot.predicted_ms for dot in those) / total
        axes.scatter(
            [dot.intensity for dot in those],
            [dot.flops_per_s for dot in those],
            s=[max(12.0, LARGEST_DOT * dot.predicted_ms / total) for dot in those],
            color=COLORS[kind], alpha=0.7, linewidths=0.5, edgecolors="white", zorder=3,
            label=f"{MEANINGS[kind]}: {share:.0f} %" if share >= 1 else f"{MEANINGS[kind]}: < 1 %",
        )  # fmt: skip


def _label_worst(axes: Axes, dots: list[Dot]) -> None:
    """Name the layers that lose most time to memory, in the corner that no dot can be in."""
    total = sum(dot.predicted_ms for dot in dots)
    lost = [dot for dot in dots if dot.lost_ms > SMALLEST_LOSS * total]
    worst = sorted(lost, key=lambda dot: -dot.lost_ms)[:LABELS]
    if not worst:
        return
    left, right = axes.get_xlim()
    at = math.log(max(dot.intensity for dot in worst) / left) / math.log(right / left)
    x = min(max(at + 0.02, 0.42), 0.55)
    # the highest dot has the highest line, so that no line crosses another
    for number, dot in enumerate(sorted(worst, key=lambda dot: (dot.flops_per_s, dot.lost_ms)), 1):
        times = f"{milliseconds_text(dot.lost_ms)} of {milliseconds_text(dot.predicted_ms)}"
        path = shortened(dot.path or WHOLE, LONGEST_PATH)
        axes.annotate(
            f"{times}: {path}" + (f" and {dot.layers - 1} alike" if dot.layers > 1 else ""),
            (dot.intensity, dot.flops_per_s),
            xytext=(x, 0.04 + 0.07 * number),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#8c8c8c", "linewidth": 0.6,
                        "relpos": (0.0, 0.5), "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip
    axes.annotate("(ms lost to memory, of all their time)", (x, 0.04), xycoords="axes fraction",
                  va="center", fontsize=7.5)  # fmt: skip


def _draw_times(axes: Axes, dots: list[Dot], xs: tuple[float, float]) -> None:
    """How much time is spent at which intensity."""
    count = math.ceil(math.log10(xs[1] / xs[0]) * BINS_PER_DECADE)
    edges = [xs[0] * 10 ** (n / BINS_PER_DECADE) for n in range(count + 1)]
    widths = [(upper - lower) * 0.96 for lower, upper in pairwise(edges)]
    base = [0.0] * count
    for kind in KINDS:
        heights = [0.0] * count
        for dot in (dot for dot in dots if dot.kind == kind):
            where = int(math.log10(dot.intensity / xs[0]) * BINS_PER_DECADE)
            heights[min(where, count - 1)] += dot.predicted_ms
        if any(heights):
            axes.bar(edges[:-1], heights, widths, bottom=base, align="edge", color=COLORS[kind])
            base = [b + h for b, h in zip(base, heights, strict=True)]
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.set_ylabel("predicted ms")
    axes.set_ylim(0, 1.12 * max(base))
    axes.grid(axis="y", alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
