"""What is written once a run, not once a step: text cards, pictures and hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from efftrain.run import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture


def log_text(loggers: Iterable[Logger], title: str, markdown: str) -> None:
    """Put a card under TensorBoard's text tab; other loggers have none, and other ranks no tab."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(title, markdown)


def log_figure(loggers: Iterable[Logger], title: str, figure: Picture, step: int) -> None:
    """Put a picture under TensorBoard's images; other loggers get none.

    Drawn here: `SummaryWriter.add_figure` would import pyplot, which chooses a window system.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    writers = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    if not writers:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    for logger in writers:
        logger.experiment.add_image(title, pixels, step, dataformats="HWC")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def log_hyperparameters(
    loggers: Iterable[Logger], values: Mapping[str, Any], metrics: Mapping[str, float], step: int
) -> None:
    """Write the hyperparameters with the final metrics.

    TensorBoard wants both at once; `add_hparams` would make a child run for them, this does not.

    Args:
        loggers: The trainer's.
        values: Plain values.
        metrics: Held-out metrics after the last step.
        step: That step, so that the metrics fall onto the end of their own curves.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(values), dict(metrics), step=step)
        else:
            logger.log_hyperparams(dict(values))


def figures_markdown(figures: Iterable[Figure]) -> str:
    """What a run has cost, predicted beside measured."""
    return markdown_table(("figure", "predicted", "measured", "difference"), figure_rows(figures))


def figure_rows(figures: Iterable[Figure]) -> list[tuple[str, str, str, str]]:
    """Name with unit, predicted, measured and their difference, as text; "" for what is not known."""
    return [
        (
            f"{figure.name} ({figure.unit})" if figure.unit else figure.name,
            _number(figure.predicted),
            _number(figure.measured),
            ""
            if figure.difference_pct is None
            else f"{round(figure.difference_pct, 1) + 0.0:+.1f} %",
        )
        for figure in figures
    ]


def _number(value: float | None) -> str:
    """Four digits, without an exponent."""
    if value is None:
        return ""
    digits = 0 if not value else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"
