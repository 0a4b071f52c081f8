"""How many samples a training run gets through."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

from efftrain.callbacks.window import LoggingWindow
from efftrain.measure.batch import samples_in
from efftrain.measure.device import synchronize


class Throughput(pl.Callback):
    """Log `throughput/samples_per_s` over each logging window.

    Counts the samples that were in the batches, so that a short last batch counts as what it is, and
    the wall clock of training with the wait for data, since a loader that cannot keep up lowers the
    throughput. Validation and the start of an epoch are left out. All devices are summed up; they
    are taken to see batches of one size.

    Args:
        warmup_batches: First batches that are left out.
    """

    def __init__(self, warmup_batches: int = 3) -> None:
        """Start with an empty window."""
        self.warmup_batches = warmup_batches
        self.samples = 0
        self.seconds = 0.0
        self._window_samples = 0
        self._window_s = 0.0
        self._seen = 0
        self._mark: float | None = None
        self._window = LoggingWindow()

    @property
    def samples_per_s(self) -> float | None:
        """Rate over the whole run so far."""
        return self.samples / self.seconds if self.seconds else None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock runs from here, so that the first wait for data counts."""
        self._window.begin_epoch(trainer)
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock stops, once the device has done what it was asked for."""
        if self._mark is not None and pl_module.device.type != "cpu":
            synchronize(pl_module.device)
            self._window_s += time.perf_counter() - self._mark
        self._mark = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock runs again."""
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log where a window ends."""
        _, closes_window = self._window.end_batch(trainer)
        is_last = batch_idx + 1 == trainer.num_training_batches
        if closes_window or is_last or self._seen < self.warmup_batches:
            synchronize(pl_module.device)
        began, self._mark = self._mark, time.perf_counter()
        self._seen += 1
        samples = samples_in(batch)
        if self._seen > self.warmup_batches and began is not None and samples is not None:
            self._window_samples += samples * trainer.world_size
            self._window_s += self._mark - began
        if closes_window and self._window_s:
            self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        rate = self._window_samples / self._window_s
        self.samples += self._window_samples
        self.seconds += self._window_s
        self._window_samples, self._window_s = 0, 0.0
        for logger in trainer.loggers:
            logger.log_metrics({"throughput/samples_per_s": rate}, step=trainer.global_step)
