"""`efftrain eval run=<folder>`: evaluate a finished run again, from its config and its delta."""

from __future__ import annotations

from omegaconf import DictConfig

from efftrain.cli.launch import launch
from efftrain.config.schema import EvalConfig


def main() -> None:
    """Entry point of `efftrain eval` and `efftrain-eval`."""
    launch("eval", EvalConfig, job)


def job(config: DictConfig) -> None:
    """Hand over to the job, which imports torch: a typo is answered without waiting for that."""
    from efftrain.jobs.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
