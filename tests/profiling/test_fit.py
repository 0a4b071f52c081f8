"""The largest batch that fits: against trying every size, and against what a real step holds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.graph.rehearsal import rehearse
from efftrain.profiling.fit import _search, largest_batch, scaled
from efftrain.profiling.step import run_step
from tests.profiling.allocator import highest_in_second_step

F32 = 4


def peak_of(model: nn.Module, batch: Any) -> int:
    step = rehearse(lambda r: run_step(r, optimizer=torch.optim.AdamW, memory=True), model, batch)
    assert step.peak is not None
    return step.peak.step_peak_bytes


def test_it_is_the_batch_that_trying_every_size_finds() -> None:
    # in small batches the update holds most, in larger ones backward
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 64), nn.ReLU())
    peaks = {size: peak_of(model, torch.zeros(size, 8)) for size in range(1, 130)}
    assert len({b - a for a, b in itertools.pairwise(peaks.values())}) > 1
    limits = [peaks[size] + extra for size in (1, 2, 3, 17, 60, 128) for extra in (-1, 0, 1)]
    for limit in limits:
        found = largest_batch(model, torch.zeros(4, 8), limit, optimizer=torch.optim.AdamW)
        assert found.batch_size == max((n for n, peak in peaks.items() if peak <= limit), default=0)
        assert found.step_peak_bytes == peaks[max(found.batch_size, 1)]
        assert found.limit_bytes == limit


def test_few_dry_runs_find_a_batch_of_thousands() -> None:
    model = nn.Sequential(nn.Linear(100, 1000), nn.Linear(1000, 10)).requires_grad_(False)
    found = largest_batch(model, torch.zeros(2, 100), 10**9)
    # nothing trains: weights, the batch, and the first layer's result beside the second's
    static, each = F32 * (100 * 1000 + 1000 + 1000 * 10 + 10), F32 * (100 + 1000 + 10)
    assert found.batch_size == (10**9 - static) // each
    assert found.next_peak_bytes == found.step_peak_bytes + each > 10**9
    assert found.dry_runs < 10


@pytest.mark.parametrize("seed", range(20))
def test_the_search_is_exact_on_any_curve_that_only_grows(seed: int) -> None:
    torch.manual_seed(seed)
    steps = torch.randint(0, 50, (300,)) * (torch.rand(300) < 0.3)
    curve = [0, *steps.cumsum(0).tolist()]
    limit = int(curve[1] + torch.randint(0, 4000, ()).item())
    tried = set()

    def peak(size: int) -> int:
        tried.add(size)
        return curve[size]

    fits, too_many = _search(peak, limit, 1, 299)
    assert fits == max(size for size in range(1, 300) if curve[size] <= limit)
    assert too_many == (fits + 1 if fits < 299 else 0)
    assert len(tried) < 30


def test_nothing_fits_and_everything_fits() -> None:
    model = nn.Linear(10, 10)
    none = largest_batch(model, torch.zeros(2, 10), 100)
    assert (none.batch_size, none.smallest_batch) == (0, 1)
    assert none.step_peak_bytes == peak_of_one(model)
    every = largest_batch(model, torch.zeros(2, 10), 10**12, at_most=64)
    assert (every.batch_size, every.next_peak_bytes) == (64, None)
    assert "next_peak_bytes" not in every.to_dict()


def peak_of_one(model: nn.Module) -> int:
    step = rehearse(lambda r: run_step(r, memory=True), model, torch.zeros(1, 10))
    assert step.peak is not None
    return step.peak.step_peak_bytes


def test_batch_norm_that_refuses_one_sample_begins_with_two() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10))
    found = largest_batch(model, torch.zeros(4, 10), 10**5)
    assert found.smallest_batch == 2
    assert found.batch_size > 2
    assert largest_batch(model, torch.zeros(4, 10), 10).batch_size == 0


def test_every_tensor_of_the_batch_that_is_as_long_grows() -> None:
    batch = {"input_ids": torch.zeros(2, 7, dtype=torch.long), "scale": torch.ones(3), "n": 5}
    grown = scaled(batch, 9)
    assert grown["input_ids"].shape == (9, 7)
    assert grown["input_ids"].dtype == torch.long
    assert grown["scale"] is batch["scale"]
    assert grown["n"] == 5


def test_text_in_a_mapping() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 64), nn.Linear(64, 50)

        def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
            scores = self.head(self.embed(input_ids))
            return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())

    words = torch.zeros(3, 16, dtype=torch.long)
    model, limit = Words(), 2_000_000
    found = largest_batch(model, {"input_ids": words, "labels": words}, limit)
    assert found.batch_size > 10
    for samples in (found.batch_size, found.batch_size + 1):
        batch = {
            name: torch.zeros(samples, 16, dtype=torch.long) for name in ("input_ids", "labels")
        }
        step = rehearse(lambda r: run_step(r, memory=True), model, batch)
        assert step.peak is not None
        assert (step.peak.step_peak_bytes <= limit) == (samples == found.batch_size)


def test_a_real_step_of_that_batch_fits_and_a_larger_one_does_not() -> None:
    model = torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=10)
    limit = 60 * 2**20
    found = largest_batch(model, torch.zeros(2, 3, 64, 64), limit, optimizer=torch.optim.AdamW)

    def real(samples: int) -> int:
        batch = torch.zeros(samples, 3, 64, 64)
        optimizer = torch.optim.AdamW(model.parameters())
        step = rehearse(
            lambda r: run_step(r, optimizer=torch.optim.AdamW, memory=True), model, batch
        )
        assert step.peak is not None
        highest = highest_in_second_step(lambda: model(batch).sum(), optimizer)
        peak = step.peak
        there = peak.parameter_bytes + peak.buffer_bytes + peak.batch_bytes + peak.optimizer_bytes
        return there + highest

    assert 0.9 * limit < real(found.batch_size) <= 1.03 * limit
    assert real(int(1.1 * found.batch_size) + 1) > limit


def test_a_model_that_asks_for_values_is_refused() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises(ConfigError, match="shapes alone"):
        largest_batch(Asking(), torch.zeros(2, 3), 10**6)
