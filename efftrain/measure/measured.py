"""What a model costs when it really runs, to stand beside its profile."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from efftrain.measure.latency import Latency
from efftrain.measure.sample_energy import SampleEnergy
from efftrain.measure.throughput import ThroughputSweep
from efftrain.profiling import Profile


@dataclass(frozen=True)
class Measured:
    """Figures of a model on this machine.

    Attributes:
        latency: Inference of one sample.
        throughput: Inference at several batch sizes.
        step: A training step on the batch; None where nothing trains.
        layers_ms: Inference of one sample by module.
        energy: Of inference; None where the device has no counter that can be read.
    """

    latency: Latency
    throughput: ThroughputSweep
    step: Latency | None
    layers_ms: dict[str, float]
    energy: SampleEnergy | None = None

    def layer_error_pct(self, profile: Profile) -> float | None:
        """How far the predicted times of the layers are off.

        Args:
            profile: Of the same model, with predicted times.

        Returns:
            Median over the layers of 100 x |predicted - measured| / measured; None where none was
            predicted.
        """
        errors = [
            100 * abs(layer.predicted_ms - taken_ms) / taken_ms
            for layer in profile.layers
            if layer.predicted_ms is not None and (taken_ms := self.layers_ms.get(layer.path))
        ]
        return statistics.median(errors) if errors else None

    def to_dict(self) -> dict[str, Any]:
        """The figures under their JSON keys; a step that was not run is left out."""
        found: dict[str, Any] = {
            "latency": self.latency.to_dict(),
            "throughput": self.throughput.to_dict(),
            "layers_ms": dict(self.layers_ms),
        }
        if self.energy is not None:
            found["energy"] = self.energy.to_dict()
        return found if self.step is None else {**found, "step": self.step.to_dict()}
