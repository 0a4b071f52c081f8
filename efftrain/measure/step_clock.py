"""Splitting the time of a training loop into optimizer steps, their parts and what lies between."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

from efftrain.measure.compiles import graphs_compiled
from efftrain.measure.timeline import HostTimeline, Mark, Timeline, Unread
from efftrain.units import MS_PER_S

Clock = Callable[[], float]


class Part(IntEnum):
    """What the time of a batch goes to; the first three lie before its step."""

    DATA = 0
    TRANSFER = 1
    SETUP = 2
    FORWARD = 3
    BACKWARD = 4
    OPTIMIZER = 5
    OTHER = 6


@dataclass(frozen=True)
class StepTimes:
    """Optimizer steps over some stretch of training. None is what is not known.

    Attributes:
        steps: How many were timed.
        step_ms: Mean time of one, from its batch being on the device to its end; several batches
            where gradients accumulate.
        data_ms: Mean wait for the data of one. Gaps that hold something else as well, such as the
            start of an epoch, are not counted.
        h2d_ms: Mean time in which its data were brought to the device.
        forward_ms: Mean time of forward and loss.
        backward_ms: Mean time of backward.
        optimizer_ms: Mean time of what follows it where the optimizer steps.
        micro_step_ms: Mean time of one batch without the optimizer, where gradients accumulate.
        step_p50_ms: Median step.
        step_p90_ms: 90th percentile.
        step_p99_ms: 99th percentile.
    """

    steps: int
    step_ms: float
    data_ms: float | None
    h2d_ms: float | None
    forward_ms: float | None
    backward_ms: float | None
    optimizer_ms: float | None
    micro_step_ms: float | None
    step_p50_ms: float
    step_p90_ms: float
    step_p99_ms: float

    def to_figures(self) -> dict[str, float]:
        """What is known, by the names that are logged below `time/`."""
        figures = {name: getattr(self, name) for name in TIMES}
        return {name: value for name, value in figures.items() if value is not None}


TIMES = tuple(field.name for field in fields(StepTimes) if field.name != "steps")
"""The names of all times that may be known, in their order."""


class _Batch(NamedTuple):
    """What one batch leaves to be read."""

    laps: list[tuple[Part, Mark]]  # each lasts until the next one, the last one until the end
    end: Mark
    stepped: bool
    counts: bool  # nothing happened in it that is no part of training


class _Sums:
    """Steps added up."""

    __slots__ = ("batches", "gaps", "parts_s", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.batches = 0
        self.gaps = 0
        self.parts_s = [0.0] * len(Part)

    def add(self, other: _Sums) -> None:
        self.steps += other.steps
        self.batches += other.batches
        self.gaps += other.gaps
        self.parts_s = list(map(operator.add, self.parts_s, other.parts_s))

    @property
    def step_s(self) -> float:
        return sum(self.parts_s[Part.FORWARD :])


class StepClock:
    """Times optimizer steps; a step of several accumulated batches is the sum of them.

    For each batch: `begin_transfer`, `end_transfer`, `begin_batch`, `begin(part)` as often as
    wanted, `end_batch`. Nothing waits for the device: a batch is read once the device is done with
    it, so that what is known may lag some batches behind.

    Args:
        warmup_steps: First steps that are left out: they allocate memory and choose kernels.
        timeline: Of the device.
    """

    def __init__(self, warmup_steps: int = 3, timeline: Timeline | None = None) -> None:
        """Start with nothing timed."""
        self._timeline = timeline or HostTimeline()
        self._unread: Unread[_Batch] = Unread(self._timeline, self._read)
        self._warmup_left = warmup_steps
        self._laps: list[tuple[Part, Mark]] = []
        self._in_batch = False
        self._counts = True
        self._graphs = graphs_compiled()
        self._step = _Sums()
        self._step_counts = True
        self._window = _Sums()
        self._past = _Sums()  # before the window
        self._steps_s = array("d")

    @property
    def is_warming_up(self) -> bool:
        """Whether steps are still left out."""
        if self._warmup_left > 0:
            self._unread.read_passed()
        return self._warmup_left > 0

    @property
    def steps(self) -> int:
        """Steps that are done, without those of the warm-up."""
        self._unread.read_passed()
        return len(self._steps_s)

    @property
    def window_s(self) -> float:
        """Time of the steps of the window, with the data's way to them."""
        self._unread.read_passed()
        return sum(self._window.parts_s)

    def pause(self) -> None:
        """Something else than training is going on until the next batch begins.

        Within a batch, this leaves out the whole step.
        """
        if self._in_batch:
            self._counts = False
        else:
            self._laps = []

    def begin_transfer(self) -> None:
        """A batch is there, and goes to the device."""
        self._laps.append((Part.TRANSFER, self._timeline.mark()))

    def end_transfer(self) -> None:
        """The batch is on the device."""
        self._laps.append((Part.SETUP, self._timeline.mark()))

    def begin_batch(self, part: Part = Part.FORWARD) -> None:
        """The step begins, or its next batch does."""
        self._in_batch = True
        self._laps.append((part, self._timeline.mark()))

    def begin(self, part: Part) -> None:
        """Time from here on is this part's."""
        self._laps.append((part, self._timeline.mark()))

    def end_batch(self, stepped: bool) -> None:
        """A batch is done.

        Args:
            stepped: Whether the optimizer stepped, so that what was summed up is one whole step.
        """
        end = self._timeline.mark()
        before, self._graphs = self._graphs, graphs_compiled()
        counts = self._counts and self._graphs == before
        self._unread.add(end, _Batch(self._laps, end, stepped, counts))
        self._laps = [(Part.DATA, end)]
        self._in_batch, self._counts = False, True

    def finish(self) -> None:
        """Wait for the device, and read what is left."""
        self._unread.finish()

    def times(self) -> StepTimes | None:
        """Of all steps so far; None where there are none."""
        self._unread.read_passed()
        total = _Sums()
        total.add(self._past)
        total.add(self._window)
        return _summarize(total, self._steps_s)

    def take_window(self) -> StepTimes | None:
        """Of the steps that were done since this was called last; None where there are none."""
        self._unread.read_passed()
        window, self._window = self._window, _Sums()
        self._past.add(window)
        return _summarize(window, self._steps_s[len(self._steps_s) - window.steps :])

    def _read(self, batch: _Batch) -> None:
        step, seconds = self._step, self._timeline.seconds
        parts_s, later = step.parts_s, batch.end
        for part, mark in reversed(batch.laps):
            if part is Part.OPTIMIZER and not batch.stepped:
                part = Part.OTHER  # the end of a batch that accumulates
            parts_s[part] += seconds(mark, later)
            later = mark
        step.batches += 1
        step.gaps += batch.laps[0][0] is Part.DATA
        self._step_counts = self._step_counts and batch.counts
        if not batch.stepped:
            return
        self._step = _Sums()
        counts, self._step_counts = self._step_counts, True
        if self._warmup_left > 0:
            self._warmup_left -= 1
        elif counts:
            step.steps = 1
            self._steps_s.append(step.step_s)
            self._window.add(step)


def _summarize(sums: _Sums, steps_s: Sequence[float]) -> StepTimes | None:
    if sums.steps == 0:
        return None

    def mean_ms(part: Part) -> float | None:
        return MS_PER_S * sums.parts_s[part] / sums.steps or None  # a part that never was takes 0

    batches = sums.batches / sums.steps
    data_ms = MS_PER_S * sums.parts_s[Part.DATA] / sums.gaps * batches if sums.gaps else None
    without_optimizer_s = sums.step_s - sums.parts_s[Part.OPTIMIZER]
    accumulates = sums.batches > sums.steps and sums.parts_s[Part.OPTIMIZER] > 0
    ordered = sorted(steps_s)
    return StepTimes(
        steps=sums.steps,
        step_ms=MS_PER_S * sums.step_s / sums.steps,
        data_ms=data_ms,
        h2d_ms=mean_ms(Part.TRANSFER),
        forward_ms=mean_ms(Part.FORWARD),
        backward_ms=mean_ms(Part.BACKWARD),
        optimizer_ms=mean_ms(Part.OPTIMIZER),
        micro_step_ms=MS_PER_S * without_optimizer_s / sums.batches if accumulates else None,
        step_p50_ms=MS_PER_S * _quantile(ordered, 0.5),
        step_p90_ms=MS_PER_S * _quantile(ordered, 0.9),
        step_p99_ms=MS_PER_S * _quantile(ordered, 0.99),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """With the two values on either side weighted, as NumPy and PyTorch do it.

    In plain Python since a window has few values, and PyTorch takes 0.3 ms for any number.
    """
    below, weight = divmod(share * (len(ordered) - 1), 1)
    left, right = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return left + weight * (right - left)
