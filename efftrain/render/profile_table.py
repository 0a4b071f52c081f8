"""A profile on the terminal: the layers as a tree or ranked, then the figures of the whole model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from efftrain.errors import ConfigError
from efftrain.profiling.report import Profile
from efftrain.render.profile_rows import Cost, Row, find_rows, fitting_depth
from efftrain.render.profile_totals import Total, find_totals, totals_line
from efftrain.render.quantity import bytes_text, count_text, milliseconds_text, ratio_text

Sort = Literal["macs", "params", "activations", "saved", "bytes", "predicted_ms"]
SORTS: tuple[Sort, ...] = get_args(Sort)

ROWS = 30
"""As many as are read at a glance: a tree goes as deep as that allows, a ranking ends there."""

GAP = 2  # blanks between columns
NARROWEST = 24  # of the modules' column, before another column gives way


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: At its head.
        text: What stands in a row.
        keep: The larger, the later it gives way on a narrow terminal.
        sort: What a ranking by it is called.
        figure: What a ranking by it compares.
    """

    name: str
    text: Callable[[Row, Cost], str]
    keep: int
    sort: Sort | None = None
    figure: Callable[[Cost], float] = lambda cost: 0.0


COLUMNS = (
    Column("type", lambda row, _: type_text(row), 6),
    Column("output", lambda row, _: shape_text(row.output_shape), 4),
    Column("params", lambda _, c: count_text(c.params), 8, "params", lambda c: c.params),
    Column("trains", lambda _, c: trains_text(c), 3),
    Column("MACs", lambda _, c: count_text(c.macs), 10, "macs", lambda c: c.macs),
    Column("activ.", lambda _, c: count_text(c.activations), 7, "activations",
           lambda c: c.activations),
    Column("saved", lambda _, c: bytes_text(c.saved_bytes), 9, "saved", lambda c: c.saved_bytes),
    Column("moved", lambda _, c: bytes_text(c.bytes_moved), 2, "bytes", lambda c: c.bytes_moved),
    Column("FLOP/B", lambda _, c: "" if c.intensity is None else ratio_text(c.intensity), 1),
    Column("bound", lambda _, c: bound_text(c), 5),
    Column("ms", lambda _, c: "" if c.predicted_ms is None else milliseconds_text(c.predicted_ms),
           8, "predicted_ms", lambda c: c.predicted_ms or 0.0),
)  # fmt: skip


def print_profile(
    profile: Profile,
    console: Console,
    *,
    depth: int | None = None,
    sort: str | None = None,
    rows: int | None = ROWS,
    extra: Sequence[Total] = (),
) -> None:
    """Print a profile.

    Args:
        profile: Of a model.
        console: Where to. A narrow one shows fewer columns, and says which it left out.
        depth: Levels of the tree; None goes as deep as `rows` allows.
        sort: None prints the tree; a column prints a ranking of the single layers by it.
        rows: How many a ranking has at most; None for all.
        extra: More figures of the whole model, such as measured ones.

    Raises:
        ConfigError: `sort` is no column, or one that is not known; `depth` or `rows` is below 1.
    """
    for name, value in (("depth", depth), ("rows", rows)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: at least 1, or null")
    tree = find_rows(profile, merge=sort is None)
    if sort is None:
        _print_tree(profile, tree, console, depth or fitting_depth(tree, rows or ROWS))
    else:
        _print_ranking(tree, console, _column(profile, sort), rows)
    _print_totals((*find_totals(profile), *extra), console)
    console.print()
    console.print(totals_line(profile), soft_wrap=True, markup=False, highlight=False)


def type_text(row: Row) -> str:
    """A module's class, and how many there are of it."""
    return f"{row.repeats} x {row.type}" if row.repeats > 1 else row.type


def shape_text(shape: Sequence[int]) -> str:
    """A shape: "1x64x56x56"."""
    return "x".join(map(str, shape))


def trains_text(cost: Cost) -> str:
    """How much of some parameters trains; empty where there are none."""
    if not cost.params:
        return ""
    if cost.trainable in (0, cost.params):
        return "all" if cost.trainable else "none"
    return f"{100 * cost.trainable / cost.params:.2g} %"


def bound_text(cost: Cost) -> str:
    """What limits some layers; of several, the share of their time that is limited by memory."""
    share = cost.memory_bound_pct
    if share is None:
        return ""
    return {0: "compute", 100: "memory"}.get(round(share), f"memory {share:.0f} %")


def printable(text: str) -> str:
    """A name of the model without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def ranked(tree: Row, figure: Callable[[Cost], float]) -> list[tuple[str, Row]]:
    """Every module that costs something itself with its full path, the dearest first."""
    every = [("", tree), *_with_paths(tree, "")]
    found = [(path, row) for path, row in every if row.own != Cost()]
    return sorted(found, key=lambda pair: -figure(pair[1].own))


def _with_paths(row: Row, above: str) -> list[tuple[str, Row]]:
    found: list[tuple[str, Row]] = []
    for child in row.children:
        path = f"{above}.{child.name}" if above else child.name
        found += [(path, child), *_with_paths(child, path)]
    return found


def _column(profile: Profile, sort: str) -> Column:
    column = next((column for column in COLUMNS if column.sort == sort), None)
    if column is None:
        raise ConfigError(f"sort={sort}: one of {', '.join(SORTS)}, or null for the tree")
    if sort == "predicted_ms" and all(layer.predicted_ms is None for layer in profile.layers):
        raise ConfigError("sort=predicted_ms: no layer's time is predicted without a machine")
    return column


def _print_tree(profile: Profile, tree: Row, console: Console, depth: int) -> None:
    shown = list(tree.visible(depth))[1:]
    names = [f"{'  ' * (level - 1)}{row.name}" for level, row in shown]
    table = [(name, row, row.total) for name, (_, row) in zip(names, shown, strict=True)]
    total = ("total", tree, tree.total)
    note = [f"One sample at inference; saved: training, batch {profile.batch_size}."]
    if tree.height:
        note.append(f"A row is the sum of what is below it; depth {depth} of {tree.height}.")
    _print_table(table, total, console, " ".join(note))


def _print_ranking(tree: Row, console: Console, column: Column, rows: int | None) -> None:
    every = [(path, row) for path, row in ranked(tree, column.figure) if column.figure(row.own)]
    shown = every[:rows]
    total = sum(column.figure(row.own) for _, row in every)
    share = Column("share", lambda _, c: f"{100 * column.figure(c) / total:.1f} %", 11)
    table = [(path or "(the model itself)", row, row.own) for path, row in shown]
    left = total - sum(column.figure(row.own) for _, row in shown)
    note = f"{len(shown)} of {len(every)} layers by {column.name}"
    if left:
        note += f"; the others have {100 * left / total:.1f} %"
    _print_table(table, None, console, note + ".", column, share)


def _print_table(
    rows: Sequence[tuple[str, Row, Cost]],
    total: tuple[str, Row, Cost] | None,
    console: Console,
    note: str,
    first: Column | None = None,
    share: Column | None = None,
) -> None:
    every = [*rows, *([total] if total else [])]
    columns = [*([share] if share else []), *COLUMNS]
    cells = {c.name: [printable(c.text(row, cost)) for _, row, cost in every] for c in columns}
    # "all" or "none" in every row says no more than the totals do
    known = [c for c in columns if len({*cells[c.name]} - {""}) > (c.name == "trains")]
    names = [printable(name) for name, _, _ in every]
    widths = {c.name: max(map(cell_len, [c.name, *cells[c.name]])) for c in known}
    wanted = max(map(cell_len, [*names, "module"]), default=0)
    shown = _fitting(known, widths, console.width - min(wanted, NARROWEST) - 2, first)
    room = console.width - 2 - sum(widths[c.name] + GAP for c in shown)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False)
    table.add_column("module", no_wrap=True)
    for column in shown:
        left = column.name in ("type", "output", "bound")
        table.add_column(column.name, justify="left" if left else "right", no_wrap=True)
    for number, name in enumerate(names):
        if total and number == len(rows):
            table.add_section()
        line = [shortened(name, max(room, NARROWEST)), *(cells[c.name][number] for c in shown)]
        table.add_row(*map(Text, line), style="bold" if total and number == len(rows) else None)
    console.print(table)
    hidden = [column.name for column in known if column not in shown]
    if hidden:
        note += f" Too narrow for: {', '.join(hidden)}."
    console.print(Text(note, style="dim"))


def _fitting(
    columns: Sequence[Column], widths: Mapping[str, int], room: int, first: Column | None
) -> list[Column]:
    """The columns that a width has room for; those that matter least give way."""
    left = float(room)
    taken: set[str] = set()
    for column in sorted(columns, key=lambda c: -math.inf if c is first else -c.keep):
        if widths[column.name] + GAP <= left:
            left -= widths[column.name] + GAP
            taken.add(column.name)
    return [column for column in columns if column.name in taken]


def shortened(name: str, width: int) -> str:
    """A name with its middle left out where it is too long; its indentation stays."""
    if cell_len(name) <= width:
        return name
    bare = name.lstrip()
    indent = min(len(name) - len(bare), width // 2)
    room = width - indent - 2
    return " " * indent + bare[: room // 3] + ".." + bare[len(bare) - (room - room // 3) :]


def _print_totals(totals: Sequence[Total], console: Console) -> None:
    for section in dict.fromkeys(total.section for total in totals):
        those = [total for total in totals if total.section == section]
        console.print()
        usual = Counter(total.how for total in those).most_common(1)[0][0]
        head = f"{section}, {usual}"
        console.print(Text(head[0].upper() + head[1:], style="bold"))
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for total in those:
            value = total.value if total.how == usual else f"{total.value}, {total.how}"
            cells = (f"  {total.name}", value, "; ".join(total.details))
            grid.add_row(*(Text(printable(cell)) for cell in cells))
        console.print(grid)
