"""`efftrain train`: fine-tune a model, and write what changed, what it cost and how good it is."""

from __future__ import annotations

from omegaconf import DictConfig

from efftrain.cli.launch import launch
from efftrain.config.schema import TrainConfig


def main() -> None:
    """Entry point of `efftrain train` and `efftrain-train`."""
    launch("train", TrainConfig, job)


def job(config: DictConfig) -> None:
    """Hand over to the job, which imports torch: a typo is answered without waiting for that."""
    from efftrain.jobs.train import train

    train(config)


if __name__ == "__main__":
    main()
