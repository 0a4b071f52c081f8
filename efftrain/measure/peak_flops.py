"""What a device can compute at most, by its data sheet.

All figures are dense: data sheets print many of them with 2:4 sparsity, twice as high, which training
does not use. They are those of tensor cores where a device has them for an arithmetic. Half precision
is with accumulation in float32, as PyTorch multiplies; GeForce cards do that at half the rate that
their boxes name.

A name has to match in full: an L40S is no L40, a laptop's chip or a slice of a GPU no card. What is
not here has no peak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

_TERA = 10**12
_AMPERE = "NVIDIA Ampere GA102 white paper v2.1, appendix A"
_ADA = "NVIDIA Ada GPU architecture white paper v2.1, appendix A"
_HOPPER = "NVIDIA H100 data sheet, half of the figures with sparsity"


@dataclass(frozen=True)
class Peak:
    """The most that devices of one name compute.

    Attributes:
        name: Regular expression for the whole name, without NVIDIA, Tesla and GeForce.
        tflops: 10^12 FLOP/s by arithmetic: `float64`, `float32`, `tf32`, `float16`, `bfloat16`;
            what the device has no fast arithmetic for is left out.
        source: Where the figures stand.
    """

    name: str
    tflops: dict[str, float]
    source: str


def _peak(
    name: str,
    source: str,
    *,
    float32: float,
    half: float,
    tf32: float | None = None,
    float64: float | None = None,
) -> Peak:
    """A row; what has tf32 has bfloat16 at the rate of float16."""
    known = {"float64": float64, "float32": float32, "tf32": tf32, "float16": half}
    if tf32 is not None:
        known["bfloat16"] = half
    return Peak(name, {key: value for key, value in known.items() if value is not None}, source)


# fmt: off
PEAKS: tuple[Peak, ...] = (
    _peak(r"V100-SXM2-(16|32)GB", "NVIDIA V100 data sheet, 2020", float64=7.8, float32=15.7, half=125),
    _peak(r"V100-PCIE-(16|32)GB", "NVIDIA V100 data sheet, 2020", float64=7.0, float32=14.0, half=112),
    _peak(r"T4", "NVIDIA T4 data sheet", float32=8.1, half=65),
    _peak(r"A10", "NVIDIA A10 data sheet", float32=31.2, tf32=62.5, half=125),
    _peak(r"A10G", "NVIDIA A10G data sheet for AWS, February 2022", float32=35, tf32=35, half=70),
    _peak(r"A30", "NVIDIA A30 data sheet", float64=10.3, float32=10.3, tf32=82, half=165),
    _peak(r"A40", "NVIDIA A40 data sheet", float32=37.4, tf32=74.8, half=149.7),
    _peak(r"RTX A6000", _AMPERE, float32=38.7, tf32=77.4, half=154.8),
    _peak(r"A100-SXM4?-(40|80)GB|A100-PCIE-(40|80)GB|A100 80GB PCIe", "NVIDIA A100 data sheet",
          float64=19.5, float32=19.5, tf32=156, half=312),
    _peak(r"L4", "NVIDIA L4 data sheet, half of the figures with sparsity",
          float32=30.3, tf32=60, half=121),
    _peak(r"L40", "NVIDIA L40 data sheet", float32=90.5, tf32=90.5, half=181.05),
    _peak(r"L40S", "NVIDIA L40S data sheet", float32=91.6, tf32=183, half=362.05),
    _peak(r"H100 80GB HBM3", _HOPPER, float64=67, float32=67, tf32=494.7, half=989.4),
    _peak(r"H100 PCIe", "NVIDIA H100 architecture white paper v1.02, table 2", float64=51.2, float32=51.2,
          tf32=378, half=756),
    _peak(r"H100 NVL", _HOPPER, float64=60, float32=60, tf32=417.5, half=835.5),
    _peak(r"H200", "NVIDIA H200 data sheet, half of the figures with sparsity", float64=67, float32=67,
          tf32=494.7, half=989.4),
    _peak(r"H200 NVL", "NVIDIA H200 data sheet, half of the figures with sparsity", float64=60, float32=60,
          tf32=417.5, half=835.5),
    _peak(r"GH200 (120GB|480GB|144G HBM3e)", "NVIDIA GH200 data sheet, half of the figures with sparsity",
          float64=67, float32=67, tf32=494.7, half=989.4),
    _peak(r"B200", "NVIDIA HGX B200 specifications / 8, half of the figures with sparsity",
          float64=37, float32=75, tf32=1125, half=2250),
    _peak(r"GB200", "NVIDIA GB200 NVL72 specifications / 72, half of the figures with sparsity",
          float64=40, float32=80, tf32=1250, half=2500),
    _peak(r"RTX 3090", _AMPERE, float32=35.6, tf32=35.6, half=71),
    _peak(r"RTX 3090 Ti", _ADA, float32=40, tf32=40, half=80),
    _peak(r"RTX 4090", _ADA, float32=82.6, tf32=82.6, half=165.2),
    _peak(r"RTX 6000 Ada Generation", _ADA, float32=91.1, tf32=182.1, half=364.2),
    _peak(r"RTX 5090", "NVIDIA RTX Blackwell GPU architecture white paper v1.1, appendix A",
          float32=104.8, tf32=104.8, half=209.5),
)
# fmt: on


def find_peak(device_name: str) -> Peak | None:
    """The row of a device, by the name that `torch.cuda.get_device_name` gives."""
    bare = re.sub(r"^(NVIDIA|Tesla|GeForce|\s)+ ", "", device_name.strip())
    return next((peak for peak in PEAKS if re.fullmatch(peak.name, bare)), None)


def find_arithmetic(precision: str, convolutions: bool) -> str | None:
    """What a training computes its products in.

    Args:
        precision: As Lightning's Trainer names it: `32-true`, `bf16-mixed`, …
        convolutions: Whether the model has any: PyTorch lets cuDNN round their float32 to TF32 unless
            told otherwise, but not that of matrix products.

    Returns:
        A key of `Peak.tflops`. With float32 it is `tf32` as soon as some of the model may use it, so
        that nothing ever comes out above its peak. None for what has no one answer, such as FP8.
    """
    kind = precision.split("-")[0]
    if kind == "32":
        rounds = torch.backends.cuda.matmul.fp32_precision == "tf32"
        if convolutions:
            cudnn: Any = torch.backends.cudnn  # its stub lacks this
            rounds |= cudnn.conv.fp32_precision == "tf32"
        return "tf32" if rounds else "float32"
    return {"64": "float64", "16": "float16", "bf16": "bfloat16"}.get(kind)


def peak_flops_per_s(peak: Peak, arithmetic: str) -> float | None:
    """Of one arithmetic; TF32 is float32 where a device has none."""
    tflops = peak.tflops.get(arithmetic)
    if tflops is None and arithmetic == "tf32":
        tflops = peak.tflops["float32"]
    return None if tflops is None else tflops * _TERA
