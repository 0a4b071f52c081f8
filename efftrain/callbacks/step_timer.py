"""How long a training step takes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from efftrain.callbacks.window import LoggingWindow
from efftrain.measure.device import synchronize
from efftrain.measure.step_clock import StepClock, StepTimes


class StepTimer(pl.Callback):
    """Log the time of an optimizer step over each logging window.

    The device is synchronised at the ends of a window only: steps that queue up on a GPU are timed
    together and their mean is right, without slowing them down.

    | tag | meaning |
    | --- | --- |
    | `time/step_ms` | mean wall clock of one optimizer step, the wait for data left out |
    | `time/data_ms` | mean wait for the next batch |
    | `time/step_p50_ms`, `time/step_p90_ms`, `time/step_p99_ms` | percentiles in the window, on a CPU |

    Args:
        warmup_steps: First steps that are left out.
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        """Start with nothing timed."""
        self.clock = StepClock(warmup_steps)
        self._logged_steps = 0
        self._is_queued = False
        self._window = LoggingWindow()

    @property
    def times(self) -> StepTimes | None:
        """Times over the whole run so far."""
        return self.clock.times()

    def to_figures(self, times: StepTimes) -> dict[str, float]:
        """What is known of some steps: percentiles only where each step was waited for."""
        figures = {"step_ms": times.step_ms, "data_ms": times.data_ms}
        if not self._is_queued:
            figures["step_p50_ms"] = times.p50_ms
            figures["step_p90_ms"] = times.p90_ms
            figures["step_p99_ms"] = times.p99_ms
        return figures

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether the device works through a queue while the host goes on."""
        self._is_queued = pl_module.device.type != "cpu"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Setting up an epoch is no wait for data."""
        self._window.begin_epoch(trainer)
        self.clock.pause()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation within an epoch begins with what the device still has to do of training."""
        if pl_module.device.type != "cpu":
            synchronize(pl_module.device)
            self.clock.drain()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Neither is validation."""
        self.clock.pause()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is on the device."""
        self.clock.begin_batch()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Forward, backward and, unless gradients accumulate, the optimizer are done."""
        stepped, closes_window = self._window.end_batch(trainer)
        is_last = batch_idx + 1 == trainer.num_training_batches
        # A warm-up step's queue must not be charged to the first step that counts, nor the last
        # steps' of an epoch to what comes after it.
        if closes_window or is_last or self.clock.is_warming_up:
            synchronize(pl_module.device)
        self.clock.end_batch(stepped)
        if closes_window:
            self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        window = self.clock.steps - self._logged_steps
        times = self.clock.times(window) if window else None
        if times is None:
            return
        self._logged_steps = self.clock.steps
        tags = {f"time/{name}": value for name, value in self.to_figures(times).items()}
        for logger in trainer.loggers:
            logger.log_metrics(tags, step=trainer.global_step)
