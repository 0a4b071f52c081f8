"""How long each module takes itself, so that a prediction can be set beside it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from efftrain.errors import ConfigError
from efftrain.graph.rehearsal import call_arguments
from efftrain.measure.device import synchronize
from efftrain.measure.latency import Progress, inference
from efftrain.measure.step_clock import Clock
from efftrain.units import MS_PER_S

RUNS = 20
WARMUP = 3


def measure_layers(
    model: nn.Module,
    batch: Any,
    *,
    runs: int = RUNS,
    warmup: int = WARMUP,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Time inference of a batch by module.

    Time belongs to the innermost module that is running, as operations do in `StepCount`: what a
    module's children take is theirs, and "" is what no module but the whole model does. The device
    is waited for at each module's begin and end, so the sum is more than the whole pass takes
    where a device works ahead of Python; what the hooks take themselves is left out.

    Args:
        model: With weights, on the device to measure; in eval and inference mode meanwhile. It gets
            hooks, which are removed. A compiled model runs as it is written.
        batch: What it is called with; all of it is used.
        runs: Of which the median counts, for each module.
        warmup: Runs before them.
        progress: Called with the runs that are done and their number, while no time counts.
        clock: Seconds, monotonic.

    Returns:
        Milliseconds of one pass by path, all calls of a module together; a module that stands in
        several places goes by its first name, and one that is not called is not there.

    Raises:
        ConfigError: No runs, or a model without values (meta).
    """
    if runs < 1:
        raise ConfigError(f"runs must be at least 1, got {runs}")
    model = cast(nn.Module, getattr(model, "_orig_mod", model))  # torch.compile's wrapper
    taken_s: dict[str, list[float]] = defaultdict(list)
    with inference(model, batch) as (device, batch):
        args, kwargs = call_arguments(batch)
        attribution = _Attribution(model, lambda: synchronize(device), clock)
        try:
            for run in range(-warmup, runs):
                attribution.begin()
                model(*args, **kwargs)
                if run >= 0:
                    for path, seconds in attribution.seconds.items():
                        taken_s[path].append(seconds)
                    if progress is not None:
                        progress(run + 1, runs)
        finally:
            attribution.remove()
    return {path: statistics.median(each) * MS_PER_S for path, each in taken_s.items()}


class _Attribution:
    """Hooks that give the time between two of them to the module that is running."""

    def __init__(self, model: nn.Module, wait: Callable[[], None], clock: Clock) -> None:
        self.seconds: dict[str, float] = {}
        self._wait, self._clock = wait, clock
        self._running: list[str] = []
        self._since = 0.0
        self._hooks: list[Any] = []
        for path, module in model.named_modules():
            self._hooks += [
                module.register_forward_pre_hook(self._entering(path), prepend=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def begin(self) -> None:
        """A pass begins."""
        self.seconds = defaultdict(float)
        self._running.clear()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self._charge()
            self._running.append(path)
            self.seconds[path] += 0.0  # in the order in which they run
            self._since = self._clock()

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._charge()
        if self._running:  # empty where a hook before ours failed
            self._running.pop()
        self._since = self._clock()

    def _charge(self) -> None:
        self._wait()
        if self._running:
            self.seconds[self._running[-1]] += self._clock() - self._since
