"""From a checked config to the parts of a run, in the order in which they depend on each other."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from efftrain.config.build import build
from efftrain.data.adapt import adapt
from efftrain.errors import ConfigError, MachineError
from efftrain.jobs.memory import reduce
from efftrain.jobs.selection import choose, forward_on
from efftrain.peft import Selection
from efftrain.task import Task

_GPUS = frozenset({"gpu", "cuda", "mps"})
_CASTS_ALL = frozenset({"bf16-true", "16-true"})


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        model: With the selection applied.
        selection: What trains.
        data: Loaders of training and held-out batches.
        task: Ties them together for Lightning.
    """

    model: nn.Module
    selection: Selection
    data: pl.LightningDataModule
    task: Task


def assemble(config: DictConfig) -> Parts:
    """Build the model, choose what trains and what it keeps, and make data and task."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = build(config.model, "model")
    data = build(config.data, "data")
    adapt(data, model)
    selection = choose(model, config.peft, forward_on(data))
    reduce(model, config.get("memory"))
    return Parts(model, selection, data, make_task(config, model, selection))


def make_task(config: DictConfig, model: nn.Module, selection: Selection) -> Task:
    """Build what ties a model to its loss, its metrics and its optimizer."""
    return build(
        config.task,
        "task",
        model=model,
        selection=selection,
        optimizer=build(config.optim, "optim"),
        scheduler=build(config.scheduler, "scheduler") if config.get("scheduler") else None,
        rates={"norm": config.peft.norm_lr, "head": config.peft.head_lr},
    )


def make_trainer(
    node: DictConfig, callbacks: list[pl.Callback], logger: list[Logger] | bool
) -> pl.Trainer:
    """Build the Trainer.

    Raises:
        MachineError: It asks for a GPU, and there is none.
        ConfigError: It would cast the whole model, and with it the norms that train in float32.
    """
    if str(node.get("precision")) in _CASTS_ALL:
        raise ConfigError(
            f"trainer.precision={node.precision} casts the norms that train as well, and small steps"
            " are then rounded away; use bf16-mixed, or load the model in low precision by model.dtype"
        )
    if node.get("accelerator") in _GPUS and not torch.accelerator.is_available():
        raise MachineError(f"trainer.accelerator={node.accelerator}: no GPU found; use trainer=cpu")
    return build(node, "trainer", callbacks=callbacks, logger=logger)


def plain(config: DictConfig) -> dict[str, object]:
    """The config with everything resolved, as plain values."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict), "a DictConfig becomes a dict"
    return {str(key): value for key, value in values.items()}
