"""A table of the digits runs of a sweep, method by method.

efftrain train -m experiment=digits_norm,digits_head,digits_norm_head,digits_bias,digits_full \
    seed=0,1,2 hydra.sweep.dir=outputs/digits
python scripts/benchmarks/digits_methods.py outputs/digits
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HEADER = ["method", "trainable", "held-out accuracy, %", "mean", "step, ms", "training, s", "delta"]


def main() -> None:
    """Read every summary below a folder and print one row for each method."""
    folder = Path(sys.argv[1])
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["status"] == "finished":
            runs[summary["method"]].append(summary)
    if not runs:
        sys.exit(f"no finished run below {folder}")
    before = {s["metrics"]["before"]["val/acc"] for group in runs.values() for s in group}
    print("before:", ", ".join(f"{100 * accuracy:.1f} %" for accuracy in sorted(before)))
    print(f"| {' | '.join(HEADER)} |")
    print(f"|{' --- |' * len(HEADER)}")
    for method, summaries in runs.items():
        print(f"| {' | '.join(row(method, summaries))} |")
    print(machine(folder))


def row(method: str, summaries: list[dict[str, Any]]) -> list[str]:
    """The cells of one method; times are medians over its runs."""
    summaries = sorted(summaries, key=lambda summary: summary["seed"])
    accuracies = [100 * summary["metrics"]["after"]["val/acc"] for summary in summaries]
    first = summaries[0]
    return [
        method,
        f"{first['params']['trainable']:,} ({first['params']['trainable_pct']:.2f} %)",
        ", ".join(f"{accuracy:.1f}" for accuracy in accuracies),
        f"{statistics.mean(accuracies):.1f}",
        f"{statistics.median(s['time']['step_p50_ms'] for s in summaries):.1f}",
        f"{statistics.median(s['time']['train_s'] for s in summaries):.0f}",
        f"{first['delta']['bytes'] / 1024:.1f} KiB",
    ]


def machine(folder: Path) -> str:
    """What the runs ran on."""
    path = next(folder.glob("*/env.json"))
    env = json.loads(path.read_text(encoding="utf-8"))
    return f"{env['cpu']}, {env['cpu_threads']} thread(s), torch {env['packages']['torch']}"


if __name__ == "__main__":
    main()
