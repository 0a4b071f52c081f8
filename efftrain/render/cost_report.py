"""What `efftrain profile` found: in every form in the run folder, in one of them on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rich.console import Console

from efftrain.files import write_atomic, write_text
from efftrain.measure.cost_report import CostReport
from efftrain.paths import RunFolder
from efftrain.render.diff_table import diff_markdown, print_diff
from efftrain.render.measured_totals import measured_totals
from efftrain.render.profile_figure import draw_figures, write_figure
from efftrain.render.profile_html import profile_html
from efftrain.render.profile_table import print_profile
from efftrain.render.profile_text import profile_csv, profile_markdown

Form = Literal["table", "json", "csv", "html", "md"]


def write_report(
    report: CostReport, folder: RunFolder, *, title: str, depth: int | None, figures: bool
) -> None:
    """Write every form.

    Args:
        report: What is known.
        folder: Where the files go.
        title: Of the page and the Markdown, such as the model's name.
        depth: Levels of the tree of modules; None goes as deep as fits on a screen.
        figures: Whether to draw, which takes some seconds.

    Raises:
        MachineError: A file cannot be written.
    """
    write_text(folder.summary_json, report_json(report))
    extra = measured_totals(report)
    text = profile_markdown(report.profile, depth=depth, title=title, extra=extra)
    if report.against is not None:
        text += f"\n{diff_markdown(report.against)}"
    write_text(folder.summary_md, text)
    write_text(folder.layers_csv, profile_csv(report.profile))
    drawn = draw_figures(report.profile) if figures else {}
    page = profile_html(report.profile, drawn, title=title, extra=extra)
    write_text(folder.report_html, page)
    if figures:
        write_atomic(folder.figures, lambda part: _draw(report, part, folder.figures))


def print_report(
    report: CostReport, folder: RunFolder, *, form: Form, depth: int | None, sort: str | None
) -> None:
    """Print one form.

    Args:
        report: What is known.
        folder: Holds every form, as `write_report` leaves it.
        form: "table" for people; each of the others is the file that was written.
        depth: Levels of the tree of modules.
        sort: A column to rank the layers by, instead of the tree.
    """
    files = {
        "json": folder.summary_json,
        "csv": folder.layers_csv,
        "html": folder.report_html,
        "md": folder.summary_md,
    }
    if form in files:
        print(files[form].read_text(encoding="utf-8"), end="")
        return
    print(report.selection)
    extra = measured_totals(report)
    print_profile(report.profile, Console(), depth=depth, sort=sort, extra=extra)
    if report.against is not None:
        print_diff(report.against, Console())
    print(f"\npage: {folder.report_html}")


def report_json(report: CostReport) -> str:
    """For programs; keys and units as in the README."""
    return json.dumps(report.to_dict(), indent=2) + "\n"


def _draw(report: CostReport, part: Path, path: Path) -> None:
    """A figure is written in the form that its name ends in, and a part's name ends otherwise."""
    written = write_figure(report.profile, part.with_name(f"{part.name}{path.suffix}"))
    written.replace(part)
