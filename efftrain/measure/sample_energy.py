"""Energy of inference, by the device's own counter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from efftrain.graph.rehearsal import call_arguments, first_sample
from efftrain.measure.device import synchronize
from efftrain.measure.energy_meter import Counter
from efftrain.measure.latency import inference
from efftrain.measure.step_clock import Clock

WINDOW_S = 2.0
"""Counters are refreshed some ten times a second or less, and some sample a part of the time only: a
shorter window says little (Yang, Adamek and Armour, arXiv 2312.02741)."""

MJ_PER_J = 1000.0


@dataclass(frozen=True)
class SampleEnergy:
    """Measured energy of inference, what else ran on the device included.

    Attributes:
        sample_mj: Of one sample at a time.
        samples: Over which that is the mean.
        seconds: That they took.
        sources: Of the counters.
    """

    sample_mj: float
    samples: int
    seconds: float
    sources: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "sources": list(self.sources)}


def measure_sample_energy(
    model: nn.Module,
    batch: Any,
    counters: Sequence[Counter],
    *,
    window_s: float = WINDOW_S,
    clock: Clock = time.perf_counter,
) -> SampleEnergy | None:
    """Run one sample again and again for a while, and divide what the counters have counted.

    Args:
        model: With weights, on the device that the counters belong to; left in its modes.
        batch: What it is called with; the first sample is used.
        counters: From `find_counters`.
        window_s: How long.
        clock: Seconds, monotonic.

    Returns:
        The mean; None where there is no counter.

    Raises:
        ConfigError: A model without values (meta).
        MachineError: A counter can no longer be read.
    """
    if not counters:
        return None
    with inference(model, batch) as (device, batch):
        args, kwargs = call_arguments(first_sample(batch))
        model(*args, **kwargs)
        synchronize(device)
        before_j, began, samples = sum(counter.read_j() for counter in counters), clock(), 0
        while clock() - began < window_s or not samples:
            model(*args, **kwargs)
            synchronize(device)
            samples += 1
        seconds = clock() - began
        spent_j = sum(counter.read_j() for counter in counters) - before_j
    sources = tuple(counter.source for counter in counters)
    return SampleEnergy(MJ_PER_J * spent_j / samples, samples, seconds, sources)
