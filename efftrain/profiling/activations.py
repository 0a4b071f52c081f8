"""How many numbers inference of one sample makes, and how many it needs at once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from efftrain.graph.liveness import Schedule, schedule
from efftrain.graph.trace import Graph, trace
from efftrain.profiling.products import PRODUCTS

# Not matrix products or convolutions, though counted as multiply-accumulates.
_OTHERS = {"_cdist_forward", "_euclidean_dist", "_trilinear"}


@dataclass(frozen=True)
class Alive:
    """A tensor that is needed at the peak.

    Attributes:
        path: Module that made it, or "input".
        operator: That made it; "" for the model's input.
        elements: How many.
    """

    path: str
    operator: str
    elements: int


@dataclass(frozen=True)
class Activations:
    """Activations of one sample at inference, in elements.

    Attributes:
        total: The input and the output of every layer, each tensor once. A norm or activation
            function belongs to the layer before it, where nothing else reads that layer's output;
            a sum of two tensors is a layer, and is written over one of them.
        peak: The most that is alive at one layer: what it reads and writes, and what a later one
            still needs.
        peak_layer: Path of the module where that is.
        alive_at_peak: The tensors that are alive there.
        unfused_total: As `total`, with norms and activation functions that do not work in place.
        unfused_peak: As `peak`, as the operations stand.
        conv_linear: Outputs of convolutions, linear layers and matrix products alone: what fvcore's
            ActivationCountAnalysis counts, and timm as `infer_macts`.
        by_module: `total` by path of the innermost module.
    """

    total: int
    peak: int
    peak_layer: str
    alive_at_peak: tuple[Alive, ...]
    unfused_total: int
    unfused_peak: int
    conv_linear: int
    by_module: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The figures under their JSON keys."""
        return {
            "total": self.total,
            "peak": self.peak,
            "peak_layer": self.peak_layer,
            "unfused_total": self.unfused_total,
            "unfused_peak": self.unfused_peak,
            "conv_linear": self.conv_linear,
        }


def count_activations(model: nn.Module, batch: Any) -> Activations:
    """Count the activations of inference on the first sample of a batch.

    Args:
        model: Meta device is enough; taken in eval mode, left in its own.
        batch: A tensor, a sequence of positional arguments or a mapping of keyword arguments.

    Returns:
        The counts.

    Raises:
        ConfigError: The model asks for values and has none.
    """
    return activations_of(trace(model, batch))


def activations_of(graph: Graph) -> Activations:
    """Count the activations of a traced forward pass; see `count_activations`."""
    fused, plain = schedule(graph), schedule(graph, fused=False)
    step = fused.peak()
    alive = [Alive(b.path, b.operator, b.elements) for b in fused.alive(step)]
    by_module = _by_module(fused)
    return Activations(
        total=sum(by_module.values()),
        peak=sum(each.elements for each in alive),
        peak_layer=fused.steps[step].path if fused.steps else "",
        alive_at_peak=tuple(alive),
        unfused_total=sum(_by_module(plain).values()),
        unfused_peak=sum(buffer.elements for buffer in plain.alive(plain.peak())),
        conv_linear=sum(
            graph.values[operation.outputs[0]].elements
            for operation in graph.operations
            if operation.operator.name in PRODUCTS.keys() - _OTHERS
        ),
        by_module=by_module,
    )


def _by_module(plan: Schedule) -> dict[str, int]:
    totals: dict[str, int] = defaultdict(int)
    for buffer in plan.buffers:
        totals[buffer.path] += buffer.elements
    making = {buffer.first for buffer in plan.buffers}
    for number, step in enumerate(plan.steps):
        if step.adds and number not in making:  # a sum that was written over one of its terms
            totals[step.path] += step.adds
    return dict(totals)
