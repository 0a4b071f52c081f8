"""What a run has cost, predicted and measured, as one table at its end."""

from __future__ import annotations

import lightning.pytorch as pl

from efftrain.callbacks.activation_memory import ActivationMemory, peak_prediction
from efftrain.callbacks.cards import figures_markdown, log_text
from efftrain.callbacks.energy_meter import EnergyMeter
from efftrain.callbacks.model_cost import ModelCost
from efftrain.callbacks.parameter_count import ParameterCount
from efftrain.callbacks.self_timed import SelfTimed, total_cost_s
from efftrain.callbacks.step_timer import StepTimer
from efftrain.callbacks.throughput import Throughput
from efftrain.callbacks.trained_network import find_callback
from efftrain.profiling import Profile
from efftrain.run import Figure
from efftrain.units import GIGA, KIB, MIB, MS_PER_S


class EfficiencySummary(SelfTimed):
    """Bring together what the other callbacks of a Trainer have predicted and measured.

    | tag | meaning |
    | --- | --- |
    | `efficiency/callbacks_s` | time in all these callbacks, at the end: once for a run, and each step |

    A text card "efficiency" holds the table when training has ended; `figures` has it at any time
    from then on, and is what `efftrain train` writes to `summary.json` and `summary.md`. A figure
    whose callback is not there, or that is neither predicted nor measured, is left out.

    Times are predicted where the device's two ceilings have been measured and kept before, as
    `efftrain profile` does.
    """

    def __init__(self) -> None:
        """Nothing is known before training."""
        self._trainer: pl.Trainer | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to know."""
        self._trainer, self._device = trainer, pl_module.device

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All other callbacks are done."""
        log_text(trainer.loggers, "efficiency", figures_markdown(self.figures))
        cost_s = total_cost_s(vars(trainer)["callbacks"])
        for logger in trainer.loggers:
            logger.log_metrics({"efficiency/callbacks_s": cost_s}, step=trainer.global_step)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What is known, in the order of the table; nothing before training."""
        trainer = self._trainer
        if trainer is None:
            return ()
        found = [*self._times(trainer), *self._memory(trainer), *_sizes(trainer), *_energy(trainer)]
        cost_s = total_cost_s(vars(trainer)["callbacks"])
        found.append(Figure("efficiency/callbacks_s", "s", measured=cost_s))
        return tuple(
            figure for figure in found if (figure.predicted, figure.measured) != (None, None)
        )

    def _times(self, trainer: pl.Trainer) -> list[Figure]:
        timer, meter = find_callback(trainer, StepTimer), find_callback(trainer, Throughput)
        cost = find_callback(trainer, ModelCost)
        profile = None if cost is None else cost.profile
        times = None if timer is None else timer.times
        predicted_ms = _step_ms(profile, trainer)
        measured_ms = None if times is None else times.step_p50_ms
        samples = 0 if profile is None else profile.batch_size * trainer.accumulate_grad_batches
        flops = None if cost is None else cost.step_flops
        rate = None
        if flops is not None and measured_ms:
            flops *= trainer.accumulate_grad_batches
            rate = flops / (measured_ms / MS_PER_S) / GIGA
        return [
            Figure("time/step_p50_ms", "ms", predicted_ms, measured_ms),
            Figure(
                "throughput/samples_per_s",
                "1/s",
                samples * trainer.world_size / predicted_ms * MS_PER_S if predicted_ms else None,
                None if meter is None else meter.samples_per_s,
            ),
            Figure("throughput/achieved_gflops", "GFLOP/s", measured=rate),
        ]

    def _memory(self, trainer: pl.Trainer) -> list[Figure]:
        cost, memory = find_callback(trainer, ModelCost), find_callback(trainer, ActivationMemory)
        profile = None if cost is None else cost.profile
        saved = None if profile is None else profile.memory.saved.saved_bytes
        peak = None if cost is None else peak_prediction(cost, self._device)
        measured = None if memory is None or memory.saved is None else memory.saved.saved_bytes
        if memory is not None and memory.saved is not None:
            saved = memory.predicted_bytes  # of a batch of the same shape
        highest = None if memory is None else memory.peak_bytes
        return [
            Figure("memory/saved_measured_mib", "MiB", _per(MIB, saved), _per(MIB, measured)),
            Figure("memory/device_peak_mib", "MiB", _per(MIB, peak), _per(MIB, highest)),
        ]


def _sizes(trainer: pl.Trainer) -> list[Figure]:
    counted = find_callback(trainer, ParameterCount)
    delta = None if counted is None else counted.delta_bytes
    return [Figure("size/delta_kib", "KiB", _per(KIB, delta))]


def _energy(trainer: pl.Trainer) -> list[Figure]:
    meter = find_callback(trainer, EnergyMeter)
    if meter is None:
        return []
    return [
        Figure("energy/step_j", "J", measured=meter.step_j),
        Figure("energy/total_j", "J", measured=meter.total_j),
    ]


def _step_ms(profile: Profile | None, trainer: pl.Trainer) -> float | None:
    if profile is None or profile.step_latency is None:
        return None
    batch_ms = profile.step_latency.predicted_ms
    return None if batch_ms is None else batch_ms * trainer.accumulate_grad_batches


def _per(unit: int, count: int | None) -> float | None:
    return None if count is None else count / unit
