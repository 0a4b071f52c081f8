"""Stop a run whose loss is no longer a number, before anything is saved from it."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from efftrain.errors import NumericError


class FiniteLoss(pl.Callback):
    """Look at the loss now and then, and at every epoch's end.

    Reading a loss waits for the device, so not every step is looked at: once a loss is not finite,
    the weights are not either, and every later loss shows it.

    Args:
        every_n_steps: Steps between two looks.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Nothing is watched before the first step."""
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Raise `NumericError` where the loss is NaN or infinite."""
        last = batch_idx + 1 == trainer.num_training_batches
        if not (last or batch_idx % self.every_n_steps == 0):
            return
        loss = float(outputs["loss"])
        # One process alone must not leave the others waiting for its gradients
        broken = trainer.strategy.reduce_boolean_decision(not math.isfinite(loss), all=False)
        if broken:
            raise NumericError(
                f"train/loss is {loss} in epoch {trainer.current_epoch}, batch {batch_idx};"
                " lower optim.lr or set trainer.gradient_clip_val=1"
            )
