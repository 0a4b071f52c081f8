"""Rehearsing the very step that a Trainer is about to make, on shapes alone."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from efftrain.errors import ConfigError
from efftrain.profiling import Profile, profile
from efftrain.profiling.roofline import Ceilings
from efftrain.task import Task, scores_of, split_batch
from efftrain.units import MIB

_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MOST_COPIED_BYTES = 512 * MIB
"""Weights up to which a model that asks for values may be run with them, on a copy."""


@dataclass(frozen=True)
class StepParts:
    """What `profile` takes.

    Attributes:
        model: What is called.
        batch: What it is called with.
        loss_fn: From its output to a scalar.
    """

    model: nn.Module
    batch: Any
    loss_fn: Callable[[Any], Tensor]


class WholeStep(nn.Module):
    """A LightningModule's `training_step` as a forward pass, where its parts are not known.

    Args:
        module: The LightningModule.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        """Nothing is called yet."""
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Any:
        """Call it, as it is written: a compiled one on the instance belongs to the original."""
        for name in ("forward", "training_step"):
            vars(self.module).pop(name, None)
        return cast(Any, self.module).training_step(batch, 0)


def predict_step(
    trainer: pl.Trainer, module: pl.LightningModule, batch: Any, ceilings: Ceilings | None = None
) -> Profile:
    """Predict the cost of training on a batch, with this freezing, precision and optimizer.

    Args:
        trainer: With its optimizers made.
        module: Left as it is; a `Task` by its model and loss, another by its `training_step`.
        batch: On the device.
        ceilings: Of the machine, where times are to be predicted.

    Raises:
        ConfigError: The parameters are not whole on this device, or the batches of processes are
            brought together within the step; or the model cannot be run on shapes.
    """
    _refuse_what_spans_processes(trainer, module)
    precision = str(trainer.precision)
    if precision not in _AUTOCAST:
        raise ConfigError(f"trainer.precision={precision}: its steps cannot be predicted")
    parts = find_parts(module, batch)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    with _kept_gradients(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the step itself says them again
        return profile(
            parts.model,
            parts.batch,
            parts.loss_fn,
            optimizer=find_optimizer(trainer.optimizers),
            autocast=_AUTOCAST[precision],
            ceilings=ceilings,
            shapes_only=weights > MOST_COPIED_BYTES,
        )


def find_parts(module: pl.LightningModule, batch: Any) -> StepParts:
    """A step's model, batch and loss."""
    if not isinstance(module, Task):
        return StepParts(WholeStep(module), (batch,), _loss_of_step)
    task = module
    inputs, labels = split_batch(batch)
    loss = copy.deepcopy(task.loss).requires_grad_(False)

    def loss_fn(output: Any) -> Tensor:
        return loss(*task.align(scores_of(output), labels))

    inputs = inputs if isinstance(inputs, (Tensor, Mapping)) else (inputs,)
    return StepParts(task.model, inputs, loss_fn)


def find_optimizer(
    optimizers: Iterable[Optimizer],
) -> Callable[[Iterable[nn.Parameter]], Optimizer] | None:
    """What makes an optimizer like the Trainer's; None for several, or for one that runs the step."""
    optimizers = list(optimizers)
    if len(optimizers) != 1:
        return None
    kind: Any = type(optimizers[0])
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        return None
    accepted = inspect.signature(kind).parameters
    options = {name: v for name, v in optimizers[0].defaults.items() if name in accepted}
    return lambda parameters: kind(parameters, **options)


def _loss_of_step(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ConfigError("its training_step returned no loss")
    return loss


def _refuse_what_spans_processes(trainer: pl.Trainer, module: nn.Module) -> None:
    if isinstance(trainer.strategy, _SHARDED):
        raise ConfigError(f"{type(trainer.strategy).__name__} shares the parameters out")
    synced = any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())
    if synced and trainer.world_size > 1:
        raise ConfigError("SyncBatchNorm waits for the other processes")


@contextmanager
def _kept_gradients(module: nn.Module) -> Generator[None, None, None]:
    """Whatever runs, the parameters have the gradients that they had."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in before:
            if parameter.grad is not gradient:
                parameter.grad = gradient
