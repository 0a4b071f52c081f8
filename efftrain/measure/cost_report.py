"""All that is known of what a job costs: predicted and, where that was asked for, measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from efftrain.measure.measured import Measured
from efftrain.peft import Selection
from efftrain.profiling import Profile
from efftrain.profiling.diff import ProfileDiff
from efftrain.profiling.fit import Fit
from efftrain.profiling.strategy import DevicePeak


@dataclass(frozen=True)
class MethodFit:
    """The largest batch of one PEFT method in one memory mode.

    Attributes:
        method: Its name.
        memory: The mode: what is kept between forward and backward.
        fit: The batch; None where the method cannot be used on this model or machine.
        why_not: The reason, then.
    """

    method: str
    memory: str
    fit: Fit | None
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Under its JSON keys."""
        found: dict[str, Any] = {"method": self.method, "memory": self.memory}
        return (
            {**found, "why_not": self.why_not} if self.fit is None else found | self.fit.to_dict()
        )


@dataclass(frozen=True)
class Comparison:
    """Another job, and what this one changes.

    Attributes:
        overrides: What the other job has otherwise.
        diff: From the other job to this one.
    """

    overrides: tuple[str, ...]
    diff: ProfileDiff

    def to_dict(self) -> dict[str, Any]:
        """Under its JSON keys."""
        return {"overrides": list(self.overrides), **self.diff.to_dict()}


@dataclass(frozen=True)
class CostReport:
    """What `efftrain profile` found.

    Attributes:
        profile: The prediction.
        selection: What trains.
        measured: What running showed; None where that was not asked for.
        fits: The largest batch by method; empty where that was not asked for.
        per_device: Memory of each of several devices; None for one.
        against: Another job beside this one; None where none was named.
    """

    profile: Profile
    selection: Selection
    measured: Measured | None = None
    fits: tuple[MethodFit, ...] = ()
    per_device: DevicePeak | None = None
    against: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything under its JSON keys; what was not asked for is left out."""
        found = {"method": self.selection.method, **self.profile.to_dict()}
        if self.measured is not None:
            measured = self.measured.to_dict()
            error_pct = self.measured.layer_error_pct(self.profile)
            if error_pct is not None:
                measured["layer_error_pct"] = error_pct
            found["measured"] = measured
        if self.fits:
            found["fit"] = [fit.to_dict() for fit in self.fits]
        if self.per_device is not None:
            found["per_device"] = self.per_device.to_dict()
        if self.against is not None:
            found["against"] = self.against.to_dict()
        return found
