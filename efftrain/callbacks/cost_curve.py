"""How good the model is against what training has cost so far."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from efftrain.callbacks.model_cost import ModelCost
from efftrain.callbacks.self_timed import SelfTimed, timed
from efftrain.callbacks.trained_network import find_callback
from efftrain.measure.batch import samples_in
from efftrain.units import GIGA

PREFIX = "val/"


class CostCurve(SelfTimed):
    """Log what training has computed so far at each validation, to be an axis for its metrics.

    | tag | meaning |
    | --- | --- |
    | `flops/total_gflop` | FLOP of forward and backward of all samples so far, of all processes |
    | `val_by_gflop/<metric>` | the metric, with these GFLOP in place of the step |

    The second is for TensorBoard alone, where no metric can be an axis. FLOPs are those that
    `ModelCost` predicts of a sample, by what trains at that time.
    """

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self.total_flops = 0.0
        self._samples = 0
        self._is_unknown = False
        self._written: int | None = None

    @timed
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch."""
        self._samples += samples_in(batch) or 0

    @timed
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the validation has found."""
        self._add_up(trainer)
        if self._is_unknown:
            return
        gflop = round(self.total_flops / GIGA)
        if trainer.sanity_checking or gflop == self._written:
            return
        if trainer.global_step and not gflop:  # what a sample costs is not known
            return
        self._written = gflop
        found = {
            f"val_by_gflop/{name.removeprefix(PREFIX)}": float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(PREFIX)
        }
        for logger in trainer.loggers:
            if gflop:
                total = {"flops/total_gflop": self.total_flops / GIGA}
                logger.log_metrics(total, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics(found, step=gflop)

    @timed
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What no validation has followed is part of the total."""
        self._add_up(trainer)

    def _add_up(self, trainer: pl.Trainer) -> None:
        cost = find_callback(trainer, ModelCost)
        if cost is not None and (flops := cost.flops_per_sample) is not None:
            self.total_flops += flops * self._samples * trainer.world_size
        elif self._samples:  # a total that leaves something out would look like one that does not
            self._is_unknown = True
        self._samples = 0

    def state_dict(self) -> dict[str, float]:
        """A resumed run goes on where it was."""
        return {"total_flops": self.total_flops}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take the count of the run that is resumed."""
        self.total_flops = state_dict["total_flops"]
