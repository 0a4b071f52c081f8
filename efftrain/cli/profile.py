"""`efftrain profile …`: what a training step of a job would cost, before it runs."""

from __future__ import annotations

from omegaconf import DictConfig

from efftrain.cli.launch import launch
from efftrain.config.schema import ProfileConfig


def main() -> None:
    """Entry point of `efftrain profile` and `efftrain-profile`."""
    launch("profile", ProfileConfig, job)


def job(config: DictConfig) -> None:
    """Hand over to the job, which imports torch: a typo is answered without waiting for that."""
    from efftrain.jobs.profile import profile_job

    profile_job(config)


if __name__ == "__main__":
    main()
