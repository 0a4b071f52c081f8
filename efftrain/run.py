"""What a fine-tuning run leaves behind, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["finished", "interrupted", "terminated"]


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
            "delta": self.delta,
            "config": self.config,
        }
