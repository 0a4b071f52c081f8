"""When an optimizer step was made, and when a stretch of steps is logged."""

from __future__ import annotations

import lightning.pytorch as pl


class LoggingWindow:
    """Follows the optimizer steps of a Trainer; accumulated batches are parts of one step."""

    def __init__(self) -> None:
        """Follow nothing yet."""
        self._step = 0
        self._every = 0
        self._batches_left = 0

    def begin(self, trainer: pl.Trainer) -> None:
        """Take the Trainer's count, which a resumed run does not start at 0."""
        self._step = trainer.global_step
        self._every = log_interval(trainer)
        self._batches_left = 0

    def end_batch(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Whether the batch completed an optimizer step, and with it a window.

        Where one batch makes several steps, a window ends with the batch that passes its end.
        """
        before, self._step = self._step, trainer.global_step
        stepped = self._step != before
        closes = self._every > 0 and self._step // self._every != before // self._every
        return stepped, closes

    def ends(self, trainer: pl.Trainer) -> bool:
        """Whether the batch completed a window, for who does not use `end_batch`.

        Asks the Trainer for its step, which takes some microseconds, only where that may be so: in
        automatic optimization a batch makes one step at most.
        """
        if self._batches_left > 1:
            self._batches_left -= 1
            return False
        _, closes = self.end_batch(trainer)
        if self._every > 0 and trainer.lightning_module.automatic_optimization:
            self._batches_left = self._every - self._step % self._every
        return closes


def log_interval(trainer: pl.Trainer) -> int:
    """Steps in a window; 0 where the Trainer logs nothing."""
    return vars(trainer)["log_every_n_steps"]  # public, but Lightning sets it without declaring it


def is_logging_step(trainer: pl.Trainer) -> bool:
    """Whether the Trainer logs at its current step."""
    every = log_interval(trainer)
    return every > 0 and trainer.global_step % every == 0
