"""What fills the memory of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from efftrain.profiling.report import Profile
from efftrain.render.profile_totals import made_bytes
from efftrain.render.quantity import bytes_text
from efftrain.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

COLORS = {
    "parameters": "#5f7390",
    "buffers": "#7a8aa0",
    "batch": "#b4bfcc",
    "optimizer state": "#8064a2",
    "gradients": "#b09cc8",
    "conv": "#0072b2",
    "linear": "#009e73",
    "attention": "#cc79a7",
    "norm": "#e69f00",
    "activation": "#56b4e9",
    "pool": "#f0e442",
    "recurrent": "#a6611a",
    "dropout": "#d55e00",
    "other": "#8c8c8c",
}

_UNITS = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "bytes"))

LABELLED = 0.07  # of the width, from which on a part has room for its size


def draw_memory(figure: FigureBase, profile: Profile) -> None:
    """Draw two bars: what is held when forward is done, and when backward is done.

    The first is filled up to the step's peak with what is known as a sum alone: the gradients and
    temporaries that are alive at that moment.
    """
    peak = profile.memory.peak
    unit, name = next((u, n) for u, n in _UNITS if peak.step_peak_bytes >= u or u == 1)
    there = {
        "parameters": peak.parameter_bytes,
        "buffers": peak.buffer_bytes,
        "batch": peak.batch_bytes,
        "optimizer state": peak.optimizer_bytes,
    }
    causes = sorted(profile.memory.saved.by_cause().items(), key=lambda cause: -cause[1])
    rest = made_bytes(profile) - profile.memory.saved.saved_bytes
    bars = {
        "forward is done": {**there, **{f"saved by {cause}": size for cause, size in causes}},
        "backward is done": {**there, "gradients": peak.gradient_bytes},
    }
    axes = figure.subplots()
    shown: set[str] = set()
    for row, (moment, parts) in enumerate(bars.items()):
        left = 0
        for part, size in parts.items():
            if not size:
                continue
            color = COLORS[part.removeprefix("saved by ")]
            axes.barh(
                row, size / unit, left=left / unit, height=0.62, color=color,
                label=None if part in shown else f"{part} {bytes_text(size)}",
            )  # fmt: skip
            shown.add(part)
            if size > LABELLED * peak.step_peak_bytes:
                axes.text((left + size / 2) / unit, row, bytes_text(size), ha="center",
                          va="center", fontsize=7.5, color=_readable_on(color))  # fmt: skip
            left += size
        if not row and rest > 0:
            axes.barh(row, rest / unit, left=left / unit, height=0.62, fill=False, hatch="////",
                      edgecolor="#8c8c8c", linewidth=0.8,
                      label=f"up to the peak: gradients, temporaries {bytes_text(rest)}")  # fmt: skip
        axes.text(0, row - 0.36, f"when {moment}", fontsize=8.5, va="bottom")
    axes.axvline(peak.step_peak_bytes / unit, color="#d7373f", linewidth=1.2)
    axes.annotate(
        f"step peak {bytes_text(peak.step_peak_bytes)}",
        (peak.step_peak_bytes / unit, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 1),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color="#d7373f",
    )
    axes.set_ylim(1.45, -0.55)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"memory ({name})")
    figure.legend(loc="outside right upper")
    without = "" if profile.flops.optimizer is not None else ", no optimizer given"
    figure.suptitle(
        f"What a training step holds, batch {profile.batch_size}{without} (predicted)",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip


def _readable_on(color: str) -> str:
    red, green, blue = (int(color[n : n + 2], 16) for n in (1, 3, 5))
    return "black" if 0.30 * red + 0.59 * green + 0.11 * blue > 125 else "white"
