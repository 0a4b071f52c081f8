"""How many samples a training run gets through, and how well it uses the device for that."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from torch import nn

from efftrain.callbacks.cards import log_text
from efftrain.callbacks.processes import gather
from efftrain.callbacks.self_timed import SelfTimed, timed
from efftrain.callbacks.window import LoggingWindow
from efftrain.measure.batch import samples_in, tokens_in
from efftrain.measure.device import device_name
from efftrain.measure.peak_flops import find_arithmetic, find_peak, peak_flops_per_s
from efftrain.measure.rate_clock import RateClock, Work
from efftrain.measure.timeline import timeline_of
from efftrain.units import GIGA

_log = logging.getLogger(__name__)

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@runtime_checkable
class KnowsFlops(Protocol):
    """A callback that knows what training on one sample computes."""

    @property
    def flops_per_sample(self) -> float | None:
        """FLOP of forward and backward, with this freezing; None while it is not known."""
        ...


class Throughput(SelfTimed):
    """Log what a run gets through, over each logging window.

    | tag | meaning |
    | --- | --- |
    | `throughput/samples_per_s` | samples of all processes over the time of the slowest |
    | `throughput/tokens_per_s` | the same of tokens, where batches hold `input_ids` |
    | `throughput/achieved_gflops` | predicted FLOP of the samples over the time of their steps, a device |
    | `throughput/mfu_pct` | that over the device's dense peak for the arithmetic in use |

    Counts what was in the batches: a short last batch is what it is, and padding that the
    `attention_mask` marks is no token (without a mask, all of `input_ids` is). The two rates are over
    the wall clock of training with every wait for data, since a loader that cannot keep up lowers
    them; achieved FLOP/s is over the steps without it. Left out: warm-up, validation, batches in which
    `torch.compile` compiled something, and gaps in which a checkpoint was written.

    FLOPs come from whichever callback of the Trainer has `flops_per_sample` (`KnowsFlops`); samples
    of different lengths are taken to cost what that one did on average. A device whose peak is not
    known has no `mfu_pct`. Nothing ever waits for a GPU but to read, once in a window, how many
    tokens there were.

    Args:
        warmup_steps: First optimizer steps that are left out.
        flops_per_sample: FLOP of forward and backward of one sample; by default another callback's.
        peak_flops_per_s: The most that one device can do: another one than its data sheet's, or what
            was measured.
        count_samples: How many there are in a batch, where the first dimension of its first tensor
            does not say it; None is not known.
    """

    def __init__(
        self,
        warmup_steps: int = 3,
        flops_per_sample: float | None = None,
        peak_flops_per_s: float | None = None,
        count_samples: Callable[[Any], int | None] = samples_in,
    ) -> None:
        """Start with an empty window."""
        self.warmup_steps = warmup_steps
        self.flops_per_sample = flops_per_sample
        self.peak_flops_per_s = peak_flops_per_s
        self.count_samples = count_samples
        self.samples = 0
        self.tokens = 0
        self.seconds = 0.0
        self._clock = RateClock(warmup_steps)
        self._window = LoggingWindow()
        self._peak: float | None = None
        self._looked_up = False

    @property
    def samples_per_s(self) -> float | None:
        """Rate over the whole training run so far, of all processes."""
        return self.samples / self.seconds if self.seconds else None

    @timed
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each training has its own warm-up."""
        self.samples = self.tokens = 0
        self.seconds = 0.0
        self._clock = RateClock(self.warmup_steps, timeline_of(pl_module.device))
        self._window.begin(trainer)
        self._looked_up = False

    @timed
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here, so that the wait for an epoch's first batch counts."""
        self._clock.resume()

    @timed
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on."""
        self._clock.resume()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nothing tells when it is written."""
        self._clock.pause()

    @timed
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is on the device."""
        self._clock.begin_batch()

    @timed
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log where a window ends."""
        stepped, closes_window = self._window.end_batch(trainer)
        self._clock.end_batch(self.count_samples(batch) or 0, tokens_in(batch), stepped)
        if closes_window:
            self._log_window(trainer, pl_module)

    @timed
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is left is no window, but part of the run."""
        self._clock.finish()
        self._add_up(trainer)

    def _add_up(self, trainer: pl.Trainer) -> Work:
        """The window's work of all processes, in the time of the slowest."""
        mine = self._clock.take()
        rows = gather(trainer, [mine.samples, mine.tokens, mine.seconds, mine.step_s])
        samples, tokens, seconds, step_s = zip(*rows, strict=True)
        all_tokens = None if math.isnan(sum(tokens)) else int(sum(tokens))
        work = Work(int(sum(samples)), all_tokens, max(seconds), max(step_s))
        if work.samples:  # without any, nothing is known of the batches
            self.samples += work.samples
            self.tokens += work.tokens or 0
            self.seconds += work.seconds
        return work

    def _log_window(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        work = self._add_up(trainer)
        if not work.samples or not work.seconds:
            return
        tags = {"throughput/samples_per_s": work.samples / work.seconds}
        if work.tokens is not None:
            tags["throughput/tokens_per_s"] = work.tokens / work.seconds
        flops = self._find_flops_per_sample(trainer)
        if flops is not None and work.step_s:
            achieved = flops * work.samples / trainer.world_size / work.step_s
            tags["throughput/achieved_gflops"] = achieved / GIGA
            peak = self._find_peak(trainer, pl_module)
            if peak is not None:
                tags["throughput/mfu_pct"] = 100.0 * achieved / peak
        for logger in trainer.loggers:
            logger.log_metrics(tags, step=trainer.global_step)

    def _find_flops_per_sample(self, trainer: pl.Trainer) -> float | None:
        callbacks: list[pl.Callback] = vars(trainer)["callbacks"]  # set without being declared
        known = (c.flops_per_sample for c in (self, *callbacks) if isinstance(c, KnowsFlops))
        return next((flops for flops in known if flops is not None), None)

    def _find_peak(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        """The denominator of `mfu_pct`; what it is, or that it is not known, is said once."""
        if self.peak_flops_per_s is not None:
            return self.peak_flops_per_s
        if not self._looked_up:
            self._looked_up = True
            self._peak = self._look_up_peak(trainer, pl_module)
        return self._peak

    def _look_up_peak(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        name = device_name(pl_module.device)
        convolutions = any(isinstance(module, _CONVOLUTIONS) for module in pl_module.modules())
        arithmetic = find_arithmetic(str(trainer.precision), convolutions)
        peak = find_peak(name)
        rate = peak_flops_per_s(peak, arithmetic) if peak and arithmetic else None
        if peak is None or rate is None:
            _log.info(
                f"throughput/mfu_pct is left out: no peak is known of {name} at precision"
                f" {trainer.precision}; give Throughput(peak_flops_per_s=…)"
            )
            return None
        card = f"`throughput/mfu_pct` is of {rate / 1e12:g} TFLOP/s: {name}, dense {arithmetic}"
        log_text(trainer.loggers, "throughput", f"{card} ({peak.source})")
        return rate
