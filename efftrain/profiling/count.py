"""Count a training step by running it: forward, loss, backward and, on request, the optimizer.

What the step does is counted as it is: frozen layers, checkpointing, adapters, tied weights,
functional calls. The design is that of torch.utils.flop_counter (a dispatch mode below autograd);
the formulas that are wrong or missing there are repaired here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from efftrain.graph.observer import Observer
from efftrain.graph.rehearsal import Rehearsal, rehearse
from efftrain.profiling.loss import LossFunction
from efftrain.profiling.step import OptimizerFactory, run_step
from efftrain.profiling.step_count import StepCount
from efftrain.profiling.step_counter import StepCounter


def count_step(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    values: bool = False,
) -> StepCount:
    """Count one training step, in the modes that the model is in. Nothing is changed.

    Args:
        model: With `requires_grad` as it will train; meta device is enough.
        batch: What the model is called with: a tensor, a sequence of positional arguments or a
            mapping of keyword arguments. Meta tensors are enough.
        loss_fn: From the model's output to a scalar. Without: the output's own `loss`, or the sum
            of its floating point tensors.
        optimizer: Makes an optimizer from the trainable parameters; without, its step is left out.
        values: Whether to run on a copy with values at once; otherwise only where it must.

    Returns:
        The counts. Backward is counted as far as it runs: nothing where nothing is trainable.

    Raises:
        ConfigError: The model cannot be run on shapes alone and has no values.
    """
    return rehearse(
        lambda rehearsal: run_step(rehearsal, loss_fn, optimizer=optimizer).count,
        model,
        batch,
        values=values,
    )


def count_forward(model: nn.Module, batch: Any, *, values: bool = False) -> StepCount:
    """Count one forward pass without gradients, in the modes that the model is in.

    Args:
        model: Meta device is enough.
        batch: As for `count_step`.
        values: As for `count_step`.

    Returns:
        The counts, all of them in the forward phase.
    """

    def run(rehearsal: Rehearsal) -> StepCount:
        counter = StepCounter(rehearsal)
        with torch.no_grad(), Observer(counter.on_call):
            rehearsal.forward()
        return counter.result()

    return rehearse(run, model, batch, values=values)
