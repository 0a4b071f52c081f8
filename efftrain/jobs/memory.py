"""From group `memory` of a config to a model that keeps less for backward."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import nn

from efftrain.memory import GradientCheck, MemoryReport, check_gradients, reduce_memory
from efftrain.memory.kernels import set_backend
from efftrain.task import Task, scores_of, split_batch

_log = logging.getLogger(__name__)


def reduce(model: nn.Module, memory: DictConfig | None) -> MemoryReport | None:
    """Let a model keep what its mode says.

    Args:
        model: With what trains chosen. Changed in place.
        memory: Checked against `MemoryConfig`; None in the config of a run from before it.

    Returns:
        What was done; None for `off`.
    """
    if memory is None or memory.mode == "off":
        return None
    set_backend(memory.kernels)
    report = reduce_memory(model, memory.mode)
    _log.info(str(report))
    return report


def check_first_batch(task: Task, data: pl.LightningDataModule, device: str) -> GradientCheck:
    """Compare a reduced model's gradients with plain autograd's on a training batch.

    Args:
        task: Its model and loss; the model comes back on the CPU, unchanged.
        data: Loaders.
        device: Where the model will train.

    Raises:
        NumericError: They differ.
    """
    data.setup("fit")
    inputs, labels = split_batch(next(iter(data.train_dataloader())))
    place = torch.device(device)
    if isinstance(inputs, Mapping):
        inputs = {name: tensor.to(place) for name, tensor in inputs.items()}
    else:
        inputs = inputs.to(place)
    labels = labels.to(place)
    model = task.model.to(place)
    try:
        return check_gradients(
            model, inputs, lambda out: task.loss(*task.align(scores_of(out), labels))
        )
    finally:
        model.cpu()
