"""Bringing together what the processes of a run have measured."""

from __future__ import annotations

import math
from collections.abc import Iterable

import lightning.pytorch as pl
import torch


def gather(trainer: pl.Trainer, values: list[float | None]) -> list[list[float]]:
    """The values of every process, each in its own list; what a process does not know is NaN.

    All processes have to call this, at the same step.
    """
    mine = [math.nan if value is None else value for value in values]
    if trainer.world_size == 1:
        return [mine]
    device = trainer.strategy.root_device
    return trainer.strategy.all_gather(
        torch.tensor(mine, dtype=torch.float64, device=device)
    ).tolist()


def largest(values: Iterable[float]) -> float | None:
    """The largest of those that are known."""
    return max((value for value in values if not math.isnan(value)), default=None)
