"""How many samples a model takes in a second, at the batch size that suits it best."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from efftrain.errors import ConfigError, MachineError
from efftrain.graph.rehearsal import batch_size, call_arguments
from efftrain.measure.device import device_name
from efftrain.measure.latency import Progress, inference
from efftrain.measure.step_clock import Clock
from efftrain.measure.stopwatch import Stopwatch

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUDGET_S = 30.0
WARMUP = 2  # the first chooses kernels, the second says how many runs there is time for
POINT_RUNS = 5  # at least, and as many as fit into
POINT_S = 0.5

End = Literal["all", "out of memory", "out of time"]


@dataclass(frozen=True)
class ThroughputPoint:
    """One batch size.

    Attributes:
        batch_size: Samples of each run.
        samples_per_s: Samples over the time of all runs.
        runs: Of which that is the mean; waited for together, so that a device may queue them.
    """

    batch_size: int
    samples_per_s: float
    runs: int


@dataclass(frozen=True)
class ThroughputSweep:
    """Throughput of inference by batch size.

    Attributes:
        points: In the order of the batch sizes; those that did not fit are not there.
        end: Why it ended: after "all" sizes, "out of memory" at the next one, or because it would
            have been "out of time".
        device: Its name.
        threads: Of the CPU; None on an accelerator.
        disturbed: Whether other programs had part of the CPU just before or after: all rates may
            then be many times too low. Of an accelerator it is not known.
    """

    points: tuple[ThroughputPoint, ...]
    end: End
    device: str
    threads: int | None
    disturbed: bool

    @property
    def best(self) -> ThroughputPoint:
        """The point with the most samples in a second."""
        return max(self.points, key=lambda point: point.samples_per_s)

    def to_dict(self) -> dict[str, Any]:
        """The best point, and all of them; `threads` left out where it is None."""
        found: dict[str, Any] = {
            "samples_per_s": self.best.samples_per_s,
            "batch_size": self.best.batch_size,
            "points": [asdict(point) for point in self.points],
            "end": self.end,
            "device": self.device,
            "disturbed": self.disturbed,
        }
        return found if self.threads is None else {**found, "threads": self.threads}


def measure_throughput(
    model: nn.Module,
    batch: Any,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budget_s: float = BUDGET_S,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> ThroughputSweep:
    """Time inference at several batch sizes.

    The model runs in eval and inference mode and is then in the modes that it was in.

    Args:
        model: With weights, on the device to measure.
        batch: What it is called with, of any size: its samples are repeated or left out.
        batch_sizes: Ascending; memory may end the sweep.
        budget_s: Seconds for all of it; a size that is expected to take longer than what is left
            ends the sweep. The first is measured in any case.
        progress: Called with the sizes that are done and their number, while no time counts.
        clock: Seconds, monotonic.

    Returns:
        All points.

    Raises:
        ConfigError: No batch sizes, or a model without values (meta).
        MachineError: Not even the first size fits into memory.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch_sizes must be one or more sizes above 0, got {[*batch_sizes]}")
    points: list[ThroughputPoint] = []
    end: End = "all"
    began = clock()
    with inference(model, batch) as (device, batch):
        disturbed = Stopwatch(device).is_disturbed()
        for size in sorted(batch_sizes):
            left_s = budget_s - (clock() - began)
            if points and (WARMUP + POINT_RUNS) * size / points[-1].samples_per_s > left_s:
                end = "out of time"
                break
            point = _measure_point(model, batch, size, device, Stopwatch(device, clock))
            if point is None:
                end = "out of memory"
                break
            points.append(point)
            if progress is not None:
                progress(len(points), len(batch_sizes))
    if not points:
        raise MachineError(
            f"{type(model).__name__} runs out of memory on {device} with a batch of "
            f"{min(batch_sizes)}; give smaller batch_sizes or smaller inputs"
        )
    return ThroughputSweep(
        points=tuple(points),
        end=end,
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        disturbed=Stopwatch(device).is_disturbed() or disturbed,
    )


def of_size(batch: Any, size: int) -> Any:
    """A batch of another size: its samples again and again, in memory of their own.

    A tensor that is as long as the batch holds samples; the others stay as they are.
    """
    given = batch_size(batch)
    chosen = torch.arange(size) % given

    def resized(tensor: Tensor) -> Tensor:
        holds_samples = tensor.dim() and tensor.shape[0] == given
        return tensor[chosen.to(tensor.device)] if holds_samples else tensor

    return tree_map_only(Tensor, resized, batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no more memory to give."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # the CPU's allocator and MPS raise a plain RuntimeError
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("can't allocate memory", "out of memory")
    )


def _measure_point(
    model: nn.Module, batch: Any, size: int, device: torch.device, watch: Stopwatch
) -> ThroughputPoint | None:
    """One batch size; None where memory runs out."""
    try:
        args, kwargs = call_arguments(of_size(batch, size))

        def run() -> None:
            model(*args, **kwargs)

        watch.seconds(run)
        once_s = watch.seconds(run)
        runs = max(POINT_RUNS, math.ceil(POINT_S / max(once_s, 1e-6)))
        taken_s = watch.seconds(run, runs)
        return ThroughputPoint(size, size * runs / max(taken_s, 1e-9), runs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # the error is gone and with it what its frames held; only now is memory free to be given back
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
