"""A device: its name, and waiting for it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it; at once on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the maker calls it: "AMD EPYC", "NVIDIA H100 80GB HBM3"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return cpu_name()
    return f"{cpu_name()} {device.type}"


def cpu_name() -> str:
    """Of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
