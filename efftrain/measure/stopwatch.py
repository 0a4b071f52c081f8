"""How long work takes on a device, and at what rate it is done."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from efftrain.measure.device import synchronize
from efftrain.measure.step_clock import Clock

RUNS = 5
RUN_S = 0.004  # several calls make a run this long, so that waiting for a device is a small part
CORES_S = 0.03

Work = Callable[[], object]


class Stopwatch:
    """Times work on a device.

    Args:
        device: It is waited for before the clock is read.
        clock: Seconds, monotonic.
        cpu_clock: Seconds that this process had of all cores.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Clock = time.perf_counter,
        cpu_clock: Clock = time.process_time,
    ) -> None:
        """Time nothing yet."""
        self.clock = clock
        self._cpu_clock = cpu_clock
        self._device = device

    def seconds(self, work: Work, calls: int = 1) -> float:
        """How long some calls take, one after the other."""
        synchronize(self._device)
        began = self.clock()
        for _ in range(calls):
            work()
        synchronize(self._device)
        return self.clock() - began

    def rate(self, work: Work, amount: float, budget_s: float) -> float:
        """What a call does, over the median time of one.

        Args:
            work: Run twice before anything counts: kernels are chosen, memory is touched.
            amount: Bytes or operations of one call.
            budget_s: No run begins after so many seconds; the second call counts where none can.

        Returns:
            The amount for each second.
        """
        began = self.clock()
        self.seconds(work)
        once_s = self.seconds(work)
        calls = max(1, math.ceil(RUN_S / max(once_s, 1e-7)))
        taken: list[float] = []
        while len(taken) < RUNS and self.clock() - began < budget_s:
            taken.append(self.seconds(work, calls) / calls)
        return amount / max(statistics.median(taken or [once_s]), 1e-9)

    def cores(self, work: Work) -> float:
        """How many cores some work on a CPU had: the number of its threads, where nobody disturbs."""
        self.seconds(work)
        began, cpu_began = self.clock(), self._cpu_clock()
        while self.clock() - began < CORES_S:
            work()
        return (self._cpu_clock() - cpu_began) / (self.clock() - began)

    def is_disturbed(self) -> bool:
        """Whether other programs have part of the CPU just now; of an accelerator it is not known.

        torch's threads do not sleep while they wait for each other, so one that others keep from
        its core shows. It holds up all the others: the rate falls to a tenth, not to a half.
        """
        if self._device.type != "cpu":
            return False
        a = torch.ones(512, 512)
        return self.cores(lambda: a @ a) < 0.9 * torch.get_num_threads()
