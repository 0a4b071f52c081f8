"""Every figure that a run logs: its TensorBoard tag, unit and meaning.

The README's table is checked against this one, and so is what a run logs. A figure that cannot be
known is left out: never 0, infinite or a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

How = Literal["predicted", "measured", "estimated"]

NEEDS = (
    "accumulation", "counter", "feature maps", "kept ceilings", "known peak", "peak meter", "tokens",
)  # fmt: skip
"""Gradients that accumulate over several batches; an energy counter of the device; a model with
feature maps; ceilings of the machine that were measured before; a device whose peak FLOP/s are known;
a system that tells the peak of memory; batches of tokens."""


@dataclass(frozen=True)
class Tag:
    """One figure.

    Attributes:
        name: TensorBoard tag; `<…>` stands for a name that the config gives.
        unit: Of the logged value.
        how: From shapes before running, while running, or from a cost model.
        meaning: In one line.
        needs: What a training run must have to log it, one of `NEEDS`; "" for nothing.
    """

    name: str
    unit: str
    how: How
    meaning: str
    needs: str = ""

    def matches(self, tag: str) -> bool:
        """Whether a logged tag is this figure."""
        pattern = re.sub(r"<[^>]+>", r"[a-z0-9_]+", self.name)
        return re.fullmatch(pattern, tag) is not None


TAGS: tuple[Tag, ...] = (
    Tag("train/loss", "", "measured", "mean over the epoch's samples; `train/loss_step` of a batch"),
    Tag("train/<metric>", "", "measured", "a metric of the task over the epoch's training batches"),
    Tag("val/loss", "", "measured", "mean loss on the held-out split"),
    Tag("val/<metric>", "", "measured", "a metric of the task on the held-out split"),
    Tag("lr/<group>", "", "measured", "learning rate of the norms, the head, the other parameters"),
    Tag("params/total", "count", "predicted", "elements of all parameters; a tied tensor counts once"),
    Tag("params/trainable", "count", "predicted", "of these, those that require a gradient"),
    Tag("params/trainable_pct", "%", "predicted", "100 x trainable / total"),
    Tag("params/trainable/<role>", "count", "predicted", "of the trainable: norm, head, bias, other"),
    Tag("params/buffers", "count", "predicted", "elements of the registered buffers"),
    Tag("size/model_mib", "MiB", "predicted", "parameters and buffers at their own dtypes"),
    Tag("size/<width>_mib", "MiB", "predicted", "parameters at fp32, fp16, int8, int4, without scales"),
    Tag("size/delta_kib", "KiB", "predicted", "the file that one fine-tuned task adds"),
    Tag("macs/forward", "count", "predicted", "multiply-accumulates of inference of one sample"),
    Tag("flops/forward_gflop", "GFLOP", "predicted", "forward and loss of a training step"),
    Tag("flops/backward_gflop", "GFLOP", "predicted", "backward of a training step, with this freezing"),
    Tag("flops/step_gflop", "GFLOP", "predicted", "a training step, optimizer and recomputation too"),
    Tag("flops/total_gflop", "GFLOP", "predicted", "forward and backward of all samples so far"),
    Tag("activations/total", "count", "predicted", "elements of input and layers' outputs, one sample"),
    Tag("activations/peak", "count", "predicted", "the most elements alive at one layer, one sample"),
    Tag("activations/conv_linear", "count", "predicted", "outputs of conv, linear and matmul alone"),
    Tag("receptive_field/size", "pixels", "predicted", "of the last feature map", "feature maps"),
    Tag("roofline/intensity", "FLOP/byte", "predicted", "FLOP for each byte moved, at inference"),
    Tag("latency/predicted_ms", "ms", "predicted", "inference of one sample", "kept ceilings"),
    Tag("energy/estimated_mj", "mJ", "estimated", "inference of one sample on a 45 nm chip"),
    Tag("memory/saved_mib", "MiB", "predicted", "what autograd keeps from forward until backward"),
    Tag("memory/saved_measured_mib", "MiB", "measured", "the same, read off a real step"),
    Tag("memory/saved_difference_pct", "%", "measured", "100 x (measured - predicted) / predicted"),
    Tag("memory/saved/<cause>_mib", "MiB", "measured", "of that, by the kind of operation that keeps it"),
    Tag("memory/step_peak_mib", "MiB", "predicted", "the most a step holds, parameters included"),
    Tag("memory/device_peak_mib", "MiB", "measured", "most held; on a CPU, growth", "peak meter"),
    Tag("time/step_ms", "ms", "measured", "mean time of an optimizer step, once its data are there"),
    Tag("time/data_ms", "ms", "measured", "mean wait for the data of a step"),
    Tag("time/h2d_ms", "ms", "measured", "mean time in which the data of a step went to the device"),
    Tag("time/forward_ms", "ms", "measured", "mean time of forward and loss in a step"),
    Tag("time/backward_ms", "ms", "measured", "mean time of backward in a step"),
    Tag("time/optimizer_ms", "ms", "measured", "mean time of clipping, optimizer and schedule in a step"),
    Tag("time/micro_step_ms", "ms", "measured", "mean of a micro-batch, without optimizer", "accumulation"),
    Tag("time/step_p50_ms", "ms", "measured", "median step in the logging window"),
    Tag("time/step_p90_ms", "ms", "measured", "90th percentile of the steps in the logging window"),
    Tag("time/step_p99_ms", "ms", "measured", "99th percentile of the steps in the logging window"),
    Tag("throughput/samples_per_s", "1/s", "measured", "training samples, data wait included, all devices"),
    Tag("throughput/tokens_per_s", "1/s", "measured", "the same of tokens, without padding", "tokens"),
    Tag("throughput/achieved_gflops", "GFLOP/s", "measured", "predicted FLOP over step time"),
    Tag("throughput/mfu_pct", "%", "measured", "that over the device's dense peak", "known peak"),
    Tag("energy/step_j", "J", "measured", "of a step, by the device's counter", "counter"),
    Tag("energy/total_j", "J", "measured", "of training so far, by the device's counter", "counter"),
    Tag("val_by_gflop/<metric>", "", "measured", "`val/<metric>` with `flops/total_gflop` as its step"),
    Tag("efficiency/callback_overhead_pct", "%", "measured", "what measuring all this costs a step"),
    Tag("efficiency/callbacks_s", "s", "measured", "what it has cost the whole run, the rehearsal too"),
)  # fmt: skip
"""In the order of the README's table."""


def find_tag(name: str) -> Tag | None:
    """The figure that a logged tag belongs to."""
    bare = name.removesuffix("_step")
    return next((tag for tag in TAGS if tag.name == bare or tag.matches(bare)), None)
