"""What the CPU's allocator really hands out, read off torch's profiler."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

needs_avx512 = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="what oneDNN needs here, and whether it can do this in 16 bits, is known for AVX-512",
)


class Allocated(NamedTuple):
    """Bytes above what was there before: kept at the end, and held at most."""

    kept: int
    highest: int
    result: Any


def allocated(run: Callable[[], Any]) -> Allocated:
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return Allocated(now, highest, result)


def called(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def kept_for_backward(loss_of_model: Callable[[], torch.Tensor]) -> int:
    """Kept by the graph when forward is done: nothing but the loss holds it, which counts itself."""
    found = allocated(loss_of_model)
    return found.kept - found.result.untyped_storage().nbytes()


def highest_in_second_step(
    loss_of_model: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Above what is there between two steps."""

    def step() -> None:
        optimizer.zero_grad()
        loss_of_model().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    return allocated(step).highest
