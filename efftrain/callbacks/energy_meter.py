"""How much energy training takes, by the device's own counter."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from efftrain.callbacks.cards import log_text
from efftrain.callbacks.processes import gather
from efftrain.callbacks.self_timed import SelfTimed, timed
from efftrain.callbacks.window import LoggingWindow
from efftrain.errors import MachineError
from efftrain.measure.energy_gauge import EnergyGauge
from efftrain.measure.energy_meter import Counter, find_counters

_log = logging.getLogger(__name__)


class EnergyMeter(SelfTimed):
    """Log the energy of training, where the device counts it.

    | tag | meaning |
    | --- | --- |
    | `energy/step_j` | of an optimizer step, its wait for data included: the mean of a window |
    | `energy/total_j` | of the training so far, validations included |

    It is the energy of everything that runs on the device, with what it needs while idle. A window is
    as many logging windows as it takes to last `window_s`, validations left out. What counts stands
    in a text card; where nothing does, nothing is logged, and the run's log says so once. GPUs of
    several processes are added up; a CPU's counter is read by one process on each machine.

    Args:
        window_s: Least seconds of a window; the counters move in steps.
        counters: What counts; by default whatever is found for the device.

    Attributes:
        step_j: Of an optimizer step, over all windows; None where it is not known.
        total_j: Of the training so far; None where it is not known.
    """

    def __init__(self, window_s: float = 1.0, counters: Sequence[Counter] | None = None) -> None:
        """Nothing is counted yet."""
        self.window_s = window_s
        self.counters = counters
        self.step_j: float | None = None
        self.total_j: float | None = None
        self._gauge: EnergyGauge | None = None
        self._window = LoggingWindow()
        self._said = False

    @timed
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what counts, and say what it is."""
        self.step_j = self.total_j = self._gauge = None
        self._steps, self._all_steps, self._all_j = 0, 0, 0.0
        self._window.begin(trainer)
        counters, why = self._find(trainer, pl_module)
        # every process has to bring the windows together, or none
        rows = gather(trainer, [None if counters is None else 1.0])
        if counters is None or any(math.isnan(row[0]) for row in rows):
            _log.info(f"energy/* is left out: {why or 'another process has no counter'}")
            return
        self._gauge = EnergyGauge(counters)
        sources = ", ".join(counter.source for counter in counters)
        log_text(
            trainer.loggers,
            "energy",
            f"`energy/*` is counted by {sources}, in windows of at least {self.window_s:g} s; it is"
            " that of everything that runs there.",
        )

    @timed
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes is no step."""
        if self._gauge is not None:
            self._gauge.pause()

    @timed
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on it is steps again."""
        if self._gauge is not None:
            self._gauge.resume()

    @timed
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log where a window ends that is long enough."""
        if self._gauge is None:
            return
        stepped, closes_window = self._window.end_batch(trainer)
        self._steps += stepped
        if closes_window:
            self._read(trainer, self._gauge, at_least_s=self.window_s)

    @timed
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last steps fill no window, but are part of the total."""
        if self._gauge is not None and self.total_j is not None:
            self._read(trainer, self._gauge, at_least_s=0.0)
        self._gauge = None

    def _read(self, trainer: pl.Trainer, gauge: EnergyGauge, at_least_s: float) -> None:
        spent = gauge.spent()
        if gauge.failure and not self._said:
            self._said = True
            _log.warning(f"energy/* ends here: {gauge.failure}")
        rows = gather(trainer, [spent.joules, spent.seconds, gauge.total_j()])
        joules, seconds, totals = zip(*rows, strict=True)
        if max(seconds) < at_least_s or not self._steps or math.isnan(sum(totals)):
            return
        tags = {"energy/total_j": float(sum(totals))}
        if max(seconds) >= self.window_s:
            tags["energy/step_j"] = sum(joules) / self._steps
        self._all_j += sum(joules)
        self._all_steps += self._steps
        self.step_j, self.total_j = self._all_j / self._all_steps, sum(totals)
        self._steps = 0
        gauge.take()
        for logger in trainer.loggers:
            logger.log_metrics(tags, step=trainer.global_step)

    def _find(
        self, trainer: pl.Trainer, module: pl.LightningModule
    ) -> tuple[Sequence[Counter] | None, str]:
        """The counters that this process reads, or None and why."""
        if module.device.type == "cpu" and trainer.local_rank:
            return (), ""  # the first process of the machine reads them
        if self.counters is not None:
            return self.counters, ""
        try:
            found = find_counters(module.device)
        except MachineError as error:
            return None, str(error)
        why = f"the {module.device.type} has no energy counter that can be read here"
        return (found, "") if found else (None, why)
