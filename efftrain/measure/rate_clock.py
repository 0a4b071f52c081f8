"""How much work a training loop gets through, and in what time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from efftrain.measure.compiles import graphs_compiled
from efftrain.measure.timeline import HostTimeline, Mark, Timeline, Unread


@dataclass(frozen=True)
class Work:
    """Some stretch of training.

    Attributes:
        samples: In all its batches.
        tokens: None where batches hold none.
        seconds: Time that it took, with the wait for data.
        step_s: Of that, the time of the steps alone.
    """

    samples: int = 0
    tokens: int | None = None
    seconds: float = 0.0
    step_s: float = 0.0


class _Batch(NamedTuple):
    gap: Mark | None  # when training went on, after the batch before; None where it did not
    begin: Mark
    end: Mark
    samples: int
    tokens: int | Tensor | None
    stepped: bool
    counts: bool


class RateClock:
    """Adds up batches: their samples, and the time from one's end to the next one's end.

    Nothing waits for the device; what is known may lag some batches behind.

    Args:
        warmup_steps: First optimizer steps that are left out.
        timeline: Of the device.
    """

    def __init__(self, warmup_steps: int = 3, timeline: Timeline | None = None) -> None:
        """Nothing was done yet."""
        self._timeline = timeline or HostTimeline()
        self._unread: Unread[_Batch] = Unread(self._timeline, self._read)
        self._warmup_left = warmup_steps
        self._gap: Mark | None = None
        self._begin: Mark | None = None
        self._graphs = graphs_compiled()
        self._counts = True
        self._reset()

    def resume(self) -> None:
        """Training goes on here, and waits for its next batch."""
        self._gap = self._timeline.mark()

    def pause(self) -> None:
        """Something else than training is going on; within a batch, this leaves it out."""
        self._gap = None
        self._counts = self._begin is None

    def begin_batch(self) -> None:
        """The batch is there."""
        self._begin = self._timeline.mark()

    def end_batch(self, samples: int, tokens: int | Tensor | None, stepped: bool) -> None:
        """The batch is done.

        Args:
            samples: In it.
            tokens: In it; a tensor where the device has still to count them.
            stepped: Whether the optimizer stepped.
        """
        end = self._timeline.mark()
        before, self._graphs = self._graphs, graphs_compiled()
        counts = self._counts and self._graphs == before
        batch = _Batch(self._gap, self._begin, end, samples, tokens, stepped, counts)
        self._gap, self._begin, self._counts = end, None, True
        self._unread.add(end, batch)

    def finish(self) -> None:
        """Wait for the device, and read what is left."""
        self._unread.finish()

    def take(self) -> Work:
        """What was done since this was called last."""
        self._unread.read_passed()
        tokens = self._tokens
        if self._uncounted:  # one wait for all of them
            tokens = (tokens or 0) + int(torch.stack(self._uncounted).sum())
        work = Work(self._samples, tokens, self._seconds, self._step_s)
        self._reset()
        return work

    def _reset(self) -> None:
        self._samples, self._seconds, self._step_s = 0, 0.0, 0.0
        self._tokens: int | None = None
        self._uncounted: list[Tensor] = []

    def _read(self, batch: _Batch) -> None:
        if self._warmup_left > 0:
            self._warmup_left -= batch.stepped
            return
        if not batch.counts:
            return
        since = batch.begin if batch.gap is None else batch.gap
        self._seconds += self._timeline.seconds(since, batch.end)
        self._step_s += self._timeline.seconds(batch.begin, batch.end)
        self._samples += batch.samples
        if isinstance(batch.tokens, Tensor):
            self._uncounted.append(batch.tokens)
        elif batch.tokens is not None:
            self._tokens = (self._tokens or 0) + batch.tokens
