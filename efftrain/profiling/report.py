"""Everything that is predicted of a model, from one inference pass and one training step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from efftrain.graph.rehearsal import Rehearsal, batch_size, rehearse
from efftrain.graph.trace import Graph, trace_rehearsal
from efftrain.profiling.activations import Activations, activations_of
from efftrain.profiling.layers import Layer, find_layers
from efftrain.profiling.loss import LossFunction
from efftrain.profiling.params import ParameterTotals, Sizes, count_parameters, size_of
from efftrain.profiling.receptive_field import ReceptiveField, receptive_field_of
from efftrain.profiling.saved import Saved
from efftrain.profiling.second_opinion import SecondOpinion, ask_fvcore
from efftrain.profiling.step import OptimizerFactory, StepPeak, run_step
from efftrain.profiling.step_count import StepCount
from efftrain.profiling.step_counter import StepCounter

SCHEMA = 1


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates.

    Attributes:
        forward: Of inference of one sample.
        step: Of a training step on the batch, everything that it runs.
        by_phase: Of that step.
    """

    forward: int
    step: int
    by_phase: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The counts under their JSON keys."""
        return {"forward": self.forward, "step": self.step, "by_phase": dict(self.by_phase)}


@dataclass(frozen=True)
class Flops:
    """Floating point operations of a training step on the batch.

    Attributes:
        forward: Forward and loss.
        backward: Both kinds of gradients, without what is computed again for them.
        recompute: What backward computes again: checkpoints, attention's scores.
        optimizer: The update; None where no optimizer was given.
        step: All of it.
        elementwise: The part of it that is no multiply-accumulate.
    """

    forward: int
    backward: int
    recompute: int
    optimizer: int | None
    step: int
    elementwise: int

    def to_dict(self) -> dict[str, int]:
        """The counts under their JSON keys; the optimizer's left out where there is none."""
        found = {
            "forward": self.forward,
            "backward": self.backward,
            "recompute": self.recompute,
            "step": self.step,
            "elementwise": self.elementwise,
        }
        return found if self.optimizer is None else {**found, "optimizer": self.optimizer}


@dataclass(frozen=True)
class Memory:
    """Memory of a training step on the batch.

    Attributes:
        saved: What autograd keeps from forward until backward.
        peak: What is held at most; without an optimizer, without its state.
    """

    saved: Saved
    peak: StepPeak

    def to_dict(self) -> dict[str, Any]:
        """The bytes under their JSON keys."""
        return {**self.saved.to_dict(), **self.peak.to_dict()}


@dataclass(frozen=True)
class Profile:
    """What a model costs, before it runs.

    Attributes:
        params: Parameters and buffers.
        size: Their bytes.
        macs: Multiply-accumulates.
        flops: Floating point operations.
        activations: Of inference of one sample.
        memory: Of a training step.
        receptive_field: Of the last spatial feature map.
        layers: Modules that compute something themselves.
        inference: The count of inference of one sample, by module and operator.
        training: The count of the step, by module, operator and phase.
        batch_size: Samples of the step.
        second_opinion: fvcore's figures; None where they were not asked for or do not exist.
    """

    params: ParameterTotals
    size: Sizes
    macs: Macs
    flops: Flops
    activations: Activations
    memory: Memory
    receptive_field: ReceptiveField
    layers: tuple[Layer, ...]
    inference: StepCount
    training: StepCount
    batch_size: int
    second_opinion: SecondOpinion | None = None

    @property
    def intensity(self) -> float | None:
        """FLOP for each byte moved, of inference; None where nothing is moved."""
        moved = sum(entry.bytes_moved for entry in self.inference.entries)
        return self.inference.flops() / moved if moved else None

    def to_dict(self) -> dict[str, Any]:
        """Every figure that is known, under its JSON key."""
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "batch_size": self.batch_size,
            "params": self.params.to_dict(),
            "size": self.size.to_dict(),
            "macs": self.macs.to_dict(),
            "flops": self.flops.to_dict(),
            "integer_ops": self.training.integer_ops(),
            "activations": self.activations.to_dict(),
            "memory": self.memory.to_dict(),
            "coverage_pct": self.training.coverage_pct,
            "uncounted": dict(self.training.uncounted),
            "layers": [layer.to_dict() for layer in self.layers],
        }
        if self.intensity is not None:
            found["arithmetic_intensity"] = self.intensity
        if self.receptive_field.status != "unavailable":
            found["receptive_field"] = self.receptive_field.to_dict()
        if self.second_opinion is not None:
            found["second_opinion"] = {"fvcore": self.second_opinion.to_dict()}
        return found


def profile(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    second_opinion: bool = False,
) -> Profile:
    """Predict what a model costs. It is not changed, and runs on shapes alone where it can.

    Args:
        model: With `requires_grad` as it will train and in the modes that it will train in. Meta
            device is enough.
        batch: What the model is called with: a tensor, a sequence of positional arguments or a
            mapping of keyword arguments. The step is that of the whole batch; figures of inference
            are those of its first sample, in eval mode.
        loss_fn: From the model's output to a scalar. Without: the output's own `loss`, or the sum
            of its floating point tensors.
        optimizer: Makes an optimizer from the trainable parameters, such as `torch.optim.AdamW`;
            without, its operations and state are left out.
        second_opinion: Whether to let fvcore count as well; it runs the model, so it needs weights.

    Returns:
        The profile.

    Raises:
        ConfigError: The model asks for values and has none.
    """

    def run(rehearsal: Rehearsal) -> Profile:
        counter = StepCounter(rehearsal)
        graph = trace_rehearsal(rehearsal, counter.on_call)
        step = run_step(rehearsal, loss_fn, optimizer=optimizer, memory=True)
        if step.saved is None or step.peak is None:
            raise TypeError("a step that is run with memory=True shows its memory")
        memory = Memory(step.saved, step.peak)
        inference = counter.result()
        return _assemble(rehearsal, graph, inference, step.count, memory, optimizer is not None)

    found = rehearse(run, model, batch)
    found = replace(found, params=count_parameters(model), batch_size=batch_size(batch))
    found = replace(found, size=size_of(found.params))
    return replace(found, second_opinion=ask_fvcore(model, batch)) if second_opinion else found


def _assemble(
    rehearsal: Rehearsal,
    graph: Graph,
    inference: StepCount,
    training: StepCount,
    memory: Memory,
    optimized: bool,
) -> Profile:
    totals = count_parameters(rehearsal.model)
    activations = activations_of(graph)
    return Profile(
        params=totals,
        size=size_of(totals),
        macs=Macs(inference.macs(), training.macs(), training.macs_by_phase()),
        flops=Flops(
            forward=training.flops("forward"),
            backward=training.flops("backward_inputs", "backward_weights"),
            recompute=training.flops("recompute"),
            optimizer=training.flops("optimizer") if optimized else None,
            step=training.flops(),
            elementwise=training.elementwise(),
        ),
        activations=activations,
        memory=memory,
        receptive_field=receptive_field_of(graph),
        layers=find_layers(graph, inference, activations, _own_parameters(rehearsal.model)),
        inference=inference,
        training=training,
        batch_size=1,
    )


def _own_parameters(model: nn.Module) -> dict[str, int]:
    """Elements of each module's own parameters; a tied one belongs to the first that has it."""
    seen: set[int] = set()
    own: dict[str, int] = {}
    modules: list[tuple[str, nn.Module]] = list(cast(Any, model).named_modules())
    for path, module in modules:
        parameters = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in parameters)
        own[path] = sum(p.numel() for p in parameters)
    return own
