"""What a run ran on, so that its figures can be judged later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from efftrain.measure.device import cpu_name

_PACKAGES = (
    "efftrain", "torch", "lightning", "hydra-core", "torchmetrics", "transformers", "timm",
    "torchvision", "peft", "safetensors", "tensorboard",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, as plain values.

    Returns:
        Keys `python`, `platform`, `cpu`, `cpu_threads`, `gpus` and `packages`; a package that is not
        installed is left out.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": dict(_versions()),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
