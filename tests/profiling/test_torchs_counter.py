"""What torch's own counter says, where it differs from the count by hand.

A case that fails here says that torch has been repaired: its formula can then go from ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.profiling.formula_cases import FORWARD


def torch_says(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "counted"),
    # of one gradient for the weight
    [("grouped", 4), ("depthwise", 16), ("transposed", 4)],
)
def test_torch_still_multiplies_a_grouped_weight_gradient_by_its_groups(
    name: str, counted: int
) -> None:
    model, batch, macs = FORWARD[name]
    output = model(batch)
    assert torch_says(lambda: output.sum().backward()) == counted * macs


@pytest.mark.parametrize("name", ["sdpa", "grouped_query"])
def test_torch_still_has_no_formula_for_attention_on_the_cpu(name: str) -> None:
    model, batch, _ = FORWARD[name]
    assert torch_says(lambda: model(batch)) == 0  # 2.15 counts it
    output = model(batch.clone().requires_grad_())
    assert torch_says(lambda: output.sum().backward()) == 0


STILL_NOTHING = ["multihead", "encoder", "lstm", "bilinear", "distance", "vector", "addbmm", "int8"]


@pytest.mark.parametrize("name", STILL_NOTHING)
def test_torch_still_counts_nothing_of(name: str) -> None:
    model, batch, _ = FORWARD[name]
    with torch.no_grad():
        assert torch_says(lambda: model.eval()(batch)) == 0


def test_torch_still_counts_nothing_of_a_recurrent_layers_backward() -> None:
    model, batch, _ = FORWARD["lstm"]
    output = model(batch)[0]
    assert torch_says(lambda: output.sum().backward()) == 0


# What torch counts right by itself, so that nothing here repairs it.
@pytest.mark.parametrize("name", ["gru", "einsum", "einsum3", "transposed", "grouped", "scores"])
def test_torch_agrees_on(name: str) -> None:
    model, batch, macs = FORWARD[name]
    with torch.no_grad():
        assert torch_says(lambda: model.eval()(batch)) == macs
