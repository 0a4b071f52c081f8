"""How much memory a step really needs: what autograd keeps of it, and the device's peak."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from efftrain.callbacks.cards import log_text, markdown_table
from efftrain.callbacks.model_cost import ModelCost
from efftrain.callbacks.processes import gather, largest
from efftrain.callbacks.self_timed import SelfTimed, timed
from efftrain.callbacks.trained_network import find_callback, network_of
from efftrain.callbacks.window import LoggingWindow
from efftrain.measure.peak_memory import PeakMeter, find_peak_meter
from efftrain.measure.saved_memory import SavedMeter
from efftrain.profiling.saved import Saved
from efftrain.units import MIB

_log = logging.getLogger(__name__)

_LISTED = 12
"""Modules in the text card, the largest ones."""


class ActivationMemory(SelfTimed):
    """Log what training steps keep and hold, measured on real ones.

    | tag | meaning |
    | --- | --- |
    | `memory/saved_measured_mib` | what autograd keeps from forward until backward, of one batch |
    | `memory/saved/<cause>_mib` | of that, by the kind of operation that keeps it first |
    | `memory/saved_difference_pct` | measured over predicted, where `ModelCost` predicts a like batch |
    | `memory/device_peak_mib` | the most that is held in a logging window: see `find_peak_meter` |

    What is kept is measured on the first step after warm-up, and then on every n-th: distinct pieces
    of memory, without parameters, buffers and the batch. That step computes what any other does, and
    takes some milliseconds longer. It is left out where others have `saved_tensors_hooks` in force,
    and where `ModelCost` could not rehearse the step: what hinders the one hinders the other.

    The peak is that of training alone, and of several processes the largest. On a CPU it is how far
    the process grows above what it holds between two steps (parameters, buffers, gradients and
    optimizer state), from the last step of warm-up on.

    Args:
        every_n_steps: Optimizer steps from one measured step to the next.
        warmup_steps: First steps that are not measured. By default the next is one that `StepTimer` and
            `Throughput` leave out, so that looking at it is in no time of theirs.

    Attributes:
        saved: What was kept in the last measured step, by module and cause; None before the first.
        peak_bytes: The highest peak of all windows; None where the device does not tell.
        predicted_bytes: What `ModelCost` predicted for that step's `saved`; None where it did not.
    """

    def __init__(self, every_n_steps: int = 500, warmup_steps: int = 2) -> None:
        """Nothing is measured yet."""
        self.every_n_steps = every_n_steps
        self.warmup_steps = warmup_steps
        self.saved: Saved | None = None
        self.peak_bytes: int | None = None
        self.predicted_bytes: int | None = None
        self._meter = SavedMeter()
        self._peak: PeakMeter | None = None
        self._window = LoggingWindow()
        self._causes: dict[str, float] = {}
        self._said = False

    @timed
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each training has its own warm-up."""
        self.saved = self.peak_bytes = self.predicted_bytes = self._peak = None
        self._causes = {}
        self._window.begin(trainer)
        self._next = trainer.global_step + self.warmup_steps
        self._batches_left = 0
        self._highest = 0

    @timed
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the forward pass, where it is time to."""
        if self._batches_left > 0:  # asking the Trainer for its step takes some microseconds
            self._batches_left -= 1
            return
        step = trainer.global_step
        if self._peak is None and step >= self._next - 1:
            # optimizer state and the kernels' own memory are there by now
            self._peak = find_peak_meter(pl_module.device)
        if step < self._next:
            self._batches_left = max(self._next - step - 2, 0)
            return
        self._next = step + self.every_n_steps
        self._batches_left = self.every_n_steps - 1
        cost = find_callback(trainer, ModelCost)
        if cost is not None and cost.failure:
            self._say("its step could not be rehearsed")
            return
        if not self._meter.start(network_of(pl_module), batch):
            self._say("others have saved_tensors_hooks in force")
            return
        found = None if cost is None else cost.prediction_for(batch)
        self.predicted_bytes = None if found is None else found.memory.saved.saved_bytes

    @timed
    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Forward is over: all that backward needs is kept now."""
        if not self._meter.is_running:
            return
        is_first = self.saved is None
        self.saved = self._meter.stop(loss)
        if self.saved is None:
            return
        self.cost_s += self._meter.cost_s
        self._meter.cost_s = 0.0
        for logger in trainer.loggers:
            logger.log_metrics(self._tags(self.saved), step=trainer.global_step)
        if is_first:
            log_text(trainer.loggers, "activation_memory", _card(self.saved))

    @timed
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A step without backward has no figure; a window that ends has its peak."""
        self._meter.stop()
        if not self._window.ends(trainer):
            return
        mine = None if self._peak is None else self._take_peak()
        highest = largest(row[0] for row in gather(trainer, [mine]))
        if highest is None:
            return
        self.peak_bytes = max(self.peak_bytes or 0, int(highest))
        for logger in trainer.loggers:
            logger.log_metrics({"memory/device_peak_mib": highest / MIB}, step=trainer.global_step)

    @timed
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What validation holds is no training step's."""
        if self._peak is not None:
            self._highest = max(self._highest, self._peak.peak_bytes())

    @timed
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on it is training again."""
        if self._peak is not None:
            self._peak.reset()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing behind."""
        self._meter.stop()

    def _take_peak(self) -> int:
        assert self._peak is not None
        peak = max(self._highest, self._peak.peak_bytes())
        self._peak.reset()
        self._highest = 0
        return peak

    def _tags(self, saved: Saved) -> dict[str, float]:
        # a cause that has gone is known to keep nothing
        self._causes = dict.fromkeys(self._causes, 0.0) | saved.by_cause()
        tags = {f"memory/saved/{cause}_mib": size / MIB for cause, size in self._causes.items()}
        tags["memory/saved_measured_mib"] = saved.saved_bytes / MIB
        if self.predicted_bytes:
            off = saved.saved_bytes - self.predicted_bytes
            tags["memory/saved_difference_pct"] = 100.0 * off / self.predicted_bytes
        return tags

    def _say(self, why: str) -> None:
        if not self._said:
            self._said = True
            _log.info(f"memory/saved_measured_mib is left out: {why}")


def peak_prediction(cost: ModelCost, device: torch.device) -> int | None:
    """What `ModelCost` predicts for what is measured on a device: on a CPU, what a step adds."""
    if cost.profile is None:
        return None
    peak = cost.profile.memory.peak
    return peak.working_peak_bytes if device.type == "cpu" else peak.step_peak_bytes


def _card(saved: Saved) -> str:
    own: dict[str, int] = {}
    for tensor in saved.tensors:
        own[tensor.path] = own.get(tensor.path, 0) + tensor.saved_bytes
    causes = sorted(saved.by_cause().items(), key=lambda item: -item[1])
    modules = sorted(own.items(), key=lambda item: -item[1])[:_LISTED]
    by_cause = markdown_table(
        ("kept by", "MiB"), [(cause, f"{size / MIB:.2f}") for cause, size in causes]
    )
    by_module = markdown_table(
        ("module", "MiB"), [(path or "(loss)", f"{size / MIB:.2f}") for path, size in modules]
    )
    return f"{by_cause}\n\n{by_module}\n"
