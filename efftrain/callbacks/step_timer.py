"""How long a training step takes, and what in it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from efftrain.callbacks.processes import gather, largest
from efftrain.callbacks.self_timed import SelfTimed, timed, total_cost_s
from efftrain.callbacks.transfer_watch import TransferWatch
from efftrain.callbacks.window import LoggingWindow
from efftrain.measure.step_clock import TIMES, Part, StepClock, StepTimes
from efftrain.measure.timeline import timeline_of

_TAGS = (*(f"time/{name}" for name in TIMES), "efficiency/callback_overhead_pct")


class StepTimer(SelfTimed):
    """Log where the time of an optimizer step goes, over each logging window.

    | tag | meaning |
    | --- | --- |
    | `time/step_ms` | mean time of one optimizer step, from its batch being on the device to its end |
    | `time/data_ms` | mean wait for the data of one step |
    | `time/h2d_ms` | mean time in which its batches were brought to the device |
    | `time/forward_ms` | mean time of forward, loss, and emptying the gradients |
    | `time/backward_ms` | mean time of backward, with the exchange of gradients |
    | `time/optimizer_ms` | mean time of what follows: unscaling, clipping, optimizer, schedule |
    | `time/micro_step_ms` | mean forward and backward of one batch, where gradients accumulate |
    | `time/step_p50_ms`, `_p90_ms`, `_p99_ms` | percentiles of the steps in the window |
    | `efficiency/callback_overhead_pct` | time in the hooks of all `SelfTimed` callbacks, of the window's |

    A step is an optimizer step: where gradients accumulate, its parts are the sums over its batches.
    A round of the loop is wait + transfer + step, and a step is its three parts, to which belongs what
    other callbacks do in them. With `automatic_optimization=False` the parts are not known and left out.

    Left out: warm-up, steps in which `torch.compile` compiled something or a checkpoint was written,
    and validation. A wait is counted between two batches only, not at an epoch's start, after a
    validation or after a checkpoint, where it could not be told from these; what loggers and other
    callbacks do between two batches is part of it.

    On a GPU, events in its queue are read when it has passed them; nothing ever waits for it, and a
    window holds the steps that were done by its end, which are a few behind. Mean and percentiles
    are by the device's clock: a wait is the time in which it had nothing to do. Of several processes
    the largest value is logged; all of them close a window at the same step.

    Args:
        warmup_steps: First steps that are left out: they allocate memory and choose kernels.
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        """Start with nothing timed."""
        self.warmup_steps = warmup_steps
        self.clock = StepClock(warmup_steps)
        self._times_parts = True
        self._window = LoggingWindow()
        self._cost_before_s = 0.0
        self._transfers = TransferWatch(self._begin_transfer, self._end_transfer)

    @property
    def times(self) -> StepTimes | None:
        """Times over the whole training run so far, of this process."""
        return self.clock.times()

    @timed
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each training has its own warm-up; a resumed one goes on counting where it was."""
        self.clock = StepClock(self.warmup_steps, timeline_of(pl_module.device))
        self._times_parts = pl_module.automatic_optimization
        self._window.begin(trainer)
        self._transfers.start(trainer.strategy)

    @timed
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Setting up an epoch is no wait for data."""
        self.clock.pause()

    @timed
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Neither is validation."""
        self.clock.pause()

    @timed
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Its batches went to the device, too."""
        self.clock.pause()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nor is writing a checkpoint."""
        self.clock.pause()

    @timed
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is on the device."""
        self.clock.begin_batch(Part.FORWARD if self._times_parts else Part.OTHER)

    @timed
    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Backward begins."""
        if self._times_parts:
            self.clock.begin(Part.BACKWARD)

    @timed
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is left of the batch is the optimizer's, if it steps."""
        if self._times_parts:
            self.clock.begin(Part.OPTIMIZER)

    @timed
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
        warming_up = self.clock.is_warming_up
        self.clock.end_batch(stepped)
        if warming_up:
            self._cost_before_s = _cost_s(trainer)
        if closes_window:
            self._log(trainer)

    @timed
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what the device has not been asked for yet."""
        self._transfers.stop()
        self.clock.finish()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing behind."""
        self._transfers.stop()

    def _begin_transfer(self) -> None:
        self.clock.begin_transfer()

    def _end_transfer(self) -> None:
        self.clock.end_transfer()

    def _log(self, trainer: pl.Trainer) -> None:
        window_s, cost_s = self.clock.window_s, _cost_s(trainer)
        figures = times.to_figures() if (times := self.clock.take_window()) else {}
        overhead_pct = 100.0 * (cost_s - self._cost_before_s) / window_s if window_s else None
        self._cost_before_s = cost_s
        processes = gather(trainer, [*map(figures.get, TIMES), overhead_pct])
        largest_of = map(largest, zip(*processes, strict=True))
        tags = {
            tag: value for tag, value in zip(_TAGS, largest_of, strict=True) if value is not None
        }
        for logger in trainer.loggers if tags else ():
            logger.log_metrics(tags, step=trainer.global_step)


def _cost_s(trainer: pl.Trainer) -> float:
    return total_cost_s(vars(trainer)["callbacks"])  # Lightning sets it without declaring it
