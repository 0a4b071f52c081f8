"""The LightningModule: a model, a loss, metrics, an optimizer and a schedule, each given from outside."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from efftrain.data.first_batch import REFUSALS, check_labels, explain_loss, explain_refusal
from efftrain.errors import ConfigError, DataError
from efftrain.peft import Selection, param_groups

MakeOptimizer = Callable[..., Optimizer]
MakeSchedule = Callable[..., LRScheduler]


class Task(pl.LightningModule):
    """Supervised training on batches of inputs and labels.

    A batch is a pair `(inputs, labels)`, or a mapping that holds "labels" beside the model's keyword
    arguments. Works for any loss `(scores, labels) -> scalar`; the scores are the model's output, or
    its `logits` where it returns a Hugging Face output.

    Args:
        model: With the selection applied. Its modes and BatchNorm statistics stay as they are.
        selection: What trains; only this reaches the optimizer.
        loss: Called with scores [N, ...] and labels [N, ...].
        metrics: Logged as `train/<name>` and `val/<name>` over each epoch.
        optimizer: Called with the parameter groups. Not needed to evaluate.
        scheduler: Called with the optimizer, and the run's `total_steps` where it takes that.
        rates: Learning rates of the groups "norm" and "head", where they have their own.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        loss: nn.Module,
        metrics: dict[str, Metric],
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeSchedule | None = None,
        rates: Mapping[str, float | None] | None = None,
    ) -> None:
        """Keep the parts; nothing is built yet."""
        super().__init__()
        self.model = model
        self.selection = selection
        self.loss = loss
        collection = MetricCollection(dict(metrics))
        self.train_metrics = collection.clone(prefix="train/")
        self.val_metrics = collection.clone(prefix="val/")
        self.train_loss = MeanLoss()
        self.val_loss = MeanLoss()
        self._make_optimizer = optimizer
        self._make_schedule = scheduler
        self._rates = dict(rates or {})
        self._has_run = False
        self._labels_checked: set[str | None] = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch; the scalar that backward starts from."""
        loss = self._evaluate(batch, self.train_metrics, self.train_loss)
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin with fresh sums.

        `trainer.validate` runs in inference mode and leaves tensors behind that the validation
        within `fit` may not add to.
        """
        self.val_metrics.reset()
        self.val_loss.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss and metrics of one held-out batch."""
        loss = self._evaluate(batch, self.val_metrics, self.val_loss)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True)
        return loss

    def align(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and labels as loss and metrics take them; a task may pair them in another way."""
        return scores, labels

    def weight(self, labels: Tensor) -> float | Tensor:
        """How much a batch counts in the mean loss of an epoch: its number of samples."""
        return len(labels)

    def configure_optimizers(self) -> Any:
        """An optimizer over exactly what the selection names, and its schedule."""
        if self._make_optimizer is None:
            return None
        defaults = _keywords(self._make_optimizer)
        groups = param_groups(
            self.model,
            self.selection,
            lr=defaults.get("lr"),
            weight_decay=defaults.get("weight_decay", 0.0),
            norm_lr=self._rates.get("norm"),
            head_lr=self._rates.get("head"),
        )
        optimizer = self._make_optimizer(groups)
        if self._make_schedule is None:
            return optimizer
        schedule = self._make_schedule(optimizer, **self._total_steps(self._make_schedule))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _total_steps(self, make_schedule: MakeSchedule) -> dict[str, int]:
        if "total_steps" not in inspect.signature(make_schedule).parameters:
            return {}
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ConfigError(
                "scheduler: needs to know the last step; set trainer.max_epochs or"
                " +trainer.max_steps, or take scheduler=none"
            )
        return {"total_steps": int(steps)}

    def _evaluate(self, batch: Any, metrics: MetricCollection, mean: MeanLoss) -> Tensor:
        inputs, labels = split_batch(batch)
        scores, labels = self.align(self._scores(inputs), labels)
        if metrics.prefix not in self._labels_checked:
            check_labels(scores, labels, ignored=getattr(self.loss, "ignore_index", -100))
            self._labels_checked.add(metrics.prefix)
        try:
            loss = self.loss(scores, labels)
        except REFUSALS as error:
            raise explain_loss(self.loss, scores, labels, error) from error
        metrics.update(scores.detach(), labels)
        mean.update(loss.detach(), self.weight(labels))
        return loss

    def _scores(self, inputs: Any) -> Tensor:
        try:
            output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        except REFUSALS as error:
            if self._has_run:
                raise
            raise explain_refusal(self.model, inputs, error) from error
        self._has_run = True
        return scores_of(output)


class MeanLoss(Metric):
    """Mean over samples, also where a batch is short and over several processes; NaN stays NaN.

    torchmetrics' own mean either drops NaN or, told not to, every weight.
    """

    full_state_update = False

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        """Nothing is added up yet."""
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: float | Tensor) -> None:
        """Add a batch.

        Args:
            loss: Its mean, a scalar.
            weight: Over how many samples.
        """
        self.total += loss * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """Over all batches."""
        return self.total / self.weight


def split_batch(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and labels of a batch.

    Returns:
        A tensor or a mapping of keyword arguments, and the labels [N, ...].

    Raises:
        DataError: The batch is neither a pair nor a mapping with "labels".
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return inputs, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"data: a batch must be (inputs, labels) or hold 'labels', got {type(batch).__name__}"
    )


def scores_of(output: Any) -> Tensor:
    """The scores in what a model returned: itself, or its `logits`."""
    return output if isinstance(output, Tensor) else output.logits


def _keywords(make: MakeOptimizer) -> dict[str, Any]:
    """What a partial has already fixed."""
    return dict(getattr(make, "keywords", {}))


__all__ = ["Task", "scores_of", "split_batch"]
