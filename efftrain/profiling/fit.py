"""The largest batch whose training step fits into memory, found without running it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from efftrain.errors import ConfigError
from efftrain.graph.rehearsal import Rehearsal, batch_size, rehearse
from efftrain.profiling.loss import LossFunction
from efftrain.profiling.peak import StepPeak
from efftrain.profiling.step import OptimizerFactory, run_step

MOST_SAMPLES = 2**20


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits.

    Attributes:
        batch_size: Samples; 0 where not even the smallest batch fits.
        step_peak_bytes: Of that batch; of the smallest one where that does not fit.
        next_peak_bytes: Of one sample more, which does not fit; None where the search ended before.
        limit_bytes: What a step may hold.
        smallest_batch: Fewest samples that the model runs on: 1, or 2 where batch norm needs more.
        dry_runs: Steps that were rehearsed for it.
    """

    batch_size: int
    step_peak_bytes: int
    next_peak_bytes: int | None
    limit_bytes: int
    smallest_batch: int
    dry_runs: int

    def to_dict(self) -> dict[str, int]:
        """The figures that are known, by name."""
        found = {
            "batch_size": self.batch_size,
            "step_peak_bytes": self.step_peak_bytes,
            "limit_bytes": self.limit_bytes,
            "smallest_batch": self.smallest_batch,
            "dry_runs": self.dry_runs,
        }
        if self.next_peak_bytes is not None:
            found["next_peak_bytes"] = self.next_peak_bytes
        return found


def largest_batch(
    model: nn.Module,
    batch: Any,
    limit_bytes: int,
    loss_fn: LossFunction | None = None,
    *,
    optimizer: OptimizerFactory | None = None,
    autocast: torch.dtype | None = None,
    held_bytes: Callable[[StepPeak], int] = lambda peak: peak.step_peak_bytes,
    at_most: int = MOST_SAMPLES,
) -> Fit:
    """Find the largest batch whose step holds no more than a limit.

    Batches of any size are made of shapes alone, so no memory is needed for them. The peak grows with
    the batch, piece by piece in a straight line and ever steeper, so that a line through two dry runs
    says where to look next. The answer fits, and one sample more does not.

    Args:
        model: As for `profile`. Left as it is.
        batch: Any batch that the model can be called with; each tensor that is as long as it grows.
        limit_bytes: What a step may hold.
        loss_fn: From the model's output to a scalar, for any number of samples.
        optimizer: Makes an optimizer from the trainable parameters; without, its state is left out.
        autocast: Low precision of the step.
        held_bytes: What a step holds, where that is not its peak on one device.
        at_most: Samples at which the search ends.

    Returns:
        The answer.

    Raises:
        ConfigError: The model cannot be run on shapes alone.
    """

    def run(rehearsal: Rehearsal) -> int:
        step = run_step(rehearsal, loss_fn, optimizer=optimizer, memory=True, autocast=autocast)
        if step.peak is None:
            raise TypeError("a step that is run with memory=True shows its memory")
        return held_bytes(step.peak)

    peaks: dict[int, int] = {}

    def peak_of(samples: int) -> int:
        if samples not in peaks:
            peaks[samples] = rehearse(run, model, scaled(batch, samples))
        return peaks[samples]

    smallest = _smallest(peak_of)
    fits = too_many = 0
    if peak_of(smallest) <= limit_bytes:
        fits, too_many = _search(peak_of, limit_bytes, smallest, max(at_most, smallest))
    return Fit(
        batch_size=fits,
        step_peak_bytes=peaks[fits or smallest],
        next_peak_bytes=peaks.get(too_many),
        limit_bytes=limit_bytes,
        smallest_batch=smallest,
        dry_runs=len(peaks),
    )


def scaled(batch: Any, samples: int) -> Any:
    """The batch with another number of samples, on the meta device.

    Args:
        batch: Tensors in any arrangement.
        samples: How many.

    Returns:
        The same arrangement; a tensor that is not as long as the batch is left as it is.
    """
    size = batch_size(batch)

    def scale(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != size:
            return tensor
        return torch.empty((samples, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")

    return tree_map_only(Tensor, scale, batch)


def _smallest(peak_of: Callable[[int], int]) -> int:
    """One sample; two where one is refused, as by batch norm on a single value."""
    try:
        peak_of(1)
    except ConfigError as refused:
        try:
            peak_of(2)
        except ConfigError:
            raise refused from None
        return 2
    return 1


def _search(peak_of: Callable[[int], int], limit: int, fits: int, at_most: int) -> tuple[int, int]:
    """The largest number that fits, and one more; 0 for that where the search ended at `at_most`.

    Before anything is too much, the line through two that fit leads to where the limit is reached or
    beyond. Then the line across leads there or before; where it gains little, the middle is tried.
    """
    if fits == at_most:
        return fits, 0
    before, too_many = fits, 0
    guess = fits + 1
    while True:
        gap = too_many - fits
        if peak_of(guess) <= limit:
            before, fits = fits, guess
        else:
            too_many = guess
        if fits == at_most or too_many == fits + 1:
            return fits, too_many
        if not too_many:
            guess = min(_on_line(peak_of, before, fits, limit) + 1, at_most)
        elif gap > 0 and too_many - fits > gap // 2:
            guess = (fits + too_many) // 2
        else:
            guess = _on_line(peak_of, fits, too_many, limit)
        guess = max(guess, fits + 1)
        if too_many:
            guess = min(guess, too_many - 1)


def _on_line(peak_of: Callable[[int], int], one: int, other: int, limit: int) -> int:
    """The last number before a line through two peaks reaches the limit; far away where it is flat."""
    slope = (peak_of(other) - peak_of(one)) / (other - one)
    return math.floor(other + (limit - peak_of(other)) / slope) if slope > 0 else 2 * other
