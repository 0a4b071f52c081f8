"""What a change of a model, of what trains in it or of how it is run gains or loses, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efftrain.profiling.report import Profile

LAYER_FIGURES = (
    "params", "macs", "bytes", "activations", "predicted_ms",
    "step_flops", "step_bytes", "step_predicted_ms", "saved_bytes",
)  # fmt: skip
"""Figures of a layer: the first five of inference of one sample, the others of the training step."""


MENTIONED = 0.0005
"""Share of a total below which a part of it is no reason."""


@dataclass(frozen=True)
class Change:
    """One figure, before and after.

    Attributes:
        name: Its JSON key.
        before: In the first profile.
        after: In the second.
    """

    name: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """After over before; None where there was nothing before."""
        return self.after / self.before if self.before else None

    def to_dict(self) -> dict[str, float]:
        """Both, and their ratio where there is one."""
        found = {"before": self.before, "after": self.after, "difference": self.difference}
        return found if self.ratio is None else {**found, "ratio": self.ratio}


@dataclass(frozen=True)
class LayerChange:
    """A module that stands in either profile.

    Attributes:
        path: Its name.
        before: Its class in the first; None where it is new.
        after: Its class in the second; None where it is gone.
        figures: Those of `LAYER_FIGURES` that differ.
        bound: What limits it at inference, before and after; None where that is not known.
    """

    path: str
    before: str | None
    after: str | None
    figures: tuple[Change, ...]
    bound: tuple[str | None, str | None]

    def change(self, name: str) -> float:
        """How much a figure has changed; 0 where it has not."""
        return sum(change.difference for change in self.figures if change.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Under its JSON keys."""
        return {
            "path": self.path,
            "type": [self.before, self.after],
            "bound": list(self.bound),
            **{change.name: change.to_dict() for change in self.figures},
        }


@dataclass(frozen=True)
class ProfileDiff:
    """Two profiles side by side.

    Attributes:
        totals: Figures that both have, whether they differ or not.
        layers: Modules whose figures differ, in the order of the first profile, new ones last.
        reasons: Why, in sentences.
    """

    totals: tuple[Change, ...]
    layers: tuple[LayerChange, ...]
    reasons: tuple[str, ...]

    def total(self, name: str) -> Change:
        """One of the totals.

        Raises:
            KeyError: Not both profiles have that figure.
        """
        return {change.name: change for change in self.totals}[name]

    def largest(self, name: str, count: int = 10) -> tuple[LayerChange, ...]:
        """The layers in which one of `LAYER_FIGURES` changes most, whichever way."""
        changed = [layer for layer in self.layers if layer.change(name)]
        return tuple(sorted(changed, key=lambda one: -abs(one.change(name)))[:count])

    def to_dict(self) -> dict[str, Any]:
        """Under its JSON keys."""
        return {
            "totals": {change.name: change.to_dict() for change in self.totals},
            "layers": [layer.to_dict() for layer in self.layers],
            "reasons": list(self.reasons),
        }


_TOTALS: dict[str, Callable[[Profile], float | None]] = {
    "params.total": lambda p: p.params.total,
    "params.trainable": lambda p: p.params.trainable,
    "size.model_bytes": lambda p: p.size.model_bytes,
    "macs.forward": lambda p: p.macs.forward,
    "flops.forward": lambda p: p.flops.forward,
    "flops.backward": lambda p: p.flops.backward,
    "flops.recompute": lambda p: p.flops.recompute,
    "flops.step": lambda p: p.flops.step,
    "activations.total": lambda p: p.activations.total,
    "activations.peak": lambda p: p.activations.peak,
    "memory.saved_bytes": lambda p: p.memory.saved.saved_bytes,
    "memory.step_peak_bytes": lambda p: p.memory.peak.step_peak_bytes,
    "receptive_field.size": lambda p: p.receptive_field.size,
    "arithmetic_intensity": lambda p: p.intensity,
    "latency.predicted_ms": lambda p: None if p.latency is None else p.latency.predicted_ms,
    "latency.step_predicted_ms": lambda p: p.step_latency and p.step_latency.predicted_ms,
    "energy.estimated_mj": lambda p: p.energy.estimated_mj,
}


def diff_profiles(
    before: Profile, after: Profile, measured_step_ms: tuple[float, float] | None = None
) -> ProfileDiff:
    """Set two profiles side by side; see `Profile.diff`."""
    totals = [
        Change(name, old, new)
        for name, read in _TOTALS.items()
        if (old := read(before)) is not None and (new := read(after)) is not None
    ]
    if measured_step_ms is not None:
        totals.append(Change("time.step_p50_ms", *measured_step_ms))
    layers = _layer_changes(before, after)
    known = {change.name: change for change in totals}
    return ProfileDiff(tuple(totals), layers, tuple(_reasons(before, after, known)))


def _layer_changes(before: Profile, after: Profile) -> tuple[LayerChange, ...]:
    figures = [_figures(profile) for profile in (before, after)]
    types = [{layer.path: layer.type for layer in profile.layers} for profile in (before, after)]
    bounds = [{layer.path: layer.bound for layer in profile.layers} for profile in (before, after)]
    found: list[LayerChange] = []
    for path in dict.fromkeys([*figures[0], *figures[1]]):
        old, new = figures[0].get(path, {}), figures[1].get(path, {})
        changes = tuple(
            Change(name, old.get(name, 0), new.get(name, 0))
            for name in LAYER_FIGURES
            if old.get(name, 0) != new.get(name, 0)
        )
        if changes:
            found.append(
                LayerChange(
                    path=path,
                    before=types[0].get(path),
                    after=types[1].get(path),
                    figures=changes,
                    bound=(bounds[0].get(path), bounds[1].get(path)),
                )
            )
    return tuple(found)


def _figures(profile: Profile) -> dict[str, dict[str, float]]:
    """`LAYER_FIGURES` by path; what is not known is 0."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(LAYER_FIGURES, 0.0))
    for layer in profile.layers:
        row = found[layer.path]
        row["params"] = layer.params
        row["macs"] = layer.macs
        row["bytes"] = layer.bytes_moved
        row["activations"] = layer.activations
        row["predicted_ms"] = layer.predicted_ms or 0.0
    for entry in profile.training.entries:
        found[entry.path]["step_flops"] += entry.flops
        found[entry.path]["step_bytes"] += entry.bytes_moved
    if profile.step_latency is not None:
        for path, time in profile.step_latency.layers.items():
            found[path]["step_predicted_ms"] = time.predicted_ms
    for tensor in profile.memory.saved.tensors:
        found[tensor.path]["saved_bytes"] += tensor.saved_bytes
    return dict(found)


def _reasons(before: Profile, after: Profile, totals: dict[str, Change]) -> list[str]:
    """What explains the totals, the training step's first."""
    reasons = [
        _operations(totals["flops.step"], before, after),
        _kept(totals["memory.saved_bytes"], before, after),
    ]
    for name, macs, profiles in (
        ("latency.predicted_ms", totals["macs.forward"], (before, after)),
        ("latency.step_predicted_ms", totals["flops.step"], None),
    ):
        if name in totals and totals[name].ratio and totals[name].difference and macs.ratio:
            reasons.append(_time(name, totals[name], macs, profiles))
    return [reason for reason in reasons if reason]


def _operations(step: Change, before: Profile, after: Profile) -> str:
    """Which parts of a step lose or gain operations."""
    if not step.ratio or not step.difference:
        return ""
    phases = {
        "forward": "forward",
        "backward_inputs": "gradients of inputs",
        "backward_weights": "gradients of weights",
        "recompute": "recomputation",
        "optimizer": "optimizer",
    }
    parts: list[str] = []
    for phase, name in phases.items():
        old, new = (
            sum(e.flops for e in profile.training.entries if e.phase == phase)
            for profile in (before, after)
        )
        if abs(new - old) >= MENTIONED * step.before:
            parts.append(f"{name} {_signed((new - old) / step.before)}")
    return f"A step has {_times(step.ratio)} the operations{_of_before(parts)}."


def _kept(saved: Change, before: Profile, after: Profile) -> str:
    """Which kinds of layers keep less or more for backward."""
    if not saved.before or not saved.difference:
        return ""
    old, new = before.memory.saved.by_cause(), after.memory.saved.by_cause()
    causes = sorted({*old, *new}, key=lambda cause: -abs(new.get(cause, 0) - old.get(cause, 0)))
    parts = [
        f"{cause} {_signed((new.get(cause, 0) - old.get(cause, 0)) / saved.before)}"
        for cause in causes
        if abs(new.get(cause, 0) - old.get(cause, 0)) >= MENTIONED * saved.before
    ]
    return f"Backward keeps {_times(saved.ratio or 0)} the bytes{_of_before(parts)}."


def _time(name: str, time: Change, work: Change, profiles: tuple[Profile, Profile] | None) -> str:
    """Why time does not follow operations: what is bound by memory gains nothing from fewer."""
    what = "inference" if name == "latency.predicted_ms" else "a step"
    text = f"The predicted time of {what} changes to {_times(time.ratio or 0)}"
    text += f" for {_times(work.ratio or 0)} the {'MACs' if profiles else 'operations'}"
    if profiles is None:
        return f"{text}."
    shares = [
        sum(layer.predicted_ms or 0 for layer in profile.layers if layer.bound == "memory")
        / max(sum(layer.predicted_ms or 0 for layer in profile.layers), 1e-12)
        for profile in profiles
    ]
    return (
        f"{text}: layers bound by memory, which fewer operations do not speed up, take "
        f"{100 * shares[0]:.0f} % of it before and {100 * shares[1]:.0f} % after."
    )


def _of_before(parts: list[str]) -> str:
    return f"; of those before: {', '.join(parts)}" if parts else ""


def _times(ratio: float) -> str:
    return f"{ratio:.3g} x"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"
