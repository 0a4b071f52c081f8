"""The peak of a device: of this process, and of an allocator that only pretends."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

from efftrain.measure.peak_memory import CudaPeak, ProcessGrowth, find_peak_meter
from efftrain.units import MIB

BIG = 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="no other system shows a peak to reset")
def test_the_growth_of_this_process_can_be_reset():
    meter = find_peak_meter(torch.device("cpu"))
    assert meter is not None
    quiet = meter.peak_bytes()
    with mmap.mmap(-1, BIG) as block:  # which no allocator keeps for later
        for start in range(0, BIG, mmap.PAGESIZE):
            block[start] = 1
    peak = meter.peak_bytes()
    assert quiet < BIG / 4
    assert peak == pytest.approx(BIG, rel=0.1)
    meter.reset()
    assert meter.peak_bytes() < BIG / 4, "it fell again, which ru_maxrss never does"


def linux(folder: Path, *, resident: int, highest: int) -> Path:
    (folder / "status").write_text(f"Name:\tx\nVmHWM:\t{highest} kB\nVmRSS:\t{resident} kB\n")
    return folder


def test_growth_is_above_what_was_held_at_the_start(tmp_path):
    meter = ProcessGrowth(linux(tmp_path, resident=1000, highest=1000))
    assert (tmp_path / "clear_refs").read_text() == "5"
    linux(tmp_path, resident=1100, highest=1500)
    assert meter.peak_bytes() == 500 * 1024
    linux(tmp_path, resident=900, highest=900)
    assert meter.peak_bytes() == 0, "a process that shrinks has not grown"


def test_a_system_that_shows_no_peak_has_none(tmp_path):
    assert find_peak_meter(torch.device("cpu"), tmp_path / "nowhere") is None
    (tmp_path / "status").write_text("Name:\tx\n")
    assert find_peak_meter(torch.device("cpu"), tmp_path) is None
    assert find_peak_meter(torch.device("meta")) is None


def test_a_gpus_peak_is_its_allocators(monkeypatch):
    """Everything that is allocated; resetting goes back to what is held at that moment."""
    held, peak = 700, 900
    seen = []

    def reset(device: torch.device) -> None:
        nonlocal peak
        seen.append(device)
        peak = held

    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", reset)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: peak)
    meter = find_peak_meter(torch.device("cuda:1"))
    assert isinstance(meter, CudaPeak)
    assert meter.peak_bytes() == 700
    peak = 1200
    assert meter.peak_bytes() == 1200
    assert seen == [torch.device("cuda:1")]
