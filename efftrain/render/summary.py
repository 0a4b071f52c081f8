"""A run's summary as a table: on the terminal, in `summary.md` and as a TensorBoard card."""

from __future__ import annotations

import shlex

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from efftrain.paths import RunFolder
from efftrain.render.quantity import bytes_text, duration_text
from efftrain.run import RunSummary


def summary_markdown(summary: RunSummary) -> str:
    """The summary for `summary.md` and TensorBoard's text tab."""
    lines = [f"# {summary.method}: {summary.status}", "", "| metric | before | after |"]
    lines += ["| --- | ---: | ---: |"]
    lines += [f"| {name} | {before} | {after} |" for name, before, after in _metric_rows(summary)]
    lines += ["", "| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in _figure_rows(summary)]
    return "\n".join(lines) + "\n"


def print_summary(summary: RunSummary, folder: RunFolder) -> None:
    """Print the summary; the last line opens its curves."""
    metrics = Table(
        box=SIMPLE_HEAD, title=f"{summary.method}: {summary.status}", title_justify="left"
    )
    metrics.add_column("held-out")
    metrics.add_column("before", justify="right")
    metrics.add_column("after", justify="right")
    for row in _metric_rows(summary):
        metrics.add_row(*row)
    Console().print(metrics)
    for name, value in _figure_rows(summary):
        print(f"  {name:<12} {value}")
    print(f"  {'run':<12} {folder.root}")
    if folder.tensorboard.is_dir():
        print()
        print(f"tensorboard --logdir {quoted(str(folder.tensorboard))}")


def quoted(path: str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(path)


def _metric_rows(summary: RunSummary) -> list[tuple[str, str, str]]:
    names = dict.fromkeys([*summary.before, *summary.after])
    return [(n, _number(summary.before.get(n)), _number(summary.after.get(n))) for n in names]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _figure_rows(summary: RunSummary) -> list[tuple[str, str]]:
    params, time = summary.params, summary.time
    rows = [
        (
            "trainable",
            f"{params['trainable']:,} of {params['total']:,} parameters"
            f" ({params['trainable_pct']:.2f} %)",
        ),
        ("delta", f"{bytes_text(summary.delta['bytes'])} in {summary.delta['path']}"),
        ("training", f"{duration_text(time['train_s'])}, with its validations"),
    ]
    if "step_p50_ms" in time:
        rows.append(("step", f"{time['step_p50_ms']:.1f} ms (median of {time['steps']:.0f})"))
    elif "step_ms" in time:
        rows.append(("step", f"{time['step_ms']:.1f} ms (mean of {time['steps']:.0f})"))
    if "samples_per_s" in summary.throughput:
        rows.append(("throughput", f"{summary.throughput['samples_per_s']:,.0f} samples/s"))
    rows.append(("seed", str(summary.seed)))
    return rows
