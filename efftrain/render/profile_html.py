"""A profile as one page that explains itself and loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from efftrain import __version__
from efftrain.profiling.report import Profile
from efftrain.render.profile_figure import figure_svg
from efftrain.render.profile_page import SCRIPT, STYLE
from efftrain.render.profile_rows import Cost, Row, find_rows, fitting_depth
from efftrain.render.profile_table import ROWS, bound_text, printable, shape_text, trains_text
from efftrain.render.profile_text import sections
from efftrain.render.profile_totals import Total, find_totals, totals_line
from efftrain.render.quantity import bytes_text, count_text, milliseconds_text, ratio_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "layers": (
        "Predicted. Above: elements of each layer's output (norms and activation functions belong"
        " to the layer before them); the red dot is all that is alive at once where that is most."
        " Below: multiply-accumulates. Dashed: from here the feature map has that fraction of the"
        " image's width."
    ),
    "roofline": (
        "Layers predicted, ceilings as the title says. A layer can compute no faster than the"
        " machine's peak (flat) and no faster than memory brings its data (slope). Each dot is a"
        " layer, or several alike; its area is its share of the predicted time. Left of the ridge"
        " memory is the limit, right of it computing. Below: where on this axis the time is spent."
    ),
    "memory": (
        "Predicted. What is held when forward is done, filled up to the most that the step holds"
        " at any moment, and what is held when backward is done. Saved by …: tensors that autograd"
        " keeps for backward, by the operation that keeps them."
    ),
}


@dataclass(frozen=True)
class Column:
    """A column of the module table.

    Attributes:
        name: At its head.
        meaning: In one line, with the unit.
        text: What stands in a cell.
        figure: What a cell is sorted by and drawn as a share of; None for words.
        shared: Whether the figures of all rows make up the model's.
    """

    name: str
    meaning: str
    text: Callable[[Row], str]
    figure: Callable[[Cost], float | None] | None = None
    shared: bool = True


COLUMNS = (
    Column("type", "class of the module", lambda row: row.type),
    Column("output", "shape of its last result", lambda row: shape_text(row.output_shape)),
    Column("params", "elements of its parameters", lambda row: count_text(row.total.params),
           lambda cost: cost.params),
    Column("trains", "how much of its parameters trains", lambda row: trains_text(row.total)),
    Column("MACs", "multiply-accumulates, one sample", lambda row: count_text(row.total.macs),
           lambda cost: cost.macs),
    Column("activations", "elements that it adds to the activations, one sample",
           lambda row: count_text(row.total.activations), lambda cost: cost.activations),
    Column("saved", "bytes that it keeps for backward, whole batch",
           lambda row: bytes_text(row.total.saved_bytes), lambda cost: cost.saved_bytes),
    Column("moved", "bytes that it reads and writes, one sample, nothing cached",
           lambda row: bytes_text(row.total.bytes_moved), lambda cost: cost.bytes_moved),
    Column("FLOP/byte", "operations for each byte moved (arithmetic intensity)",
           lambda row: "" if row.total.intensity is None else ratio_text(row.total.intensity),
           lambda cost: cost.intensity, shared=False),
    Column("bound", "what limits it; of several layers, the share of time limited by memory",
           lambda row: bound_text(row.total)),
    Column("ms", "predicted milliseconds, one sample",
           lambda row: "" if row.total.predicted_ms is None
           else milliseconds_text(row.total.predicted_ms),
           lambda cost: cost.predicted_ms),
)  # fmt: skip

ITSELF = "(itself)"
MODEL_ITSELF = "(input, loss, itself)"


def profile_html(
    profile: Profile,
    figures: Mapping[str, Figure],
    *,
    title: str = "Profile",
    extra: Sequence[Total] = (),
) -> str:
    """Write a profile as a page for people who were not there when it was made.

    Args:
        profile: Of a model.
        figures: From `draw_figures`, by name.
        title: Of the page, such as the model's name.
        extra: More figures of the whole model, such as measured ones.

    Returns:
        The page: it needs no network, works without its script and shows no name of the model as
        anything but text.
    """
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # whatever a name of the model might smuggle in, the page can reach nobody
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
            " style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
            f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>",
            f'<header><h1>{_text(title)}</h1><p class="line">{_text(totals_line(profile))}</p>',
            f'<p class="faint">{_ABOUT} efftrain {_text(__version__)}.</p></header>',
            *_cards((*find_totals(profile), *extra)),
            *_figures(figures),
            *_modules(profile),
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )


_ABOUT = (
    "<b>predicted</b>: from shapes, before anything runs; <b>measured</b>: while it runs;"
    " <b>estimated</b>: from a cost model. k, M, G are powers of 1000; KiB, MiB, GiB of 1024."
    " 1 MAC is 2 FLOP. Made by"
)


def _text(text: str) -> str:
    return escape(printable(text))


def _cards(totals: Sequence[Total]) -> Iterator[str]:
    for section, those in sections(totals):
        yield f'<section><h2>{_text(section[0].upper() + section[1:])}</h2><div class="cards">'
        for total in those:
            details = "".join(f"<li>{_text(line)}</li>" for line in total.details)
            yield (
                f'<div class="card"><h3>{_text(total.name)}<span class="how">{total.how}</span></h3>'
                f'<div class="value">{_text(total.value)}</div>'
                + (f"<ul>{details}</ul>" if details else "")
                + f"<p>{_text(total.meaning)}</p></div>"
            )
        yield "</div></section>"


def _figures(figures: Mapping[str, Figure]) -> Iterator[str]:
    if not figures:
        return
    yield "<section><h2>Figures</h2>"
    for name, figure in figures.items():
        caption = _text(CAPTIONS[name])
        yield f"<figure><div>{figure_svg(figure, name)}</div><figcaption>{caption}</figcaption></figure>"
    yield "</section>"


def _modules(profile: Profile) -> Iterator[str]:
    tree = find_rows(profile, merge=False)
    rows = list(_with_themselves(tree).visible(tree.height + 1))
    columns = [column for column in COLUMNS if any(column.text(row) for _, row in rows)]
    depth = fitting_depth(tree, ROWS)
    yield "<section><h2>Modules</h2>"
    yield (
        '<div class="tools"><input id="filter" type="search" placeholder="module or type"'
        ' aria-label="Show modules whose path or type contains"><button id="expand">Open all'
        '</button><button id="collapse">Close all</button></div>'
        '<p class="faint">A row is the sum of what is below it. A click on a column ranks the single'
        " layers by it; on module, back to the tree. Bars: share of the whole model.</p>"
    )
    yield f'<div class="scroll"><table id="modules" data-depth="{depth}"><thead><tr>'
    yield '<th class="text"><button>module</button></th>'
    for column in columns:
        sortable = column.figure is not None
        name = f"<button>{_text(column.name)}</button>" if sortable else _text(column.name)
        yield f'<th class="{"" if sortable else "text"}" title="{_text(column.meaning)}">{name}</th>'
    yield "</tr></thead><tbody>"
    path: list[str] = []
    for level, row in rows[1:]:
        path[level - 1 :] = [row.name]
        yield _line(row, level - 1, ".".join(path), columns, tree.total)
    yield "</tbody><tfoot>"
    whole = replace(tree, name="total", children=())
    yield _line(whole, 0, "total", columns, tree.total, ' class="total"')
    yield "</tfoot></table></div><details><summary>What the columns mean</summary><dl>"
    for column in columns:
        yield f"<dt>{_text(column.name)}</dt><dd>{_text(column.meaning)}</dd>"
    yield "</dl></details></section>"


def _with_themselves(row: Row) -> Row:
    """A tree in which what a container does itself is a row in it, so that its rows add up."""
    children = tuple(_with_themselves(child) for child in row.children)
    if children and row.own != Cost():
        itself = replace(row, name=ITSELF if row.path else MODEL_ITSELF, total=row.own, children=())
        children = (*children, itself)
    return replace(row, children=children)


def _line(
    row: Row, level: int, path: str, columns: Sequence[Column], whole: Cost, attributes: str = ""
) -> str:
    toggle = (
        f'<button aria-label="open or close {_text(row.name)}"></button>'
        if row.children
        else '<span class="leaf"></span>'
    )
    leaf = "" if row.children else " data-leaf"
    cells = [
        f'<td class="text" style="--level:{level}" title="{_text(path)}">{toggle}'
        f'<span class="short">{_text(row.name)}</span><span class="long">{_text(path)}</span></td>'
    ]
    cells += [_number_cell(column, row, whole) for column in columns]
    return f'<tr{attributes} data-level="{level}" data-path="{_text(path)}"{leaf}>{"".join(cells)}</tr>'


def _number_cell(column: Column, row: Row, whole: Cost) -> str:
    text = _text(column.text(row))
    if column.figure is None:
        return f'<td class="text">{text}</td>'
    value = column.figure(row.total)
    if value is None:
        return f"<td>{text}</td>"
    total = column.figure(whole)
    if not column.shared or not total:
        return f'<td data-value="{value:.9g}">{text}</td>'
    return (
        f'<td class="share" style="--share:{100 * value / total:.1f}%" data-value="{value}"'
        f' title="{value:,}">{text}</td>'
    )
