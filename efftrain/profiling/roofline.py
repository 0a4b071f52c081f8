"""How long a step takes on a machine of which two figures are known.

A layer must do its operations and move its bytes, and is done when the slower of the two is:
max(FLOPs / peak FLOPS, bytes / bandwidth). Where the two are equal lies the machine's ridge point;
a layer with fewer FLOP for each byte is bound by memory, one with more by compute.

The model knows no caches (what a layer finds in one arrives sooner), no time to start an operator,
and no kernel that stays below the peak; docs/roofline.md shows how far off that is.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from efftrain.errors import ConfigError
from efftrain.profiling.layers import Bound
from efftrain.profiling.step_count import Entry, Phase, StepCount
from efftrain.units import MS_PER_S


@dataclass(frozen=True)
class Ceilings:
    """The two figures of a machine.

    Attributes:
        device: Its name, such as "AMD EPYC" or "NVIDIA H100 80GB HBM3".
        threads: Of the CPU; None on an accelerator.
        flops_per_s: The most operations in a second, by data type ("float32", "int8"); a
            multiply-accumulate is two. A type without a figure is not there.
        bytes_per_s: Read and written, from and to main memory.
        source: How they were found.
        measured_on: The day, as 2026-11-24; "" where they were not measured.
        disturbed: Whether other programs had part of the device meanwhile: both figures may then
            be many times too low.
    """

    device: str
    threads: int | None
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    source: str
    measured_on: str = ""
    disturbed: bool = False

    def __post_init__(self) -> None:
        """Refuse what no prediction can be made with."""
        figures = {**self.flops_per_s, "memory": self.bytes_per_s}
        wrong = [name for name, figure in figures.items() if not 0 < figure < float("inf")]
        if wrong:
            raise ConfigError(f"ceilings of {self.device}: {', '.join(wrong)} must be above 0")

    def ridge(self, dtype: str) -> float:
        """FLOP for each byte at which both ceilings take equally long.

        Raises:
            ConfigError: There is no figure for that data type.
        """
        if dtype not in self.flops_per_s:
            raise ConfigError(
                f"no ceiling of {self.device} is known for {dtype}; there are: "
                f"{', '.join(self.flops_per_s) or 'none'}"
            )
        return self.flops_per_s[dtype] / self.bytes_per_s

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `threads` left out where it is None."""
        found: dict[str, Any] = {
            "device": self.device,
            "flops_per_s": dict(self.flops_per_s),
            "bytes_per_s": self.bytes_per_s,
            "source": self.source,
            "measured_on": self.measured_on,
            "disturbed": self.disturbed,
        }
        return found if self.threads is None else {**found, "threads": self.threads}

    @classmethod
    def from_dict(cls, values: Any) -> Ceilings:
        """The ceilings that `to_dict` wrote.

        Raises:
            ConfigError: Something is missing, or is no number.
        """
        try:
            given: dict[str, Any] = dict(values)
            threads = given.get("threads")
            peaks = cast(Mapping[str, Any], given["flops_per_s"])
            return cls(
                device=str(given["device"]),
                threads=None if threads is None else int(threads),
                flops_per_s={str(name): float(peak) for name, peak in peaks.items()},
                bytes_per_s=float(given["bytes_per_s"]),
                source=str(given["source"]),
                measured_on=str(given.get("measured_on", "")),
                disturbed=bool(given.get("disturbed", False)),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"these are no ceilings ({error}): {values!r}") from error


@dataclass(frozen=True)
class LayerTime:
    """Predicted time of one layer, all its calls and phases.

    Attributes:
        predicted_ms: Sum over the phases of the longer of the two.
        compute_ms: Its operations at the peak of their data types.
        memory_ms: Its bytes at the bandwidth.
        bound: What takes the larger part of `predicted_ms`.
    """

    predicted_ms: float
    compute_ms: float
    memory_ms: float
    bound: Bound

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "predicted_ms": self.predicted_ms,
            "compute_ms": self.compute_ms,
            "memory_ms": self.memory_ms,
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Roofline:
    """Predicted time of a step or of an inference pass.

    Attributes:
        layers: By path; "" is what no module but the whole model does. A layer whose time is not
            known is not there.
        phases_ms: Sum over the layers, by phase; a phase with a layer that is not known is not
            there.
        without_ceiling: Operations whose data type has no ceiling, by data type. Those of
            elementwise operators (few for each byte, on any machine) take no time of their own
            beside their bytes; a layer that has products among them is not known.
        unknown: Paths of those layers.
        ceilings: Of the machine.
    """

    layers: dict[str, LayerTime]
    phases_ms: dict[Phase, float]
    without_ceiling: dict[str, int]
    unknown: tuple[str, ...]
    ceilings: Ceilings

    @property
    def predicted_ms(self) -> float | None:
        """Sum over the layers; None where one of them is not known."""
        return None if self.unknown else sum(self.phases_ms.values())

    def to_dict(self) -> dict[str, Any]:
        """The prediction and what it rests on; a sum that is not known is left out."""
        found: dict[str, Any] = {
            "phases_ms": dict(self.phases_ms),
            "layers": {path: time.to_dict() for path, time in self.layers.items()},
            "ceilings": self.ceilings.to_dict(),
            "without_ceiling": dict(self.without_ceiling),
            "unknown": list(self.unknown),
        }
        total = self.predicted_ms
        return found if total is None else {"predicted_ms": total, **found}


def predict(count: StepCount, ceilings: Ceilings) -> Roofline:
    """Predict the time of what was counted.

    Args:
        count: Of an inference pass or of a training step.
        ceilings: Of the machine and, on a CPU, the number of threads that it is to run on.

    Returns:
        The times by layer and by phase.
    """
    parts: dict[tuple[str, Phase], list[Entry]] = defaultdict(list)
    without: dict[str, int] = defaultdict(int)
    unknown: dict[tuple[str, Phase], None] = {}  # a set that keeps its order
    for entry in count.entries:
        parts[entry.path, entry.phase].append(entry)
        if _operations(entry) and entry.dtype not in ceilings.flops_per_s:
            without[entry.dtype] += _operations(entry)
            if entry.macs:
                unknown[entry.path, entry.phase] = None
    unknown_paths = dict.fromkeys(path for path, _ in unknown)
    unknown_phases = {phase for _, phase in unknown}
    layers: dict[str, list[tuple[float, float]]] = defaultdict(list)
    phases_ms: dict[Phase, float] = defaultdict(float)
    for (path, phase), entries in parts.items():
        compute_s = sum(
            _operations(e) / ceilings.flops_per_s[e.dtype]
            for e in entries
            if e.dtype in ceilings.flops_per_s
        )
        memory_s = sum(e.bytes_moved for e in entries) / ceilings.bytes_per_s
        if path not in unknown_paths and max(compute_s, memory_s):
            layers[path].append((compute_s * MS_PER_S, memory_s * MS_PER_S))
        if phase not in unknown_phases:
            phases_ms[phase] += max(compute_s, memory_s) * MS_PER_S
    return Roofline(
        layers={path: _layer_time(times) for path, times in layers.items()},
        phases_ms=dict(phases_ms),
        without_ceiling=dict(without),
        unknown=tuple(unknown_paths),
        ceilings=ceilings,
    )


def _operations(entry: Entry) -> int:
    """On whatever numbers: an integer multiply-accumulate is two, too."""
    return entry.flops + entry.integer_ops


def _layer_time(times: list[tuple[float, float]]) -> LayerTime:
    """From the time to compute and the time to move of each phase."""
    total = sum(max(time) for time in times)
    computing = sum(compute for compute, memory in times if compute > memory)
    return LayerTime(
        predicted_ms=total,
        compute_ms=sum(compute for compute, _ in times),
        memory_ms=sum(memory for _, memory in times),
        bound="compute" if 2 * computing > total else "memory",
    )
