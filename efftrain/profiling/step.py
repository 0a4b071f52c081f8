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
from efftrain.profiling.live_memory import LiveMemory
from efftrain.profiling.loss import LossFunction, loss_of
from efftrain.profiling.peak import StepPeak
from efftrain.profiling.saved import Saved, SavedRecorder
from efftrain.profiling.step_count import StepCount
from efftrain.profiling.step_counter import StepCounter
from efftrain.profiling.storage_bytes import memory_bytes

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


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
        autocast: Low precision that forward and loss are cast to, such as `torch.bfloat16`; None
            for that of the parameters.

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

    if memory:
        live.follow_gradients(parameters)
    state_bytes = 0
    with torch.enable_grad(), Observer(listen):
        with recorder.hooks() if memory else nullcontext(), _autocast(parameters, autocast):
            loss = loss_of(rehearsal.forward(), loss_fn)
        saved = recorder.result() if memory else None
        if loss is not None and loss.requires_grad:
            torch.autograd.backward(loss)
        del loss
        backward = live.peaks
        gradients = memory_bytes([p.grad for p in parameters if p.grad is not None])
        if optimizer is not None:
            counter.optimizing = True
            updating = optimizer([p for p in parameters if p.requires_grad])
            updating.step()
            state = tree_leaves(list(updating.state.values()))
            state_bytes = memory_bytes([t for t in state if isinstance(t, Tensor)])
    if not memory:
        return Step(counter.result(), None, None)
    # the first step makes the state at its end; later ones find it there from the start
    peaks = live.peaks.at_least(backward.above(state_bytes))
    there = [memory_bytes(parameters), memory_bytes(buffers), memory_bytes(batch)]
    peak = StepPeak(
        step_peak_bytes=sum(there) + peaks.held,
        scratch_bytes=peaks.held - peaks.tensors,
        parameter_bytes=there[0],
        buffer_bytes=there[1],
        batch_bytes=there[2],
        gradient_bytes=gradients,
        optimizer_bytes=state_bytes,
        working_peak_bytes=peaks.without_gradients - state_bytes,
    )
    return Step(counter.result(), saved, peak)


def _autocast(
    parameters: list[nn.Parameter], dtype: torch.dtype | None
) -> AbstractContextManager[object]:
    """As Lightning's mixed precision: a weight is cast anew each time that it is used."""
    if dtype is None:
        return nullcontext()
    device = parameters[0].device.type if parameters else "cpu"
    return torch.autocast(device, dtype, cache_enabled=False)
