"""What a step costs, counted by module, by operator and by phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from efftrain.units import FLOPS_PER_MAC

Phase = Literal["forward", "backward_inputs", "backward_weights", "recompute", "optimizer"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Entry:
    """Calls of one operator by one module in one phase, in one precision.

    Attributes:
        path: Innermost module; "" is the model itself, or code outside any module (the loss).
        operator: Such as `convolution`.
        phase: Part of the step. A call that makes both gradients of a layer stands in two entries.
        dtype: What it computes with: "float32"; "" for a call without tensors.
        calls: How often.
        macs: Multiply-accumulates.
        flops: 2 x MACs + elementwise, of calls on floating point numbers.
        elementwise: Operations other than multiply-accumulates, of calls on floating point numbers.
        integer_ops: All operations of the other calls; a multiply-accumulate is two.
        bytes_moved: Of the tensors that were read and written, views left out. A call that stands
            in two entries moves them in the first.
    """

    path: str
    operator: str
    phase: Phase
    dtype: str
    calls: int
    macs: int
    flops: int
    elementwise: int
    integer_ops: int
    bytes_moved: int


@dataclass(frozen=True)
class StepCount:
    """Everything that a step computes.

    Attributes:
        entries: One for each module, operator, phase and precision.
        uncounted: Operators without a formula, and the elements that they produced.
        counted_elements: Elements that operators with a formula produced.
        values: Whether the run needed values; otherwise shapes were enough.
    """

    entries: tuple[Entry, ...]
    uncounted: dict[str, int]
    counted_elements: int
    values: bool

    @property
    def coverage_pct(self) -> float:
        """100 x computed elements whose operator has a formula / all computed elements."""
        missing = sum(self.uncounted.values())
        every = self.counted_elements + missing
        return 100 * self.counted_elements / every if every else 100.0

    def macs(self, *phases: Phase) -> int:
        """Multiply-accumulates of some phases; of all without a name."""
        return sum(e.macs for e in self._of(phases))

    def flops(self, *phases: Phase) -> int:
        """Floating point operations of some phases; of all without a name."""
        return sum(e.flops for e in self._of(phases))

    def elementwise(self, *phases: Phase) -> int:
        """Floating point operations that are no multiply-accumulates."""
        return sum(e.elementwise for e in self._of(phases))

    def integer_ops(self, *phases: Phase) -> int:
        """Operations on integers and booleans."""
        return sum(e.integer_ops for e in self._of(phases))

    def macs_by_module(self, *phases: Phase) -> dict[str, int]:
        """By path, those of a module's children in its own figure; "" is everything."""
        totals: dict[str, int] = defaultdict(int)
        for entry in self._of(phases):
            for path in _and_parents(entry.path):
                totals[path] += entry.macs
        return dict(totals)

    def macs_by_operator(self, *phases: Phase) -> dict[str, int]:
        """By operator, those without multiply-accumulates left out."""
        return self._grouped(phases, lambda entry: entry.operator)

    def macs_by_phase(self) -> dict[str, int]:
        """Every phase."""
        return {phase: self.macs(phase) for phase in PHASES}

    def to_dict(self) -> dict[str, Any]:
        """MACs, FLOPs and coverage; `backward` is without what is computed again."""
        backward: tuple[Phase, ...] = ("backward_inputs", "backward_weights")
        return {
            "macs": {"step": self.macs(), **self.macs_by_phase(), "backward": self.macs(*backward)},
            "flops": {
                "step": self.flops(),
                **{phase: self.flops(phase) for phase in PHASES},
                "backward": self.flops(*backward),
                "elementwise": self.elementwise(),
            },
            "integer_ops": self.integer_ops(),
            "coverage_pct": self.coverage_pct,
            "uncounted": dict(self.uncounted),
        }

    def _of(self, phases: tuple[Phase, ...]) -> list[Entry]:
        return [e for e in self.entries if not phases or e.phase in phases]

    def _grouped(self, phases: tuple[Phase, ...], key: Callable[[Entry], str]) -> dict[str, int]:
        totals: dict[str, int] = defaultdict(int)
        for entry in self._of(phases):
            if entry.macs:
                totals[key(entry)] += entry.macs
        return dict(totals)


class Tally:
    """Adds up entries while a step runs."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._sums: dict[tuple[str, str, Phase, str], list[int]] = {}

    def add(
        self,
        path: str,
        operator: str,
        phase: Phase,
        dtype: str,
        macs: int,
        other: int,
        floats: bool,
        moved: int,
    ) -> None:
        """Add one call."""
        sums = self._sums.setdefault((path, operator, phase, dtype), [0] * 6)
        operations = FLOPS_PER_MAC * macs + other
        sums[0] += 1
        sums[1] += macs
        sums[2] += operations * floats
        sums[3] += other * floats
        sums[4] += operations * (not floats)
        sums[5] += moved

    def entries(self) -> tuple[Entry, ...]:
        """In the order in which they first ran."""
        return tuple(Entry(*key, *sums) for key, sums in self._sums.items())


def _and_parents(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]
