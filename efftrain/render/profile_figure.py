"""Figures of a profile: what each layer costs, where the machine limits it, what fills its memory.

matplotlib's objects are used directly: no window, no state that another figure would share.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efftrain.errors import ConfigError
from efftrain.profiling.report import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

SUFFIXES = (".png", ".svg")

INK = "#1f2328"  # of text and axes; the page's own colour in an SVG that stands in one
WIDTH_IN = 10.0
DPI = 150

Draw = Callable[["FigureBase"], None]


def write_figure(profile: Profile, path: Path) -> Path:
    """Draw every figure of a profile into one file.

    Args:
        profile: Of a model.
        path: Ends in .png or .svg.

    Returns:
        The path.

    Raises:
        ConfigError: The path ends otherwise.
    """
    check_suffix(path)
    parts = list(_parts(profile).values())
    with figure_style():
        figure = new_figure(sum(height for height, _ in parts))
        heights = [height for height, _ in parts]
        rows: Any = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
        for (subfigure,), (_, draw) in zip(rows, parts, strict=True):
            draw(subfigure)
        figure.savefig(path, dpi=DPI, facecolor="white", metadata=_undated(path.suffix))
    return path


def check_suffix(path: Path) -> None:
    """Refuse a file that no figure can be written to; before the work, not after it.

    Raises:
        ConfigError: The path ends neither in .png nor in .svg.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"figure={path}: a figure ends in {' or '.join(SUFFIXES)}")


def draw_figures(profile: Profile) -> dict[str, Figure]:
    """Every figure of a profile by itself: "layers", "roofline" (where times are known), "memory"."""
    found: dict[str, Figure] = {}
    with figure_style():
        for name, (height, draw) in _parts(profile).items():
            found[name] = new_figure(height)
            draw(found[name])
    return found


def figure_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element to stand in a page, in the page's own colour and font.

    Args:
        figure: From `draw_figures`.
        name: Of the figure; several in one page need different ones.

    Returns:
        The element; nothing in it is loaded from elsewhere.
    """
    stream = io.StringIO()
    with figure_style():
        figure.savefig(stream, format="svg", transparent=True, metadata=_undated(".svg"))
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", svg)


def _parts(profile: Profile) -> dict[str, tuple[float, Draw]]:
    """Height in inches and drawing of each figure."""
    from efftrain.render.profile_figure_layers import draw_layers
    from efftrain.render.profile_figure_memory import draw_memory
    from efftrain.render.profile_figure_roofline import draw_roofline, find_dots

    parts: dict[str, tuple[float, Draw]] = {"layers": (5.0, lambda f: draw_layers(f, profile))}
    roofline = profile.latency
    if roofline is not None and roofline.ceilings.flops_per_s and find_dots(profile, roofline):
        parts["roofline"] = (6.0, lambda f: draw_roofline(f, profile, roofline))
    parts["memory"] = (3.2, lambda f: draw_memory(f, profile))
    return parts


def new_figure(height: float) -> Figure:
    """An empty one of the usual width, so many inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height), layout="constrained")


@contextmanager
def figure_style() -> Iterator[None]:
    """What all figures look like; to make and to draw them in."""
    import matplotlib as mpl

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(ink, INK),
        "font.family": ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.titlesize": 10.0,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 8.0,
        "text.parse_math": False,  # a module may be called "$x$"
        "svg.fonttype": "none",
        "svg.hashsalt": "efftrain",  # the same profile makes the same file
    }
    with mpl.rc_context(style):
        yield


def _undated(suffix: str) -> dict[str, None]:
    return {"Date": None} if suffix == ".svg" else {"Software": None}
