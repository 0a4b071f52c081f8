"""Every figure that a run logs: its TensorBoard tag, unit and meaning.

The README's table is checked against this one, and so is what a run logs. A figure that cannot be
known is left out: never 0, infinite or a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

How = Literal["predicted", "measured", "estimated"]


@dataclass(frozen=True)
class Tag:
    """One figure.

    Attributes:
        name: TensorBoard tag; `<…>` stands for a name that the config gives.
        unit: Of the logged value.
        how: From shapes before running, while running, or from a cost model.
        meaning: In one line.
        always: Whether every training run logs it; some take a GPU, tokens, accumulated gradients, …
    """

    name: str
    unit: str
    how: How
    meaning: str
    always: bool = True

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
    Tag("params/buffers", "count", "predicted", "elements of the registered buffers"),
    Tag("size/model_mib", "MiB", "predicted", "parameters and buffers at their own dtypes"),
    Tag("time/step_ms", "ms", "measured", "mean time of an optimizer step, once its data are there"),
    Tag("time/data_ms", "ms", "measured", "mean wait for the data of a step"),
    Tag("time/h2d_ms", "ms", "measured", "mean time in which the data of a step went to the device"),
    Tag("time/forward_ms", "ms", "measured", "mean time of forward and loss in a step"),
    Tag("time/backward_ms", "ms", "measured", "mean time of backward in a step"),
    Tag("time/optimizer_ms", "ms", "measured", "mean time of clipping, optimizer and schedule in a step"),
    Tag("time/micro_step_ms", "ms", "measured", "mean forward and backward of a micro-batch", False),
    Tag("time/step_p50_ms", "ms", "measured", "median step in the logging window"),
    Tag("time/step_p90_ms", "ms", "measured", "90th percentile of the steps in the logging window"),
    Tag("time/step_p99_ms", "ms", "measured", "99th percentile of the steps in the logging window"),
    Tag("throughput/samples_per_s", "1/s", "measured", "training samples, data wait included, all devices"),
    Tag("throughput/tokens_per_s", "1/s", "measured", "the same of tokens, without padding", False),
    Tag("throughput/achieved_gflops", "GFLOP/s", "measured", "predicted FLOP over step time", False),
    Tag("throughput/mfu_pct", "%", "measured", "that over the device's dense peak", False),
    Tag("efficiency/callback_overhead_pct", "%", "measured", "what measuring all this costs"),
)  # fmt: skip
"""In the order of the README's table."""


def find_tag(name: str) -> Tag | None:
    """The figure that a logged tag belongs to."""
    bare = name.removesuffix("_step")
    return next((tag for tag in TAGS if tag.name == bare or tag.matches(bare)), None)
