"""Figures of a run: what its steps keep in memory layer by layer, and where their time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from efftrain.profiling.saved import Saved
from efftrain.render.profile_figure import figure_style, new_figure
from efftrain.render.profile_figure_layers import name_groups
from efftrain.render.profile_figure_memory import COLORS
from efftrain.render.quantity import bytes_text
from efftrain.units import KIB, MIB

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {
    "data": ("#b4bfcc", "wait for data"),
    "h2d": ("#7a8aa0", "to the device"),
    "forward": ("#0072b2", "forward"),
    "backward": ("#e69f00", "backward"),
    "optimizer": ("#009e73", "optimizer"),
}
"""Parts of a step's time in their order: colour and name."""


def draw_saved(measured: Saved, predicted: Saved | None) -> Figure:
    """Draw what autograd keeps of a step: a bar for each layer, by what keeps it.

    Args:
        measured: On a real step.
        predicted: Of a batch of the same shape; a line where it should be.
    """
    paths = list(dict.fromkeys(tensor.path for tensor in measured.tensors))
    expected = _own_bytes(predicted) if predicted is not None else {}
    paths += [path for path in expected if path not in paths]
    total = measured.saved_bytes
    unit, name = (MIB, "MiB") if total >= MIB else (KIB, "KiB")
    with figure_style():
        figure = new_figure(4.2)
        axes = figure.subplots()
        bottoms = [0.0] * len(paths)
        for cause, size in sorted(measured.by_cause().items(), key=lambda item: -item[1]):
            own = _own_bytes(measured, cause)
            heights = [own.get(path, 0) / unit for path in paths]
            axes.bar(
                range(len(paths)), heights, 0.9, bottoms,
                color=COLORS[cause], label=f"{cause} {bytes_text(size)}",
            )  # fmt: skip
            bottoms = [low + high for low, high in zip(bottoms, heights, strict=True)]
        text = f"measured: {bytes_text(total)}"
        if predicted is not None:
            heights = [expected.get(path, 0) / unit for path in paths]
            axes.scatter(
                range(len(paths)), heights, s=12, marker="_", color="black", linewidths=1.0,
                label=f"predicted {bytes_text(predicted.saved_bytes)}", zorder=3,
            )  # fmt: skip
            text += f", predicted: {bytes_text(predicted.saved_bytes)}"
        axes.set_ylabel(f"kept for backward ({name})")
        axes.set_xlim(-1, max(len(paths), 1))
        axes.margins(y=0.06)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        name_groups((axes,), [path or "loss" for path in paths])
        figure.legend(loc="outside lower center", ncols=6)
        figure.suptitle(f"What a step keeps, layer by layer ({text})", x=0.01, ha="left")
    return figure


def draw_time(times_ms: Mapping[str, float]) -> Figure:
    """Draw where the time of a step goes, as one bar.

    Args:
        times_ms: Mean times, as `StepTimes.to_figures` gives them: `forward_ms`, …, `step_ms`.
    """
    parts = {part: times_ms[f"{part}_ms"] for part in PARTS if f"{part}_ms" in times_ms}
    inside = sum(parts.get(part, 0.0) for part in ("forward", "backward", "optimizer"))
    rest = times_ms["step_ms"] - inside
    shown = [(PARTS[part], taken) for part, taken in parts.items()]
    if rest > 0:
        shown.append((("#8c8c8c", "the rest of the step"), rest))
    whole = sum(taken for _, taken in shown)
    with figure_style():
        figure = new_figure(1.9)
        axes = figure.subplots()
        left = 0.0
        for (color, label), taken in shown:
            axes.barh(0, taken, left=left, height=0.6, color=color,
                      label=f"{label} {taken:.1f} ms ({100 * taken / whole:.0f} %)")  # fmt: skip
            left += taken
        axes.set_yticks([])
        axes.set_xlim(0, whole * 1.01)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("ms")
        figure.legend(loc="outside lower center", ncols=3)
        figure.suptitle(
            f"Where a step's time goes: {whole:.1f} ms in the mean (measured)", x=0.01, ha="left"
        )
    return figure


def _own_bytes(saved: Saved, cause: str | None = None) -> dict[str, int]:
    """Bytes by the module that keeps them, those of its children apart."""
    own: dict[str, int] = {}
    for tensor in saved.tensors:
        if cause is None or tensor.cause == cause:
            own[tensor.path] = own.get(tensor.path, 0) + tensor.saved_bytes
    return own
