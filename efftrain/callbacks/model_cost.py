"""What a step costs, predicted before the first one is made."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils._pytree import tree_leaves

from efftrain.callbacks.self_timed import SelfTimed, timed
from efftrain.callbacks.step_rehearsal import predict_step
from efftrain.callbacks.trained_network import TrainableWatch
from efftrain.callbacks.window import LoggingWindow
from efftrain.measure.ceilings import kept_ceilings
from efftrain.profiling import Profile
from efftrain.units import GIGA, MIB

_log = logging.getLogger(__name__)


class ModelCost(SelfTimed):
    """Log what the step costs by prediction: with its freezing, loss, precision and optimizer.

    | tag | meaning |
    | --- | --- |
    | `macs/forward` | multiply-accumulates of inference of one sample |
    | `flops/forward_gflop`, `_backward_`, `_step_` | of a training step on the batch |
    | `activations/total`, `_peak`, `_conv_linear` | elements, at inference of one sample |
    | `memory/saved_mib` | what autograd keeps from forward until backward |
    | `memory/step_peak_mib` | the most that a step holds, parameters and optimizer state included |
    | `receptive_field/size` | pixels; where the model has feature maps that see a part of the image |
    | `roofline/intensity` | FLOP for each byte moved, at inference |
    | `latency/predicted_ms` | of inference of one sample, where the device's ceilings have been kept |
    | `energy/estimated_mj` | of inference of one sample, by a model of a 45 nm chip |

    The first batch is rehearsed on tensors without values, before it is trained on; that takes some
    tenths of a second, changes nothing, and reads nothing from the loader. It is done again where
    other parameters train than before. A step that cannot be rehearsed is one line in the log, and
    no more.

    Attributes:
        profile: All that was predicted; None where that did not work, or not yet.
        failure: Why it did not; "" where it did, or has not been tried.
    """

    def __init__(self) -> None:
        """Nothing is predicted yet."""
        self.profile: Profile | None = None
        self.failure = ""
        self._window = LoggingWindow()
        self._due = False
        self._shapes: list[torch.Size] = []

    @property
    def step_flops(self) -> int | None:
        """FLOP of forward and backward of a whole batch, without what is computed a second time."""
        if self.profile is None:
            return None
        return self.profile.flops.forward + self.profile.flops.backward

    @property
    def flops_per_sample(self) -> float | None:
        """The same of one sample; `Throughput` asks for it."""
        if self.profile is None or self.step_flops is None:
            return None
        return self.step_flops / self.profile.batch_size

    def prediction_for(self, batch: Any) -> Profile | None:
        """The profile, where it is of batches of this shape."""
        return self.profile if _shapes_of(batch) == self._shapes else None

    @timed
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch will be there soon."""
        self.profile, self.failure, self._due = None, "", True
        self._watch = TrainableWatch(pl_module)
        self._window.begin(trainer)

    @timed
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Rehearse on the first, and again where others train than before."""
        if not self._due and not (self._window.ends(trainer) and self._watch.has_changed()):
            return
        self._due = False
        self.profile, self.failure = None, ""
        self._shapes = _shapes_of(batch)
        try:
            ceilings = kept_ceilings(pl_module.device)
            self.profile = predict_step(trainer, pl_module, batch, ceilings)
        except Exception as error:  # models fail in any way, and training does not need this
            self.failure = " ".join(str(error).split())[:240] or type(error).__name__
            _log.warning(f"the cost of a step is not predicted: {self.failure}")
            return
        self._log(trainer)

    @timed
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the same again, so that a curve is a line and no point."""
        self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        if self.profile is None:
            return
        for logger in trainer.loggers:
            logger.log_metrics(tags_of(self.profile), step=trainer.global_step)


def tags_of(profile: Profile) -> dict[str, float]:
    """What is known of a profile, under its TensorBoard tags."""
    latency = profile.latency
    tags = {
        "macs/forward": profile.macs.forward,
        "flops/forward_gflop": profile.flops.forward / GIGA,
        "flops/backward_gflop": profile.flops.backward / GIGA,
        "flops/step_gflop": profile.flops.step / GIGA,
        "activations/total": profile.activations.total,
        "activations/peak": profile.activations.peak,
        "activations/conv_linear": profile.activations.conv_linear,
        "memory/saved_mib": profile.memory.saved.saved_bytes / MIB,
        "memory/step_peak_mib": profile.memory.peak.step_peak_bytes / MIB,
        "receptive_field/size": profile.receptive_field.size,
        "roofline/intensity": profile.intensity,
        "latency/predicted_ms": None if latency is None else latency.predicted_ms,
        "energy/estimated_mj": profile.energy.estimated_mj,
    }
    return {tag: float(value) for tag, value in tags.items() if value is not None}


def _shapes_of(batch: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
