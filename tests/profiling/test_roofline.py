"""Predicted times, worked out by hand from operations, bytes and two ceilings."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.profiling.count import count_forward, count_step
from efftrain.profiling.roofline import Ceilings, predict
from efftrain.profiling.step_count import Entry, Phase, StepCount

# 1 GFLOP/s and 100 MB/s: 10 FLOP for each byte at the ridge.
SLOW = Ceilings("a machine", 2, {"float32": 1e9, "int8": 4e9}, 1e8, "by hand")


def entry(
    path: str,
    flops: int,
    moved: int,
    *,
    dtype: str = "float32",
    macs: int | None = None,
    integer_ops: int = 0,
    phase: Phase = "forward",
) -> Entry:
    macs = flops // 2 if macs is None else macs
    return Entry(path, "mm", phase, dtype, 1, macs, flops, 0, integer_ops, moved)


def step(*entries: Entry) -> StepCount:
    return StepCount(entries, uncounted={}, counted_elements=1, values=False)


def test_a_layer_takes_as_long_as_the_slower_of_computing_and_moving() -> None:
    found = predict(
        step(
            entry("conv", 20_000_000, 1_000_000),  # 20 ms of operations, 10 ms of bytes
            entry("norm", 1_000_000, 3_000_000),  # 1 ms, 30 ms
        ),
        SLOW,
    )
    conv, norm = found.layers["conv"], found.layers["norm"]
    assert (conv.predicted_ms, conv.bound) == (pytest.approx(20), "compute")
    assert (conv.compute_ms, conv.memory_ms) == (pytest.approx(20), pytest.approx(10))
    assert (norm.predicted_ms, norm.bound) == (pytest.approx(30), "memory")
    assert found.predicted_ms == pytest.approx(50)


def test_operators_of_one_layer_are_added_up_before_the_slower_is_taken() -> None:
    # 20 + 1 ms of operations against 10 + 30 ms of bytes: 40, not 20 + 30
    found = predict(
        step(entry("block", 20_000_000, 1_000_000), entry("block", 1_000_000, 3_000_000)), SLOW
    )
    assert found.predicted_ms == pytest.approx(40)
    assert found.layers["block"].bound == "memory"


def test_each_data_type_has_its_own_peak() -> None:
    # 8 M integer operations at 4 G/s and 3 M floating point ones at 1 G/s, in one layer
    found = predict(
        step(
            entry("q", 0, 100, dtype="int8", macs=4_000_000, integer_ops=8_000_000),
            entry("q", 3_000_000, 100),
        ),
        SLOW,
    )
    assert found.layers["q"].compute_ms == pytest.approx(2 + 3)
    assert found.without_ceiling == {}


def test_the_ridge_is_where_both_ceilings_take_equally_long() -> None:
    assert SLOW.ridge("float32") == pytest.approx(10)
    assert SLOW.ridge("int8") == pytest.approx(40)
    with pytest.raises(ConfigError, match="float16; there are: float32, int8"):
        SLOW.ridge("float16")


def test_products_without_a_ceiling_leave_their_layer_and_the_sum_unknown() -> None:
    found = predict(
        step(
            entry("half", 2_000_000, 10, dtype="bfloat16"),
            entry("half", 0, 4_000_000),
            entry("full", 20_000_000, 10),
        ),
        SLOW,
    )
    assert found.unknown == ("half",)
    assert found.without_ceiling == {"bfloat16": 2_000_000}
    assert set(found.layers) == {"full"}
    assert found.predicted_ms is None
    written = found.to_dict()
    assert "predicted_ms" not in written
    assert written["phases_ms"] == {}
    assert written["without_ceiling"] == {"bfloat16": 2_000_000}


def test_elementwise_integers_without_a_ceiling_cost_their_bytes_and_are_named() -> None:
    positions = entry("embed", 0, 2_000_000, dtype="int64", macs=0, integer_ops=1000)
    found = predict(step(positions), SLOW)
    assert found.predicted_ms == pytest.approx(20)
    assert found.layers["embed"].bound == "memory"
    assert found.without_ceiling == {"int64": 1000}


def test_a_step_is_the_sum_of_its_phases_and_a_phase_hides_nothing_of_another() -> None:
    # forward computes while backward moves: 20 + 30, not the maximum of 21 and 40
    found = predict(
        step(
            entry("layer", 20_000_000, 1_000_000, phase="forward"),
            entry("layer", 1_000_000, 3_000_000, phase="backward_weights"),
        ),
        SLOW,
    )
    assert found.phases_ms == {"forward": pytest.approx(20), "backward_weights": pytest.approx(30)}
    assert found.layers["layer"].predicted_ms == found.predicted_ms == pytest.approx(50)
    assert found.layers["layer"].bound == "memory"


def test_phases_without_an_unknown_layer_are_still_predicted() -> None:
    found = predict(
        step(
            entry("layer", 20_000_000, 10),
            entry("layer", 2, 2, dtype="float16", phase="backward_inputs"),
        ),
        SLOW,
    )
    assert found.phases_ms == {"forward": pytest.approx(20)}
    assert found.predicted_ms is None


def test_a_counted_linear_layer_takes_what_its_shapes_say() -> None:
    # [8, 100] x [100, 50]: 2 x 40,000 FLOP; bias, input, weight and output of 4 bytes each
    moved = 4 * (50 + 8 * 100 + 100 * 50 + 8 * 50)
    model = nn.Sequential(nn.Linear(100, 50))
    batch = torch.zeros(8, 100)
    found = predict(count_forward(model, batch), SLOW)
    assert found.layers["0"].compute_ms == pytest.approx(80_000 / 1e9 * 1e3)
    assert found.predicted_ms == pytest.approx(moved / 1e8 * 1e3)


def test_a_training_step_is_predicted_with_frozen_layers_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    batch = torch.zeros(512, 256)
    product_ms = 2 * 512 * 256 * 256 / 1e9 * 1e3  # bound by compute at 1 GFLOP/s
    whole = predict(count_step(model, batch), SLOW).phases_ms
    assert whole["backward_weights"] > 2 * product_ms
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    bias_alone = predict(count_step(model, batch), SLOW).phases_ms
    assert bias_alone["forward"] == whole["forward"]
    assert bias_alone.get("backward_weights", 0) < product_ms


def test_ceilings_come_back_as_they_were_written() -> None:
    assert Ceilings.from_dict(json.loads(json.dumps(SLOW.to_dict()))) == SLOW
    gpu = Ceilings("a GPU", None, {"bfloat16": 9e14}, 3e12, "by hand", "2026-11-24")
    assert "threads" not in gpu.to_dict()
    assert Ceilings.from_dict(gpu.to_dict()) == gpu


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {**SLOW.to_dict(), "bytes_per_s": 0},
        {**SLOW.to_dict(), "bytes_per_s": "fast"},
        {**SLOW.to_dict(), "flops_per_s": {"float32": -1.0}},
        {**SLOW.to_dict(), "flops_per_s": [1e9]},
    ],
)
def test_what_is_no_ceiling_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="ceilings"):
        Ceilings.from_dict(values)
