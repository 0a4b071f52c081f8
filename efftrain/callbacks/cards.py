"""What is written once a run, not once a step: text cards and hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def log_text(loggers: Iterable[Logger], title: str, markdown: str) -> None:
    """Put a card under TensorBoard's text tab; other loggers have none, and other ranks no tab."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(title, markdown)


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
