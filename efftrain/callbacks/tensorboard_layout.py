"""Which figures stand together under TensorBoard's tab "Custom scalars"."""

from __future__ import annotations

import re
from collections.abc import Iterable

TITLE = "Efficiency"

# Patterns of whole tags; TensorBoard matches them from the start only, hence the $.
CHARTS: dict[str, tuple[str, ...]] = {
    "accuracy against steps": ("val/(?!loss$).*$",),
    "accuracy against cost: the axis counts GFLOP": ("val_by_gflop/(?!loss$).*$",),
    "cost: GFLOP of a step (predicted)": ("flops/step_gflop$",),
    "cost: trainable parameters": ("params/trainable$",),
    "cost: KiB that a fine-tuned task adds": ("size/delta_kib$",),
    "memory: kept for backward, MiB, predicted and measured": (
        "memory/saved_mib$",
        "memory/saved_measured_mib$",
    ),
    "memory: peak in training, MiB": ("memory/device_peak_mib$",),
    "time: a step, ms (median)": ("time/step_p50_ms$",),
    "time: a step, ms (90th percentile)": ("time/step_p90_ms$",),
    "time: forward, ms": ("time/forward_ms$",),
    "time: backward, ms": ("time/backward_ms$",),
    "time: wait for data, ms": ("time/data_ms$",),
    "throughput: samples/s": ("throughput/samples_per_s$",),
    "throughput: tokens/s": ("throughput/tokens_per_s$",),
    "throughput: GFLOP/s": ("throughput/achieved_gflops$",),
    "throughput: MFU, %": ("throughput/mfu_pct$",),
    "energy: a step, J": ("energy/step_j$",),
    "cost of measuring, % of the time": ("efficiency/callback_overhead_pct$",),
}


def layout_of(tags: Iterable[str]) -> dict[str, dict[str, list[object]]]:
    """The charts that have something to show, as `SummaryWriter.add_custom_scalars` takes them."""
    tags = list(tags)
    shown: dict[str, list[object]] = {
        title: ["Multiline", list(patterns)]
        for title, patterns in CHARTS.items()
        if any(re.match(pattern, tag) for pattern in patterns for tag in tags)
    }
    return {TITLE: shown}
