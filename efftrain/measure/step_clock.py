"""Splitting the wall clock of a training loop into steps and the waiting between them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch

from efftrain.units import MS_PER_S

Clock = Callable[[], float]


@dataclass(frozen=True)
class StepTimes:
    """Optimizer steps over some stretch of training.

    Attributes:
        steps: How many were timed.
        step_ms: Mean wall clock of one, the wait for its data left out.
        data_ms: Mean wait for the data of one.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
    """

    steps: int
    step_ms: float
    data_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class StepClock:
    """Times optimizer steps; a step of several accumulated batches is the sum of them.

    Steps are told apart from what lies between them: `pause` says that the coming gap (validation,
    an epoch's start, a checkpoint) is not a wait for data.

    Args:
        warmup_steps: First steps that are left out: they allocate memory and choose kernels.
        clock: Seconds, monotonic.
    """

    def __init__(self, warmup_steps: int = 3, clock: Clock = time.perf_counter) -> None:
        """Start with nothing timed."""
        self._clock = clock
        self._warmup_left = warmup_steps
        self._gap_began: float | None = None
        self._batch_began = 0.0
        self._step_s = 0.0
        self._wait_s = 0.0
        self._steps_s = array("d")
        self._waits_s = array("d")

    def drain(self) -> None:
        """Charge the time since the last batch to its step: a device has just finished its queue."""
        if self._gap_began is None:
            return
        late_s, self._gap_began = self._clock() - self._gap_began, self._clock()
        if self._step_s:
            self._step_s += late_s
        elif self._steps_s:
            self._steps_s[-1] += late_s

    @property
    def is_warming_up(self) -> bool:
        """Whether steps are still left out."""
        return self._warmup_left > 0

    def pause(self) -> None:
        """Do not count the time until the next batch begins."""
        self._gap_began = None

    def begin_batch(self) -> None:
        """A batch is there and its step begins."""
        self._batch_began = self._clock()
        if self._gap_began is not None:
            self._wait_s += self._batch_began - self._gap_began

    def end_batch(self, stepped: bool) -> bool:
        """A batch is done.

        Args:
            stepped: Whether the optimizer stepped, so that what was summed up is one whole step.

        Returns:
            Whether a step was recorded; false for a warm-up step.
        """
        now = self._clock()
        self._step_s += now - self._batch_began
        self._gap_began = now
        if not stepped:
            return False
        step_s, wait_s = self._step_s, self._wait_s
        self._step_s = self._wait_s = 0.0
        if self._warmup_left > 0:
            self._warmup_left -= 1
            return False
        self._steps_s.append(step_s)
        self._waits_s.append(wait_s)
        return True

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return len(self._steps_s)

    def times(self, last: int | None = None) -> StepTimes | None:
        """Times of the last so many steps, or of all; None where there are none."""
        count = self.steps if last is None else min(last, self.steps)
        if count == 0:
            return None
        steps = torch.tensor(self._steps_s[-count:], dtype=torch.float64) * MS_PER_S
        waits = torch.tensor(self._waits_s[-count:], dtype=torch.float64) * MS_PER_S
        p50, p90, p99 = torch.quantile(steps, torch.tensor([0.5, 0.9, 0.99]).double()).tolist()
        return StepTimes(count, steps.mean().item(), waits.mean().item(), p50, p90, p99)
