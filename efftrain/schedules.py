"""Learning rate schedules, as factors on each parameter group's own rate.

A factor keeps the ratio between the groups, which `OneCycleLR` with its single maximum does not.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.1, floor: float = 0.0
) -> LambdaLR:
    """Rise linearly, then fall along half a cosine.

    Args:
        optimizer: Its groups' rates are the maxima.
        total_steps: Optimizer steps of the whole run.
        warmup: Share of the steps that rise, from 0 to 1.
        floor: Share of the rate that is left at the end, from 0 to 1.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts
    """
    warmup_steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int, warmup: float = 0.0) -> LambdaLR:
    """Rise linearly, then stay.

    Args:
        optimizer: Its groups' rates are the final ones.
        total_steps: Optimizer steps of the whole run.
        warmup: Share of the steps that rise, from 0 to 1.
    """
    warmup_steps = round(warmup * total_steps)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))
