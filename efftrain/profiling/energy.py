"""Energy of a step, estimated from its operations and its memory traffic.

Always an estimate: no chip of today is built in this process, and the model has two terms only. It
says which of two networks needs less and why (moving a byte costs as much as 35 float32
multiply-accumulates), not what a meter will show.

In pJ, at 45 nm and 0.9 V:

| operation | int8 | int32 | float16 | float32 |
| --- | --- | --- | --- | --- |
| add | 0.03 | 0.1 | 0.4 | 0.9 |
| multiply | 0.2 | 3.1 | 1.1 | 3.7 |

and 1300 to 2600 for 64 bits from DRAM. Assumptions:

- Each byte that an operator reads or writes crosses to DRAM once, at the lower of the two figures;
  there is no term for caches, registers, instructions or leakage.
- A product is added to a sum of 32 bits, as matrix units do: float16 1.1 + 0.9, int8 0.2 + 0.1.
- An operation that is no multiply-accumulate is an addition.
- bfloat16 costs what float16 costs, which is a little too much: its mantissa is shorter.

Source: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure
1.1.9.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from efftrain.profiling.step_count import StepCount
from efftrain.units import FLOPS_PER_MAC

MJ_PER_PJ = 1e-9
DRAM_PJ_PER_BYTE = 1300 / 8

_INT8 = (0.2 + 0.1, 0.03)
_FLOAT16 = (1.1 + 0.9, 0.4)
PJ: dict[str, tuple[float, float]] = {
    "int8": _INT8,
    "uint8": _INT8,
    "int32": (3.1 + 0.1, 0.1),
    "float16": _FLOAT16,
    "bfloat16": _FLOAT16,
    "float32": (3.7 + 0.9, 0.9),
}
"""Of a multiply-accumulate and of another operation, by data type."""


@dataclass(frozen=True)
class Energy:
    """Estimated energy of a step or of an inference pass.

    Attributes:
        operations_mj: Of the operations, by data type.
        traffic_mj: Of the bytes that they move.
        without_figure: Operations whose data type the source has no figure for, by data type; they
            are not in `operations_mj`.
        complete: Whether no multiply-accumulates are among those.
    """

    operations_mj: dict[str, float]
    traffic_mj: float
    without_figure: dict[str, int]
    complete: bool

    @property
    def estimated_mj(self) -> float | None:
        """Operations and traffic; None where multiply-accumulates have no figure."""
        return sum(self.operations_mj.values()) + self.traffic_mj if self.complete else None

    def to_dict(self) -> dict[str, Any]:
        """The estimate and its parts; a sum that is not known is left out."""
        found: dict[str, Any] = {
            "operations_mj": dict(self.operations_mj),
            "traffic_mj": self.traffic_mj,
            "without_figure": dict(self.without_figure),
        }
        total = self.estimated_mj
        return found if total is None else {"estimated_mj": total, **found}


def estimate_energy(count: StepCount) -> Energy:
    """Estimate the energy of what was counted.

    Args:
        count: Of an inference pass or of a training step.

    Returns:
        The estimate; the assumptions stand at the top of this module.
    """
    operations: dict[str, float] = defaultdict(float)
    without: dict[str, int] = defaultdict(int)
    complete = True
    for entry in count.entries:
        every = entry.flops + entry.integer_ops
        if every == 0:
            continue
        if entry.dtype not in PJ:
            without[entry.dtype] += every
            complete = complete and not entry.macs
            continue
        mac_pj, other_pj = PJ[entry.dtype]
        other = every - FLOPS_PER_MAC * entry.macs
        operations[entry.dtype] += (mac_pj * entry.macs + other_pj * other) * MJ_PER_PJ
    moved = sum(entry.bytes_moved for entry in count.entries)
    return Energy(dict(operations), moved * DRAM_PJ_PER_BYTE * MJ_PER_PJ, dict(without), complete)
