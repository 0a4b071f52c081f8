"""When an optimizer step was made, and when a stretch of steps is logged."""

from __future__ import annotations

import lightning.pytorch as pl


class LoggingWindow:
    """Follows the optimizer steps of a Trainer; accumulated batches are parts of one step."""

    def __init__(self) -> None:
        """Follow nothing yet."""
        self._step = 0

    def begin_epoch(self, trainer: pl.Trainer) -> None:
        """Take the Trainer's count, which a resumed run does not start at 0."""
        self._step = trainer.global_step

    def end_batch(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Whether the batch completed an optimizer step, and with it a window."""
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        return stepped, stepped and is_logging_step(trainer)


def is_logging_step(trainer: pl.Trainer) -> bool:
    """Whether the Trainer logs at its current step."""
    every: int = vars(trainer)["log_every_n_steps"]  # Lightning sets it without declaring it
    return trainer.global_step % every == 0
