"""The most memory that a device has held since somebody asked to begin again.

CUDA: what torch's allocator has handed out. CPU: how far the process has grown above what it held at
the start, by Linux's VmHWM. `ru_maxrss` will not do, it never falls; writing 5 to
/proc/self/clear_refs takes VmHWM back to what is held now.

Source: the kernel's Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Protocol

import torch

from efftrain.units import KIB

PROCESS = Path("/proc/self")


class PeakMeter(Protocol):
    """Knows a peak that can be taken back."""

    def reset(self) -> None:
        """Begin again, from what is held now."""
        ...

    def peak_bytes(self) -> int:
        """The most since then."""
        ...


def find_peak_meter(device: torch.device, process: Path = PROCESS) -> PeakMeter | None:
    """What knows the peak of a device, from now on.

    Args:
        device: CUDA: all that is allocated there by torch. CPU: the growth of this process.
        process: Where Linux shows the process.

    Returns:
        None where nothing knows it: another device, or a system that does not let the peak be reset.
    """
    if device.type == "cuda":
        return CudaPeak(device)
    if device.type != "cpu":
        return None
    try:
        return ProcessGrowth(process)
    except (OSError, KeyError):
        return None


class CudaPeak:
    """The allocator's own peak; resetting it is seen by all who read `torch.cuda.memory_stats`."""

    def __init__(self, device: torch.device) -> None:
        """From now on."""
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """Everything that was allocated at the peak, parameters included."""
        return torch.cuda.max_memory_allocated(self._device)


class ProcessGrowth:
    """How far the process has grown above what it holds when this is made.

    What it has freed before, and kept for itself, is given back to the system first: it would be
    used again without any growth.
    """

    def __init__(self, process: Path = PROCESS) -> None:
        """From now on.

        Raises:
            OSError: Linux does not let the peak be read or reset.
            KeyError: It does not show one.
        """
        self._process = process
        give_back_free_memory()
        self.reset()
        self._before = self._read("VmRSS")
        self._read("VmHWM")

    def reset(self) -> None:
        """Begin again."""
        (self._process / "clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Growth at the peak."""
        return max(self._read("VmHWM") - self._before, 0)

    def _read(self, field: str) -> int:
        lines = (self._process / "status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
        return int(values[field].split()[0]) * KIB


def give_back_free_memory() -> None:
    """Have the C library return what it keeps for later; glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
