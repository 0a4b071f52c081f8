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
from efftrain.errors import MachineError
from efftrain.peft import Selection, apply, select
from efftrain.task import Task

_GPUS = frozenset({"gpu", "cuda", "mps"})


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
    """Build the model, choose what trains, and make data and task."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = build(config.model, "model")
    peft = config.peft
    selection = select(
        model,
        peft.method,
        head=peft.head,
        include=tuple(peft.include),
        exclude=tuple(peft.exclude),
        also=tuple(peft.also),
        extra_norms=tuple(peft.extra_norms),
        last_k=peft.last_k,
        blocks=peft.blocks,
    )
    apply(model, selection, bn_stats=peft.bn_stats)
    scheduler = None if config.scheduler is None else build(config.scheduler, "scheduler")
    task = build(
        config.task,
        "task",
        model=model,
        selection=selection,
        optimizer=build(config.optim, "optim"),
        scheduler=scheduler,
        rates={"norm": peft.norm_lr, "head": peft.head_lr},
    )
    data = build(config.data, "data")
    adapt(data, model)
    return Parts(model, selection, data, task)


def make_trainer(
    node: DictConfig, callbacks: list[pl.Callback], logger: list[Logger] | bool
) -> pl.Trainer:
    """Build the Trainer.

    Raises:
        MachineError: It asks for a GPU, and there is none.
    """
    if node.get("accelerator") in _GPUS and not torch.accelerator.is_available():
        raise MachineError(f"trainer.accelerator={node.accelerator}: no GPU found; use trainer=cpu")
    return build(node, "trainer", callbacks=callbacks, logger=logger)


def plain(config: DictConfig) -> dict[str, object]:
    """The config with everything resolved, as plain values."""
    values = OmegaConf.to_container(config, resolve=True)
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]
