"""Estimated energy, worked out by hand from Horowitz' table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efftrain.profiling.count import count_forward, count_step
from efftrain.profiling.energy import estimate_energy
from efftrain.profiling.step_count import Entry, StepCount


def step(*entries: Entry) -> StepCount:
    return StepCount(entries, uncounted={}, counted_elements=1, values=False)


def entry(dtype: str, *, macs: int = 0, other: int = 0, moved: int = 0) -> Entry:
    """One call, on floating point numbers where the type is one."""
    floats = "float" in dtype or "complex" in dtype
    operations = 2 * macs + other
    return Entry(
        path="layer",
        operator="mm",
        phase="forward",
        dtype=dtype,
        calls=1,
        macs=macs,
        flops=operations * floats,
        elementwise=other * floats,
        integer_ops=operations * (not floats),
        bytes_moved=moved,
    )


# pJ of a multiplication, of an addition into 32 bits, of an addition (ISSCC 2014, 45 nm)
@pytest.mark.parametrize(
    ("dtype", "multiply", "accumulate", "add"),
    [
        ("float32", 3.7, 0.9, 0.9),
        ("float16", 1.1, 0.9, 0.4),
        ("bfloat16", 1.1, 0.9, 0.4),
        ("int8", 0.2, 0.1, 0.03),
        ("int32", 3.1, 0.1, 0.1),
    ],
)
def test_operations_cost_what_the_table_says(
    dtype: str, multiply: float, accumulate: float, add: float
) -> None:
    found = estimate_energy(step(entry(dtype, macs=1_000_000_000, other=2_000_000_000)))
    # 10^9 of 1 pJ are 1 mJ
    assert found.operations_mj == {dtype: pytest.approx(multiply + accumulate + 2 * add)}
    assert found.estimated_mj == pytest.approx(multiply + accumulate + 2 * add)
    assert found.without_figure == {}


def test_each_byte_comes_from_dram_once() -> None:
    # 1.3 nJ for 8 bytes: 8 MB are 10^6 accesses, 1.3 mJ
    found = estimate_energy(step(entry("float32", moved=8_000_000)))
    assert found.traffic_mj == pytest.approx(1.3)
    assert found.estimated_mj == pytest.approx(1.3)


def test_a_linear_layer_by_hand() -> None:
    # [4, 10] x [10, 20]: 800 MACs; bias, input, weight and output
    moved = 4 * (20 + 40 + 200 + 80)
    found = estimate_energy(count_forward(nn.Linear(10, 20), torch.zeros(4, 10)))
    assert found.operations_mj == {"float32": pytest.approx(800 * 4.6e-9)}
    assert found.estimated_mj == pytest.approx(800 * 4.6e-9 + moved * 162.5e-9)


def test_half_precision_halves_the_traffic() -> None:
    model, batch = nn.Linear(64, 64), torch.zeros(8, 64)
    full = estimate_energy(count_step(model, batch))
    half = estimate_energy(count_step(model.bfloat16(), batch.bfloat16()))
    assert half.traffic_mj == pytest.approx(full.traffic_mj / 2)
    assert set(half.operations_mj) == {"bfloat16"}


def test_products_without_a_figure_leave_the_sum_unknown() -> None:
    found = estimate_energy(step(entry("float64", macs=5, moved=8), entry("float32", macs=1)))
    assert found.without_figure == {"float64": 10}
    assert found.estimated_mj is None
    written = found.to_dict()
    assert "estimated_mj" not in written
    assert written["traffic_mj"] == pytest.approx(8 * 162.5e-9)


def test_elementwise_operations_without_a_figure_are_named() -> None:
    found = estimate_energy(step(entry("int64", other=7), entry("float32", macs=1)))
    assert found.without_figure == {"int64": 7}
    assert found.estimated_mj == pytest.approx(4.6e-9)
    assert found.to_dict()["estimated_mj"] == found.estimated_mj
