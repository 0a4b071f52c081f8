"""Energy of a stretch of work, with pauses, by one or more counters."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from efftrain.errors import MachineError
from efftrain.measure.energy_meter import Counter
from efftrain.measure.step_clock import Clock


class Spent(NamedTuple):
    """Energy and the time in which it was spent.

    Attributes:
        joules: Of all counters together.
        seconds: Without the pauses.
    """

    joules: float
    seconds: float


class EnergyGauge:
    """Adds up what counters count while it is not paused.

    Args:
        counters: No two of them count the same joule; none at all is 0 J.
        clock: Seconds, monotonic.

    Attributes:
        failure: Why a counter can no longer be read, from when on all joules are NaN; "" while it can.
    """

    def __init__(self, counters: Sequence[Counter], clock: Clock = time.perf_counter) -> None:
        """Count from now on."""
        self.failure = ""
        self._counters = counters
        self._clock = clock
        self._began_j = self._mark_j = self._read_j()
        self._mark_s: float | None = clock()
        self._joules = self._seconds = 0.0

    def pause(self) -> None:
        """What comes is other work."""
        if self._mark_s is None:
            return
        joules, now_s = self._read_j(), self._clock()
        self._joules += joules - self._mark_j
        self._seconds += now_s - self._mark_s
        self._mark_s = None

    def resume(self) -> None:
        """The work goes on."""
        self._mark_j, self._mark_s = self._read_j(), self._clock()

    def spent(self) -> Spent:
        """Since the last `take`; counting goes on."""
        self.pause()
        self.resume()
        return Spent(self._joules, self._seconds)

    def take(self) -> None:
        """Begin a new stretch."""
        self._joules = self._seconds = 0.0

    def total_j(self) -> float:
        """Joules since this was made, pauses included."""
        return self._read_j() - self._began_j

    def _read_j(self) -> float:
        try:
            return float(sum(counter.read_j() for counter in self._counters))
        except MachineError as error:
            self.failure = str(error)
            return math.nan
