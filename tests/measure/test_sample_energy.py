"""Energy of a sample, by a counter whose joules are known."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from efftrain.measure.sample_energy import measure_sample_energy


class Metered(nn.Module):
    """Spends 3 J on each sample."""

    source = "a made-up counter"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.joules = 100.0
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.joules += 3.0
        self.batches.append(len(x))
        return self.layer(x)

    def read_j(self) -> float:
        return self.joules


def test_it_is_what_the_counter_counted_over_the_samples_of_the_window() -> None:
    model = Metered().train()
    ticks = itertools.count()
    found = measure_sample_energy(
        model, torch.zeros(8, 2), [model], window_s=5.0, clock=lambda: float(next(ticks))
    )
    assert found is not None
    assert found.sample_mj == pytest.approx(3000.0)
    assert found.samples == 4  # at 1, 2, 3 and 4 s the window is open
    assert set(model.batches) == {1}
    assert len(model.batches) == 1 + 4  # the first warms up
    assert found.to_dict()["sources"] == ["a made-up counter"]
    assert model.training


def test_without_a_counter_there_is_no_figure() -> None:
    model = Metered()
    assert measure_sample_energy(model, torch.zeros(1, 2), []) is None
    assert model.batches == []
