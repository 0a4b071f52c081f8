"""Showing how far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

_log = logging.getLogger(__name__)


def progress_bar(every_s: float = 30.0) -> ProgressBar:
    """The progress display that fits where the output goes.

    Args:
        every_s: Seconds between two lines within an epoch, where the output is no terminal.
    """
    return RichProgressBar(leave=False) if sys.stderr.isatty() else PlainProgress(every_s)


class PlainProgress(ProgressBar):
    """A log line per epoch, and in a long epoch one every so often.

    A bar redraws itself and floods a log file.

    Args:
        every_s: Seconds between two lines within an epoch.
    """

    def __init__(self, every_s: float = 30.0) -> None:
        """Start enabled, as Lightning expects of a progress display."""
        super().__init__()
        self.every_s = every_s
        self._enabled = True
        self._said_at = 0.0

    def enable(self) -> None:
        """Write lines."""
        self._enabled = True

    def disable(self) -> None:
        """Write nothing: Lightning does this on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count the seconds."""
        self._said_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say how far the epoch is, where the last line is long ago."""
        if time.monotonic() - self._said_at >= self.every_s:
            self._say(trainer, f"batch {batch_idx + 1}/{self.total_train_batches}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what the epoch brought."""
        self._say(trainer, "")

    def _say(self, trainer: pl.Trainer, place: str) -> None:
        self._said_at = time.monotonic()
        if not self._enabled:
            return
        names = ("train/loss_step" if place else "train/loss", "val/loss", "val/acc")
        known = trainer.callback_metrics
        figures = [f"{name} {float(known[name]):.3f}" for name in names if name in known]
        epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        _log.info("  ".join([f"epoch {trainer.current_epoch + 1}{epochs}", place, *figures]))
