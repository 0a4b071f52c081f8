"""How many parameters there are, and how many train."""

from __future__ import annotations

import lightning.pytorch as pl

from efftrain.profiling.params import count_parameters


class ParameterCount(pl.Callback):
    """Log the size of the model and of what trains, once at the start of training.

    | tag | meaning |
    | --- | --- |
    | `params/total` | elements of all parameters, a tied tensor once |
    | `params/trainable` | of these, those that require a gradient |
    | `params/trainable_pct` | 100 x trainable / total |
    | `params/buffers` | elements of the registered buffers |
    | `size/model_mib` | parameters and buffers at their own dtypes |
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count and log."""
        tags = count_parameters(getattr(pl_module, "model", pl_module)).to_tags()
        for logger in trainer.loggers:
            logger.log_metrics(tags, step=trainer.global_step)
