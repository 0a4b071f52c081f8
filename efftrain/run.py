"""What a fine-tuning run leaves behind, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["finished", "interrupted", "terminated"]


@dataclass(frozen=True)
class Figure:
    """A figure of a run, as it was predicted and as it was measured.

    Attributes:
        name: Its TensorBoard tag.
        unit: Of both values.
        predicted: From shapes, before running; None where it was not.
        measured: While running; None where it was not.
    """

    name: str
    unit: str
    predicted: float | None = None
    measured: float | None = None

    @property
    def difference_pct(self) -> float | None:
        """How far the measured value is from the predicted one, of that; None without both."""
        if self.measured is None or not self.predicted:
            return None
        return 100.0 * (self.measured - self.predicted) / self.predicted

    def to_dict(self) -> dict[str, float | str]:
        """The figure without its name; what is not known is left out."""
        values = {
            "predicted": self.predicted,
            "measured": self.measured,
            "difference_pct": self.difference_pct,
        }
        known = {name: value for name, value in values.items() if value is not None}
        return {"unit": self.unit, **known}


@dataclass(frozen=True)
class RunSummary:
    """The content of `summary.json`; each figure's meaning is in `efftrain.tags`.

    Attributes:
        status: "finished", or which signal stopped the run.
        run_dir: The run folder.
        method: Which parameters trained.
        seed: The run's seed.
        before: Held-out metrics of the model as it came.
        after: Held-out metrics after the last step.
        params: `total`, `trainable`, `trainable_pct`, `buffers`.
        time: `train_s`, and `step_ms`, `step_p50_ms`, … where steps were timed.
        throughput: `samples_per_s` where it was measured.
        figures: What the run cost, predicted and measured.
        delta: `path` relative to the run folder and `bytes` of the delta file.
        config: The composed config.
    """

    status: Status
    run_dir: str
    method: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    params: dict[str, int | float]
    time: dict[str, float]
    throughput: dict[str, float]
    delta: dict[str, Any]
    config: dict[str, Any] = field(repr=False)
    figures: tuple[Figure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The summary as it is written to JSON."""
        return {
            "status": self.status,
            "run_dir": self.run_dir,
            "method": self.method,
            "seed": self.seed,
            "metrics": {"before": self.before, "after": self.after},
            "params": self.params,
            "time": self.time,
            "throughput": self.throughput,
            "efficiency": {figure.name: figure.to_dict() for figure in self.figures},
            "delta": self.delta,
            "config": self.config,
        }
