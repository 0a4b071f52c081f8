"""A run's summary as a table: on the terminal, in `summary.md` and as a TensorBoard card."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from efftrain.callbacks.cards import figure_rows, figures_markdown, markdown_table
from efftrain.paths import RunFolder
from efftrain.render.quantity import bytes_text, duration_text
from efftrain.run import RunSummary


def summary_markdown(summary: RunSummary) -> str:
    """The summary for `summary.md`."""
    parts = [f"# {summary.method}: {summary.status}\n", metrics_markdown(summary)]
    if summary.figures:
        parts.append(f"{figures_markdown(summary.figures)}\n")
    return "\n".join(parts)


def metrics_markdown(summary: RunSummary) -> str:
    """How good the run was before and after, and what it was: a card beside that of its cost."""
    metrics = markdown_table(("metric", "before", "after"), _metric_rows(summary))
    facts = markdown_table(("figure", "value"), _fact_rows(summary))
    return f"{metrics}\n\n{facts}\n"


def print_summary(summary: RunSummary, folder: RunFolder) -> None:
    """Print the summary; the last line opens its curves."""
    title = f"{summary.method}: {summary.status}"
    _print_table(("held-out", "before", "after"), _metric_rows(summary), title)
    if summary.figures:
        rows = figure_rows(summary.figures)
        _print_table(("cost", "predicted", "measured", "difference"), rows)
    for name, value in _fact_rows(summary):
        print(f"  {name:<12} {value}")
    print(f"  {'run':<12} {folder.root}")
    if folder.tensorboard.is_dir():
        print()
        print(f"tensorboard --logdir {quoted(str(folder.tensorboard))}")


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def quoted(path: str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(path)


def _metric_rows(summary: RunSummary) -> list[tuple[str, str, str]]:
    names = dict.fromkeys([*summary.before, *summary.after])
    return [(n, _number(summary.before.get(n)), _number(summary.after.get(n))) for n in names]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _fact_rows(summary: RunSummary) -> list[tuple[str, str]]:
    params = summary.params
    trainable = (
        f"{params['trainable']:,} of {params['total']:,} parameters"
        f" ({params['trainable_pct']:.2f} %)"
    )
    rows = [
        ("trainable", trainable),
        ("delta", f"{bytes_text(summary.delta['bytes'])} in {summary.delta['path']}"),
        ("training", f"{duration_text(summary.time['train_s'])}, with its validations"),
    ]
    if "steps" in summary.time:
        rows.append(("steps", f"{summary.time['steps']:.0f} were timed"))
    return [*rows, ("seed", str(summary.seed))]
