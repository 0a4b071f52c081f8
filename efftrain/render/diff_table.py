"""What one job changes beside another: on the terminal and as figures of a report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from efftrain.measure.cost_report import Comparison
from efftrain.profiling.diff import Change, LayerChange
from efftrain.render.quantity import bytes_text, count_text, milliseconds_text, ratio_text

SHOWN_LAYERS = 10

_LAYERS_BY = ("step_predicted_ms", "step_flops", "predicted_ms", "macs", "saved_bytes", "params")
"""The layers of the first of these that changes are shown."""


def print_diff(comparison: Comparison, console: Console) -> None:
    """Print the totals that differ, the layers that change most, and why."""
    diff = comparison.diff
    console.print(f"\nAgainst {' '.join(comparison.overrides)}", markup=False, highlight=False)
    console.print(
        _table(("figure", "against", "this job", "ratio"), [_cells(c) for c in diff.totals])
    )
    name = next((name for name in _LAYERS_BY if diff.largest(name, 1)), None)
    if name is not None:
        layers = diff.largest(name, SHOWN_LAYERS)
        heads = (f"layer, by {name}", "type", "against", "this job", "bound")
        console.print(_table(heads, [_layer_cells(layer, name) for layer in layers]))
    for reason in diff.reasons:
        console.print(reason, markup=False, highlight=False)


def diff_markdown(comparison: Comparison) -> str:
    """The totals and the reasons as a section of Markdown."""
    lines = [f"## Against `{' '.join(comparison.overrides)}`", ""]
    lines += ["| figure | against | this job | ratio |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(_cells(change))} |" for change in comparison.diff.totals]
    return "\n".join([*lines, "", *comparison.diff.reasons, ""])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for head in heads:
        is_text = head in ("figure", "type", "bound") or head.startswith("layer")
        table.add_column(head, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(change: Change) -> tuple[str, str, str, str]:
    ratio = "" if change.ratio is None else f"{ratio_text(change.ratio)} x"
    if change.difference == 0:
        ratio = "="
    return (
        change.name,
        _text(change.name, change.before),
        _text(change.name, change.after),
        ratio,
    )


def _layer_cells(layer: LayerChange, name: str) -> tuple[str, str, str, str, str]:
    change = next(change for change in layer.figures if change.name == name)
    types = dict.fromkeys(kind or "-" for kind in (layer.before, layer.after))
    bounds = dict.fromkeys(bound for bound in layer.bound if bound is not None)
    return (
        layer.path or "the model itself",
        " -> ".join(types),
        _text(name, change.before),
        _text(name, change.after),
        " -> ".join(bounds),
    )


def _text(name: str, value: float) -> str:
    if name.endswith("_bytes") or name == "bytes":
        return bytes_text(int(value))
    if name.endswith("_ms"):
        return f"{milliseconds_text(value)} ms"
    if name.endswith("_mj"):
        return f"{value:.3g} mJ"
    return ratio_text(value) if name == "arithmetic_intensity" else count_text(int(value))
