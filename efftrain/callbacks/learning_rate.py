"""The learning rate of every parameter group."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from efftrain.callbacks.window import is_logging_step


class LearningRate(pl.Callback):
    """Log `lr/<group>` at every logging step.

    Lightning's own monitor names groups by their place (`lr-AdamW/pg1`), which changes with the
    selection, so that curves of two methods cannot be laid over each other.
    """

    def __init__(self) -> None:
        """Nothing is logged yet."""
        self._logged_step = -1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate that the coming step uses."""
        if not is_logging_step(trainer) or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        rates = {
            f"lr/{group.get('name', 'all')}": float(group["lr"])
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
        }
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)
