"""Everything that is predicted of a model, from one inference pass and one training step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from efftrain.graph.rehearsal import Rehearsal, batch_size, rehearse
from efftrain.graph.trace import Graph, trace_rehearsal
from efftrain.profiling.activations import Activations, activations_of
from efftrain.profiling.diff import ProfileDiff, diff_profiles
from efftrain.profiling.energy import Energy, estimate_energy
from efftrain.profiling.layers import Layer, find_layers
from efftrain.profiling.loss import LossFunction
from efftrain.profiling.params import ParameterTotals, Sizes, count_parameters, size_of
from efftrain.profiling.receptive_field import ReceptiveField, receptive_field_of
from efftrain.profiling.roofline import Ceilings, Roofline, predict
from efftrain.profiling.second_opinion import SecondOpinion, ask_fvcore
from efftrain.profiling.step import OptimizerFactory, run_step
from efftrain.profiling.step_count import StepCount
from efftrain.profiling.step_counter import StepCounter
from efftrain.profiling.stored import parameter_elements
from efftrain.profiling.totals import Flops, Macs, Memory

SCHEMA = 1


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
        types: Class of every module, by path.
        inference: The count of inference of one sample, by module and operator.
        training: The count of the step, by module, operator and phase.
        batch_size: Samples of the step.
        latency: Predicted time of inference of one sample; None where no machine was given.
        step_latency: Predicted time of the step; None where no machine was given.
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
    types: dict[str, str]
    inference: StepCount
    training: StepCount
    batch_size: int
    latency: Roofline | None = None
    step_latency: Roofline | None = None
    second_opinion: SecondOpinion | None = None

    @property
    def energy(self) -> Energy:
        """Estimated energy of inference of one sample."""
        return estimate_energy(self.inference)

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
        if self.energy.estimated_mj is not None:
            found["energy"] = self.energy.to_dict()
        if self.receptive_field.status != "unavailable":
            found["receptive_field"] = self.receptive_field.to_dict()
        if self.latency is not None and self.step_latency is not None:
            times = {
                "predicted_ms": self.latency.predicted_ms,
                "step_predicted_ms": self.step_latency.predicted_ms,
            }
            found["latency"] = {name: ms for name, ms in times.items() if ms is not None}
            found["roofline"] = {
                "ceilings": self.latency.ceilings.to_dict(),
                "without_ceiling": dict(self.latency.without_ceiling),
                "unknown": list(self.latency.unknown),
            }
        if self.second_opinion is not None:
            found["second_opinion"] = {"fvcore": self.second_opinion.to_dict()}
        return found

    def on(self, ceilings: Ceilings) -> Profile:
        """The same profile with the times that a machine of these ceilings needs.

        Args:
            ceilings: Such as `efftrain.measure.ceilings.load_or_measure()` gives.
        """
        latency = predict(self.inference, ceilings)
        layers = (
            replace(layer, bound=time.bound, predicted_ms=time.predicted_ms)
            if (time := latency.layers.get(layer.path)) is not None
            else replace(layer, bound=None, predicted_ms=None)
            for layer in self.layers
        )
        return replace(
            self,
            latency=latency,
            step_latency=predict(self.training, ceilings),
            layers=tuple(layers),
        )

    def diff(
        self, other: Profile, measured_step_ms: tuple[float, float] | None = None
    ) -> ProfileDiff:
        """What another model, another choice of what trains or another way to run it changes.

        Args:
            other: The profile after the change. Both have predicted times where both went through
                `on` with the same ceilings.
            measured_step_ms: Measured time of a step before and after, to stand beside the
                predicted one.

        Returns:
            Totals, layers and the reasons.
        """
        return diff_profiles(self, other, measured_step_ms)


def profile(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    autocast: torch.dtype | None = None,
    ceilings: Ceilings | None = None,
    second_opinion: bool = False,
    shapes_only: bool = False,
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
        autocast: Low precision of the step, as `torch.autocast` and Lightning's "bf16-mixed" have
            it; None for that of the parameters. Inference is counted in theirs.
        ceilings: Of the machine whose times are to be predicted.
        second_opinion: Whether to let fvcore count as well; it runs the model, so it needs weights.
        shapes_only: Whether never to run with values, which takes the memory and the time of a real
            step once more.

    Returns:
        The profile.

    Raises:
        ConfigError: The model asks for values and has none, or only shapes were allowed.
    """

    def run(rehearsal: Rehearsal) -> Profile:
        counter = StepCounter(rehearsal)
        graph = trace_rehearsal(rehearsal, counter.on_call)
        step = run_step(rehearsal, loss_fn, optimizer=optimizer, memory=True, autocast=autocast)
        if step.saved is None or step.peak is None:
            raise TypeError("a step that is run with memory=True shows its memory")
        memory = Memory(step.saved, step.peak)
        inference = counter.result()
        return _assemble(rehearsal, graph, inference, step.count, memory, optimizer is not None)

    found = rehearse(run, model, batch, shapes_only=shapes_only)
    found = replace(found, params=count_parameters(model), batch_size=batch_size(batch))
    found = replace(found, size=size_of(found.params))
    if ceilings is not None:
        found = found.on(ceilings)
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
        types=graph.types,
        inference=inference,
        training=training,
        batch_size=1,
    )


def _own_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Elements of each module's own parameters, and of those that train.

    A tied one belongs to the first that has it.
    """
    seen: set[int] = set()
    own: dict[str, tuple[int, int]] = {}
    modules: list[tuple[str, nn.Module]] = list(cast(Any, model).named_modules())
    for path, module in modules:
        parameters = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in parameters)
        trained = sum(parameter_elements(p) for p in parameters if p.requires_grad)
        own[path] = sum(map(parameter_elements, parameters)), trained
    return own
