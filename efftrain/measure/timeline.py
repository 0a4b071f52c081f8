"""Points in time on a device's own line of work, read once the device has passed them.

A GPU works through a queue while the host goes on, so that the host's clock says when work was asked
for, not when it was done. An event put into the queue does; reading it at once would wait for the
device, reading it some steps later costs nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch

from efftrain.units import MS_PER_S

Mark = Any
"""A point in time, of which only its timeline knows what it is."""

T = TypeVar("T")


class Timeline(Protocol):
    """Makes marks, and tells how far apart two of them are."""

    def mark(self) -> Mark:
        """Here: behind everything that was asked of the device so far."""
        ...

    def has_passed(self, mark: Mark) -> bool:
        """Whether the device has come to it; never waits."""
        ...

    def wait_for(self, mark: Mark) -> None:
        """Until the device has come to it."""
        ...

    def seconds(self, earlier: Mark, later: Mark) -> float:
        """Time between two marks that have both been passed."""
        ...


class HostTimeline:
    """A device that has done what it was asked for when the call returns, as a CPU.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Marks are the clock's seconds."""
        self.mark = clock

    def has_passed(self, mark: Mark) -> bool:
        """Always."""
        return True

    def wait_for(self, mark: Mark) -> None:
        """Nothing to wait for."""

    def seconds(self, earlier: Mark, later: Mark) -> float:
        """Time between two marks."""
        return later - earlier


class EventTimeline:
    """A device that works through a queue.

    Args:
        make_event: Such as `torch.cuda.Event(enable_timing=True)`.
    """

    def __init__(self, make_event: Callable[[], Any]) -> None:
        """Marks are events in the current stream."""
        self._make_event = make_event

    def mark(self) -> Mark:
        """Put an event into the queue."""
        event = self._make_event()
        event.record()
        return event

    def has_passed(self, mark: Mark) -> bool:
        """Ask without waiting."""
        return mark.query()

    def wait_for(self, mark: Mark) -> None:
        """Wait for the device."""
        mark.synchronize()

    def seconds(self, earlier: Mark, later: Mark) -> float:
        """By the device's own clock; to 0.5 microseconds on CUDA."""
        return earlier.elapsed_time(later) / MS_PER_S


def timeline_of(device: torch.device) -> Timeline:
    """The timeline on which a device's work is measured."""
    if device.type == "cpu":
        return HostTimeline()
    if device.type == "cuda":
        return EventTimeline(partial(torch.cuda.Event, enable_timing=True))
    return EventTimeline(partial(torch.Event, device=device, enable_timing=True))


class Unread(Generic[T]):
    """Stretches of work that wait, in their order, until the device has done them.

    They are read in bunches, which takes half the time: what reads them is then in the cache.

    Args:
        timeline: Of the device.
        read: Called for each stretch once its last mark has been passed.
    """

    _BUNCH = 16

    def __init__(self, timeline: Timeline, read: Callable[[T], None]) -> None:
        """Nothing waits."""
        self._timeline = timeline
        self._read = read
        self._waiting: deque[tuple[Mark, T]] = deque()

    def add(self, end: Mark, stretch: T) -> None:
        """One more; never waits."""
        self._waiting.append((end, stretch))
        if len(self._waiting) % self._BUNCH == 0:
            self.read_passed()

    def read_passed(self) -> None:
        """Read those that are done; never waits."""
        waiting, has_passed = self._waiting, self._timeline.has_passed
        while waiting and has_passed(waiting[0][0]):
            self._read(waiting.popleft()[1])

    def finish(self) -> None:
        """Wait for the device and read the rest."""
        if self._waiting:
            self._timeline.wait_for(self._waiting[-1][0])
        self.read_passed()
