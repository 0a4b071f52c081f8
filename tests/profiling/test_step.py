"""The most memory that a step holds, against the allocator and against hand counts."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from efftrain.graph.rehearsal import rehearse
from efftrain.profiling.step import StepPeak, run_step

F32 = 4


def predicted(
    model: nn.Module, batch: Tensor, optimizer: Callable[..., torch.optim.Optimizer] | None = None
) -> StepPeak:
    step = rehearse(lambda r: run_step(r, optimizer=optimizer, memory=True), model, batch)
    assert step.peak is not None
    return step.peak


def measured(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> int:
    """The allocator's peak above what is there between two steps, in the second step."""

    def step() -> None:
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("norms_alone", [False, True])
@pytest.mark.parametrize("name", ["mobilenet_v2", "vit"])
def test_the_peak_is_the_allocators(name: str, norms_alone: bool) -> None:
    if name == "vit":
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4)
    else:
        model = torchvision.models.mobilenet_v2(width_mult=0.5)
    if norms_alone:
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)))
    batch = torch.zeros(8, 3, 64, 64)
    found = predicted(model, batch, torch.optim.AdamW)
    there = found.parameter_bytes + found.buffer_bytes + found.batch_bytes + found.optimizer_bytes
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    peak = there + measured(model, batch, optimizer)
    assert found.step_peak_bytes == pytest.approx(peak, rel=0.03)
    assert found.step_peak_bytes <= peak  # what a kernel needs inside does not show


def test_each_part_is_the_count_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.BatchNorm1d(50))
    found = predicted(model, torch.zeros(8, 100), torch.optim.AdamW)
    trained = 100 * 50 + 2 * 50
    assert found.parameter_bytes == F32 * trained
    assert found.buffer_bytes == F32 * 100 + 8
    assert found.batch_bytes == F32 * 800
    assert found.gradient_bytes == F32 * trained
    assert found.optimizer_bytes == 2 * F32 * trained + 3 * F32
    sgd = predicted(model, torch.zeros(8, 100), lambda p: torch.optim.SGD(p, lr=0.1))
    assert sgd.optimizer_bytes == 0
    assert sgd.to_dict().keys() >= {"step_peak_bytes", "gradient_bytes"}


def test_the_peak_of_a_chain_is_the_sum_of_what_is_alive() -> None:
    model = nn.Sequential(nn.Linear(10, 1000, bias=False), nn.Linear(1000, 10, bias=False))
    model.requires_grad_(False)
    found = predicted(model, torch.zeros(4, 10))
    # nothing trains: the wide result beside the narrow one, then nothing but the sum
    static = F32 * (20_000 + 40)
    assert found.step_peak_bytes == static + F32 * (4 * 1000 + 4 * 10)
    assert found.gradient_bytes == 0
