"""What each config may hold: keys, types and ranges.

Hydra rejects an unknown key on the command line, but merges a misspelt one in a YAML file without a
word. `validate` checks every composed config against these classes, whatever it came from.

A field of type `Built` is a node with a `_target_`; its keys are checked against the signature of
what it names, so the signature is the schema and nothing is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Built = dict[str, Any]
"""A node that `build` turns into an object."""

Site = Literal[
    "stem", "block", "downsample", "final",
    "before_attention", "in_attention", "after_attention", "before_mlp", "in_mlp", "after_mlp",
]  # fmt: skip

BnStats = Literal["running", "batch", "update", "recalibrate"]


def given(*names: str) -> dict[str, Any]:
    """Metadata of a `Built` field: arguments that come from the program, not the config."""
    return {"given": names}


@dataclass
class LoraConfig:
    """`peft.lora`: the adapters of `peft=lora`, and of combinations such as norm+lora."""

    r: int
    alpha: float
    dropout: float
    target_modules: list[str] | None


@dataclass
class PeftConfig:
    """Group `peft`: which parameters train."""

    method: str
    head: str | None
    include: list[str]
    exclude: list[str]
    also: list[str]
    last_k: int | None
    blocks: str | None
    extra_norms: list[str]
    norm_kinds: list[str]
    sites: list[Site]
    add_affine: bool
    thaw: bool
    norm_lr: float | None
    head_lr: float | None
    bn_stats: BnStats
    recalibrate_batches: int
    lora: LoraConfig


@dataclass
class MemoryConfig:
    """Group `memory`: what is kept between forward and backward."""

    mode: Literal["off", "exact", "recompute"]
    check: bool
    kernels: Literal["auto", "aten", "cpp", "inductor"]


@dataclass
class TrainConfig:
    """`conf/job.yaml` and `conf/train.yaml`."""

    seed: int
    run_dir: str
    peft: PeftConfig
    memory: MemoryConfig
    callbacks: dict[str, Built | None]
    logger: dict[str, Built | None]
    model: Built
    data: Built
    task: Built = field(metadata=given("model", "selection", "optimizer", "scheduler", "rates"))
    optim: Built = field(metadata=given("params"))
    scheduler: Built | None = field(metadata=given("optimizer", "total_steps"))
    trainer: Built = field(metadata=given("callbacks", "logger"))


@dataclass
class ProfileConfig(TrainConfig):
    """`conf/profile.yaml`: the job that would run, and what is asked of it."""

    input_size: list[int] | None
    seq_len: int
    batch_size: int
    num_classes: int | None
    loss: Literal["task", "sum"]
    device: Literal["cpu", "cuda", "mps", "meta"]
    strategy: Literal["single", "ddp", "fsdp"]
    devices: int
    fit: str | None
    fit_methods: list[str]
    fit_memory: list[Literal["off", "exact", "recompute"]]
    against: Mapping[str, Any]  # a dict would be something to build
    measure: bool
    ceilings: bool
    second_opinion: bool
    format: Literal["table", "json", "csv", "html", "md"]
    depth: int | None
    sort: Literal["params", "macs", "activations", "saved", "bytes", "predicted_ms"] | None
    figures: bool


@dataclass
class EvalConfig:
    """`conf/eval.yaml`."""

    run: str
    run_dir: str
    trainer: Built = field(metadata=given("callbacks", "logger"))


@dataclass
class ExportConfig:
    """`conf/export.yaml`."""

    run: str
    to: Literal["merged", "folded", "peft"]
    run_dir: str
    batches: int


@dataclass(frozen=True)
class Range:
    """An interval that a number must lie in."""

    low: float
    high: float = math.inf
    low_open: bool = False

    def __contains__(self, value: float) -> bool:
        # NaN compares false with everything, so it is in no range.
        above = value > self.low if self.low_open else value >= self.low
        return above and value <= self.high and (value != math.inf or self.high == math.inf)

    def __str__(self) -> str:
        bound = f"{'>' if self.low_open else '>='} {self.low:g}"
        return bound if self.high == math.inf else f"{bound} and <= {self.high:g}"


MAX_SEED = 2**32 - 1
"""numpy's largest seed; Lightning seeds numpy too."""

RANGES: dict[str, Range] = {
    "seed": Range(0, MAX_SEED),
    "batch_size": Range(1),
    "seq_len": Range(1),
    "depth": Range(1),
    "devices": Range(1),
    "num_classes": Range(1),
    "data.batch_size": Range(1),
    "data.num_workers": Range(0),
    "data.channels": Range(1),
    "data.image_size": Range(1),
    "data.samples": Range(8),
    "data.length": Range(2),
    "data.letters": Range(2),
    "data.branches": Range(1),
    "data.classes": Range(2),
    "data.signal": Range(0, 1),
    "data.held_out": Range(0, 0.9, low_open=True),
    "model.num_classes": Range(1),
    "peft.last_k": Range(1),
    "peft.norm_lr": Range(0, 1e6, low_open=True),
    "peft.head_lr": Range(0, 1e6, low_open=True),
    "peft.recalibrate_batches": Range(1),
    "peft.lora.r": Range(1),
    "peft.lora.alpha": Range(0, low_open=True),
    "peft.lora.dropout": Range(0, 1),
    "optim.lr": Range(0, 1e6, low_open=True),
    "optim.weight_decay": Range(0, 1e6),
    "optim.momentum": Range(0, 1),
    "scheduler.warmup": Range(0, 1),
    "scheduler.floor": Range(0, 1),
    "trainer.max_epochs": Range(-1),
    "trainer.max_steps": Range(-1),
    "trainer.log_every_n_steps": Range(1),
    "trainer.accumulate_grad_batches": Range(1),
    "trainer.gradient_clip_val": Range(0),
    "task.loss.label_smoothing": Range(0, 1),
}
"""Ranges of the values that a constructor would take without a word."""
