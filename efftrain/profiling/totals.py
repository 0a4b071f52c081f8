"""The totals of a profile: operations and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from efftrain.profiling.saved import Saved
from efftrain.profiling.step import StepPeak


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates.

    Attributes:
        forward: Of inference of one sample.
        step: Of a training step on the batch, everything that it runs.
        by_phase: Of that step.
    """

    forward: int
    step: int
    by_phase: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The counts under their JSON keys."""
        return {"forward": self.forward, "step": self.step, "by_phase": dict(self.by_phase)}


@dataclass(frozen=True)
class Flops:
    """Floating point operations of a training step on the batch.

    Attributes:
        forward: Forward and loss.
        backward: Both kinds of gradients, without what is computed again for them.
        recompute: What backward computes again: checkpoints, attention's scores.
        optimizer: The update; None where no optimizer was given.
        step: All of it.
        elementwise: The part of it that is no multiply-accumulate.
    """

    forward: int
    backward: int
    recompute: int
    optimizer: int | None
    step: int
    elementwise: int

    def to_dict(self) -> dict[str, int]:
        """The counts under their JSON keys; the optimizer's left out where there is none."""
        found = {
            "forward": self.forward,
            "backward": self.backward,
            "recompute": self.recompute,
            "step": self.step,
            "elementwise": self.elementwise,
        }
        return found if self.optimizer is None else {**found, "optimizer": self.optimizer}


@dataclass(frozen=True)
class Memory:
    """Memory of a training step on the batch.

    Attributes:
        saved: What autograd keeps from forward until backward.
        peak: What is held at most; without an optimizer, without its state.
    """

    saved: Saved
    peak: StepPeak

    def to_dict(self) -> dict[str, Any]:
        """The bytes under their JSON keys."""
        return {**self.saved.to_dict(), **self.peak.to_dict()}
