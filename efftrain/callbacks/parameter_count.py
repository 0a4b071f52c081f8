"""How many parameters there are, how many train, and what they take as a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch import nn

from efftrain.callbacks.self_timed import SelfTimed, timed
from efftrain.callbacks.trained_network import (
    TrainableWatch,
    network_of,
    selection_of,
    trainable_by_role,
)
from efftrain.callbacks.window import LoggingWindow
from efftrain.peft import Selection
from efftrain.peft.delta_size import predict_delta_bytes
from efftrain.profiling.params import count_parameters, size_of


class ParameterCount(SelfTimed):
    """Log the size of the model and of what trains: at the start, when that changes, at the end.

    | tag | meaning |
    | --- | --- |
    | `params/total` | elements of all parameters, a tied tensor once |
    | `params/trainable` | of these, those that require a gradient |
    | `params/trainable_pct` | 100 x trainable / total |
    | `params/trainable/<role>` | of those, the norms', the head's, the biases', the others' |
    | `params/buffers` | elements of the registered buffers |
    | `size/model_mib` | parameters and buffers at their own dtypes |
    | `size/fp32_mib`, `_fp16_`, `_int8_`, `_int4_` | the parameters at these widths, without scales |
    | `size/delta_kib` | the file that one fine-tuned task adds, where the module has a `selection` |

    Counted is the module's `model`, or the module itself where parameters lie outside of that. Who
    trains is looked at whenever a logging window ends, so a callback may freeze and thaw.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.delta_bytes: int | None = None
        self._by_role: dict[str, int] = {}
        self._window = LoggingWindow()

    @timed
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count and log."""
        self._window.begin(trainer)
        self._by_role = {}
        self._watch = TrainableWatch(pl_module)
        self._log(trainer, pl_module)

    @timed
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count and log again where others train than before."""
        if self._window.ends(trainer) and self._watch.has_changed():
            self._log(trainer, pl_module)

    @timed
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the same again, so that a curve is a line and no point."""
        if trainer.global_step:
            self._log(trainer, pl_module)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = network_of(pl_module)
        totals = count_parameters(model)
        self.delta_bytes = _predict_delta(model, selection_of(pl_module))
        sizes = replace(size_of(totals), delta_bytes=self.delta_bytes)
        # a role that has just been frozen is known to have none
        self._by_role = dict.fromkeys(self._by_role, 0) | trainable_by_role(pl_module)
        by_role = {f"params/trainable/{role}": float(n) for role, n in self._by_role.items()}
        for logger in trainer.loggers:
            logger.log_metrics(
                totals.to_tags() | by_role | sizes.to_tags(), step=trainer.global_step
            )


def _predict_delta(model: nn.Module, selection: Selection | None) -> int | None:
    """Bytes of the delta; None where nothing was selected, or the names are not the model's (FSDP)."""
    names = {name for name, _ in model.named_parameters()}
    if selection is None or not names.issuperset(selection.names):
        return None
    return predict_delta_bytes(model, selection)
