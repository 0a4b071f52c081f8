"""A profile as text for other programs and for documents: CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from efftrain.profiling.report import Profile
from efftrain.render.profile_rows import Row, find_rows, fitting_depth
from efftrain.render.profile_table import ROWS, bound_text, printable, shape_text, type_text
from efftrain.render.profile_totals import Total, find_totals, totals_line
from efftrain.render.quantity import bytes_text, count_text, milliseconds_text, ratio_text

CSV_COLUMNS: tuple[str, ...] = (
    "path", "type", "input_shape", "output_shape", "params", "trainable", "macs", "flops",
    "activations", "bytes", "intensity", "bound", "predicted_ms",
)  # fmt: skip
"""The keys of a layer in the JSON; one that a layer does not have is an empty cell."""


def profile_csv(profile: Profile) -> str:
    """The layers, one on a line, as raw numbers; a shape is written "1x64x56x56"."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for layer in profile.layers:
        writer.writerow({name: _cell(value) for name, value in layer.to_dict().items()})
    return stream.getvalue()


def profile_markdown(
    profile: Profile,
    *,
    depth: int | None = None,
    title: str = "Profile",
    extra: Sequence[Total] = (),
) -> str:
    """The totals and the tree of modules as Markdown.

    Args:
        profile: Of a model.
        depth: Levels of the tree; None goes as deep as fits on a screen.
        title: Of the document.
        extra: More figures of the whole model, such as measured ones.

    Returns:
        A document that ends in a newline. Names of the model stand as code, so that nothing in
        them is taken for Markdown or HTML.
    """
    lines = [f"# {_plain(title)}", "", f"`{totals_line(profile)}`"]
    for section, totals in sections((*find_totals(profile), *extra)):
        lines += ["", f"## {section[0].upper()}{section[1:]}", ""]
        lines += ["| figure | value | | origin |", "| --- | ---: | --- | --- |"]
        lines += [
            f"| {t.name} | {_plain(t.value)} | {_plain('; '.join(t.details))} | {t.how} |"
            for t in totals
        ]
    tree = find_rows(profile)
    depth = fitting_depth(tree, ROWS) if depth is None else depth
    lines += ["", "## Modules", "", *_tree_lines(tree, depth)]
    return "\n".join(lines) + "\n"


def sections(totals: Sequence[Total]) -> list[tuple[str, list[Total]]]:
    """Totals by what they are figures of, in the order in which that first appears."""
    names = dict.fromkeys(total.section for total in totals)
    return [(name, [total for total in totals if total.section == name]) for name in names]


def _tree_lines(tree: Row, depth: int) -> list[str]:
    timed = tree.total.predicted_ms is not None
    names = ["module", "type", "output", "params", "MACs", "activations", "saved", "FLOP/byte"]
    names += ["bound", "ms"] if timed else []
    left = {"module", "type", "output", "bound"}
    head = [f"| {' | '.join(names)} |"]
    head += [f"| {' | '.join('---' if name in left else '---:' for name in names)} |"]
    lines: list[str] = []
    above: list[str] = []
    for level, row in tree.visible(depth):
        if level:
            above[level - 1 :] = [row.name]
            lines.append(_tree_line(".".join(above), row, timed))
    return [*head, *lines, _tree_line("total", tree, timed)]


def _tree_line(path: str, row: Row, timed: bool) -> str:
    cost = row.total
    cells = [
        _code(path),
        _code(type_text(row)),
        shape_text(row.output_shape),
        count_text(cost.params),
        count_text(cost.macs),
        count_text(cost.activations),
        bytes_text(cost.saved_bytes),
        "" if cost.intensity is None else ratio_text(cost.intensity),
    ]
    if timed:
        ms = "" if cost.predicted_ms is None else milliseconds_text(cost.predicted_ms)
        cells += [bound_text(cost), ms]
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> Any:
    return shape_text(value) if isinstance(value, list) else value


def _code(name: str) -> str:
    """A name of the model as code."""
    return f"`{_cell_text(name).replace('`', chr(39))}`" if name else ""


def _plain(text: str) -> str:
    """Text that may hold names of the model, with what Markdown and HTML would take for theirs."""
    text = printable(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "`*[]":
        text = text.replace(mark, f"\\{mark}")
    return _cell_text(text)


def _cell_text(text: str) -> str:
    """Text without what would end a table's cell."""
    return printable(text).replace("|", "\\|")
