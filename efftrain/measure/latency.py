"""How long a model takes for one sample, and for one training step.

Nothing here is derived from throughput: a batch of 32 takes less than 32 times as long as one.
MLPerf's single stream reports the 90th percentile over at least 600 s; these runs are far shorter,
so each figure carries the number of runs it comes from.

Source: Reddi et al., "MLPerf inference benchmark", ISCA 2020, section III.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from efftrain.errors import ConfigError
from efftrain.graph.rehearsal import batch_size, call_arguments, first_sample
from efftrain.measure.device import device_name
from efftrain.measure.step_clock import Clock
from efftrain.measure.stopwatch import Stopwatch
from efftrain.profiling.loss import LossFunction, loss_of
from efftrain.profiling.step import OptimizerFactory
from efftrain.surgery.equality import in_eval
from efftrain.units import MS_PER_S

RUNS = 100
WARMUP = 10
STEP_RUNS = 30
STEP_WARMUP = 3

Progress = Callable[[int, int], None]
"""Called with the runs that are done and their number, between runs and never while time counts."""


@dataclass(frozen=True)
class Latency:
    """Wall clock of something that was run again and again, one run at a time.

    Attributes:
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; of fewer than 100 runs, close to the slowest.
        runs: How many they come from.
        warmup: Runs before them, left out.
        samples: In each run.
        device: Its name.
        threads: Of the CPU; None on an accelerator.
        disturbed: Whether other programs had part of the CPU just before or after: the times may
            then be many times too long. Of an accelerator it is not known.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    warmup: int
    samples: int
    device: str
    threads: int | None
    disturbed: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `threads` left out where it is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure_latency(
    model: nn.Module,
    batch: Any,
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time inference of one sample, each run alone and waited for.

    The model runs in eval and inference mode and is then in the modes that it was in.

    Args:
        model: With weights, on the device to measure.
        batch: What it is called with: a tensor, a sequence of positional arguments or a mapping of
            keyword arguments; the first sample is used.
        runs: To time.
        warmup: Runs before them: they choose kernels, allocate memory, compile.
        progress: Called between runs.
        clock: Seconds, monotonic.

    Returns:
        The percentiles.

    Raises:
        ConfigError: No runs, or a model without values (meta).
    """
    with inference(model, batch) as (device, batch):
        args, kwargs = call_arguments(first_sample(batch))
        return _time(lambda: model(*args, **kwargs), device, runs, warmup, 1, progress, clock)


def measure_step(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
    *,
    runs: int = STEP_RUNS,
    warmup: int = STEP_WARMUP,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time a training step on the same batch, on a copy of the model.

    Args:
        model: With weights and `requires_grad` as it trains, in the modes that it trains in. It is
            copied, so there must be memory for two.
        batch: As for `measure_latency`; all of it is used.
        loss_fn: From the model's output to a scalar. Without: the output's own `loss`, or the sum
            of its floating point tensors.
        optimizer: Makes an optimizer from the trainable parameters; without, nothing is updated.
        runs: To time.
        warmup: Runs before them: the first makes the optimizer's state.
        progress: Called between runs.
        clock: Seconds, monotonic.

    Returns:
        The percentiles of forward, loss, backward, update and `zero_grad` together; of as much of
        it as there is where nothing is trainable.

    Raises:
        ConfigError: No runs, or a model without values (meta).
    """
    device = device_of(model, batch)
    with _same_random_numbers(device), torch.inference_mode(False), torch.enable_grad():
        trained = copy.deepcopy(model)
        trainable = [p for p in trained.parameters() if p.requires_grad]
        updating = optimizer(trainable) if optimizer is not None and trainable else None
        batch = on_device(batch, device)
        args, kwargs = call_arguments(batch)

        def step() -> None:
            loss = loss_of(trained(*args, **kwargs), loss_fn)
            if loss is not None and loss.requires_grad:
                loss.backward()
            if updating is not None:
                updating.step()
            trained.zero_grad(set_to_none=True)

        trained.zero_grad(set_to_none=True)
        return _time(step, device, runs, warmup, batch_size(batch), progress, clock)


@contextmanager
def inference(model: nn.Module, batch: Any) -> Generator[tuple[torch.device, Any]]:
    """Eval and inference mode; afterwards modes and random numbers are as they were.

    Yields:
        The model's device, and the batch on it.

    Raises:
        ConfigError: A model without values (meta).
    """
    device = device_of(model, batch)
    batch = on_device(batch, device)
    with _same_random_numbers(device), in_eval(model), torch.inference_mode():
        yield device, batch


def device_of(model: nn.Module, batch: Any) -> torch.device:
    """Where a model runs: at its first parameter or buffer, else at the first tensor of the batch.

    Raises:
        ConfigError: On the meta device, where nothing runs.
    """
    tensors = [*model.parameters(), *model.buffers(), *tree_leaves(batch)]
    devices = [t.device for t in tensors if isinstance(t, Tensor)]
    if any(device.type == "meta" for device in devices):
        raise ConfigError(
            f"{type(model).__name__} or its batch is on the meta device: nothing to time"
        )
    return devices[0] if devices else torch.device("cpu")


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)


@contextmanager
def _same_random_numbers(device: torch.device) -> Generator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _time(
    work: Callable[[], object],
    device: torch.device,
    runs: int,
    warmup: int,
    samples: int,
    progress: Progress | None,
    clock: Clock,
) -> Latency:
    if runs < 1:
        raise ConfigError(f"runs must be at least 1, got {runs}")
    watch, taken_s = Stopwatch(device, clock), list[float]()
    disturbed = Stopwatch(device).is_disturbed()
    for run in range(-warmup, runs):
        seconds = watch.seconds(work)
        if run >= 0:
            taken_s.append(seconds)
            if progress is not None:
                progress(run + 1, runs)
    times = torch.tensor(taken_s, dtype=torch.float64) * MS_PER_S
    p50, p90, p99 = torch.quantile(times, torch.tensor([0.5, 0.9, 0.99]).double()).tolist()
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        runs=runs,
        warmup=warmup,
        samples=samples,
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        disturbed=Stopwatch(device).is_disturbed() or disturbed,
    )
