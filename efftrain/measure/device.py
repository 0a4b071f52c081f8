"""Waiting for a device."""

from __future__ import annotations

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it; at once on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
