"""One training step of a rehearsal, with everything that is read off it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efftrain.graph.observer import Call, Observer
from efftrain.graph.rehearsal import Rehearsal
from efftrain.profiling.live_memory import LiveMemory, memory_bytes
from efftrain.profiling.loss import LossFunction, loss_of
from efftrain.profiling.saved import Saved, SavedRecorder
from efftrain.profiling.step_count import StepCount
from efftrain.profiling.step_counter import StepCounter

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class StepPeak:
    """Memory of a step, in bytes.

    Attributes:
        step_peak_bytes: The most that is held at any moment: parameters, buffers, the batch,
            optimizer state, and what the step makes (activations, gradients, temporaries) while it
            is alive. Gradients are freed before each step (`zero_grad`'s default).
        parameter_bytes: Of all parameters.
        buffer_bytes: Of the buffers.
        batch_bytes: Of the model's input.
        gradient_bytes: Of the gradients after backward.
        optimizer_bytes: Of the optimizer's state, which is there from the second step on.
    """

    step_peak_bytes: int
    parameter_bytes: int
    buffer_bytes: int
    batch_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    def to_dict(self) -> dict[str, int]:
        """The figures by name."""
        return {
            "step_peak_bytes": self.step_peak_bytes,
            "parameter_bytes": self.parameter_bytes,
            "buffer_bytes": self.buffer_bytes,
            "batch_bytes": self.batch_bytes,
            "gradient_bytes": self.gradient_bytes,
            "optimizer_bytes": self.optimizer_bytes,
        }


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """As Lightning's mixed precision has it; a rehearsal runs on the CPU, also for a GPU."""
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


@dataclass(frozen=True)
class Step:
    """What a step showed.

    Attributes:
        count: What it computes.
        saved: What autograd keeps; None where that was not asked for.
        peak: What it holds at most; None where that was not asked for.
    """

    count: StepCount
    saved: Saved | None
    peak: StepPeak | None


def run_step(
    rehearsal: Rehearsal,
    loss_fn: LossFunction | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    memory: bool = False,
    autocast: torch.dtype | None = None,
) -> Step:
    """Run forward, loss, backward and, where one is given, the optimizer.

    Args:
        rehearsal: A private copy of a model and its batch.
        loss_fn: From the model's output to a scalar; see `loss_of`.
        optimizer: Makes an optimizer from the trainable parameters.
        memory: Whether to follow what is kept and held, too.
        autocast: Low precision of forward and loss; None for that of the parameters.

    Returns:
        What the step showed.
    """
    model = rehearsal.model
    parameters, buffers = list(model.parameters()), list(model.buffers())
    batch = [t for t in tree_leaves((rehearsal.args, rehearsal.kwargs)) if isinstance(t, Tensor)]
    counter, recorder = StepCounter(rehearsal), SavedRecorder(rehearsal)
    live = LiveMemory([*parameters, *buffers, *batch])

    def listen(call: Call) -> None:
        counter.on_call(call)
        if memory:
            recorder.on_call(call)
            live.on_call(call)

    state_bytes = 0
    with torch.enable_grad(), Observer(listen):
        with recorder.hooks() if memory else nullcontext(), _autocast(autocast):
            loss = loss_of(rehearsal.forward(), loss_fn)
        saved = recorder.result() if memory else None
        if loss is not None and loss.requires_grad:
            torch.autograd.backward(loss)
        del loss
        backward_peak = live.peak_bytes
        gradients = memory_bytes([p.grad for p in parameters if p.grad is not None])
        if optimizer is not None:
            counter.optimizing = True
            updating = optimizer([p for p in parameters if p.requires_grad])
            updating.step()
            state = tree_leaves(list(updating.state.values()))
            state_bytes = memory_bytes([t for t in state if isinstance(t, Tensor)])
    if not memory:
        return Step(counter.result(), None, None)
    there = [memory_bytes(parameters), memory_bytes(buffers), memory_bytes(batch)]
    peak = StepPeak(
        # the first step makes the state at its end; later ones find it there from the start
        step_peak_bytes=sum(there) + max(backward_peak + state_bytes, live.peak_bytes),
        parameter_bytes=there[0],
        buffer_bytes=there[1],
        batch_bytes=there[2],
        gradient_bytes=gradients,
        optimizer_bytes=state_bytes,
    )
    return Step(counter.result(), saved, peak)
