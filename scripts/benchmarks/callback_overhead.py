"""What the efficiency callbacks cost a training step, beside Lightning's own monitors.

python scripts/benchmarks/callback_overhead.py

Prints a Markdown table. The same Trainer, with a TensorBoard logger and its default interval of 50
steps, trains without callbacks, with all of ours at their defaults, and with Lightning's
ThroughputMonitor and DeviceStatsMonitor (which needs psutil). The three take turns; a figure is the
median over the turns of the difference to the run without callbacks of the same turn. A run's figure
is its wall clock over whole logging windows divided by their steps, so that writing is in it.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, ThroughputMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from efftrain.callbacks import (
    ActivationMemory,
    CostCurve,
    EfficiencySummary,
    EnergyMeter,
    ModelCost,
    ParameterCount,
    StepTimer,
    Throughput,
)

WINDOW = 50
BATCH = 8


class Work(pl.LightningModule):
    """A small network whose step takes so much longer than Lightning needs for it."""

    flops_per_batch = 1  # asked for by ThroughputMonitor

    def __init__(self, work_s: float) -> None:
        """Take the seconds."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.work_s = work_s

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Pass the time, then compute a little."""
        if self.work_s > 0.005:
            time.sleep(self.work_s)
        else:  # too short to sleep exactly
            until = time.thread_time() + self.work_s
            while time.thread_time() < until:
                pass
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Times(NamedTuple):
    """Seconds of a step."""

    wall_s: float
    cpu_s: float


class Stopwatch(Callback):
    """Times the windows after the first one, which holds every warm-up."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clocks where a window ends."""
        if batch_idx == WINDOW:
            self.began = time.perf_counter(), time.process_time()
        elif batch_idx and batch_idx % WINDOW == 0:
            self.ended = time.perf_counter(), time.process_time()
            self.steps = batch_idx - WINDOW

    @property
    def step(self) -> Times:
        """Mean of a step, with everything that a window takes."""
        spans = (after - before for before, after in zip(self.began, self.ended, strict=True))
        return Times(*(span / self.steps for span in spans))


def ours() -> list[Callback]:
    """All that measure, in the order of `callbacks=default`."""
    return [
        ParameterCount(),
        ModelCost(),
        ActivationMemory(),
        CostCurve(),
        StepTimer(),
        Throughput(),
        EnergyMeter(),
        EfficiencySummary(),
    ]


def lightnings() -> list[Callback]:
    """The two that measure speed and device."""
    return [ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0])), DeviceStatsMonitor()]


VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "efftrain's": ours,
    "Lightning's": lightnings,
}


def time_step(callbacks: list[Callback], work_s: float, steps: int) -> Times:
    """Time of one step of a run with these callbacks."""
    torch.manual_seed(0)
    data = TensorDataset(torch.zeros(BATCH * (steps + 1), 64))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            callbacks=[watch, *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            log_every_n_steps=WINDOW,
        )
        trainer.fit(Work(work_s), DataLoader(data, BATCH))
    return watch.step


def compare(work_s: float, steps: int, turns: int) -> dict[str, list[Times]]:
    """Step times of each variant, in the same order of turns."""
    times: dict[str, list[Times]] = {name: [] for name in VARIANTS}
    for turn in range(turns):
        names = list(VARIANTS)
        for name in names[turn % 3 :] + names[: turn % 3]:
            times[name].append(time_step(VARIANTS[name](), work_s, steps))
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

    print("| step | callbacks | time of a step | more wall clock | more CPU time |")
    print("| --- | --- | --- | --- | --- |")
    for label, work_s, steps in (("1 ms", 0.0004, 1050), ("50 ms", 0.05, 150)):
        times = compare(work_s, steps, turns)
        without = times.pop("none")
        step_s = median(step.wall_s for step in without)
        print(f"| {label} | none | {1e3 * step_s:.2f} ms | | |")
        for name, steps_s in times.items():
            pairs = list(zip(steps_s, without, strict=True))
            more = [
                median(a.wall_s - b.wall_s for a, b in pairs),
                median(a.cpu_s - b.cpu_s for a, b in pairs),
            ]
            cells = " | ".join(f"{1e6 * s:.0f} us, {100 * s / step_s:.2f} %" for s in more)
            step_ms = 1e3 * median(step.wall_s for step in steps_s)
            print(f"| {label} | {name} | {step_ms:.2f} ms | {cells} |")


if __name__ == "__main__":
    main()
