"""`efftrain export run=<folder> to=merged|folded|peft`: write a finished run as a model of its own."""

from __future__ import annotations

import sys
from typing import get_args, get_type_hints

from hydra._internal.utils import get_args_parser  # the parser hydra.main uses; pinned below 1.4
from omegaconf import DictConfig

from efftrain.cli.launch import launch
from efftrain.config.compose import parse_overrides
from efftrain.config.problem import did_you_mean
from efftrain.config.schema import ExportConfig
from efftrain.errors import ConfigError, EfftrainError


def main() -> None:
    """Entry point of `efftrain export` and `efftrain-export`."""
    try:
        check_target(get_args_parser().parse_args().overrides)
    except EfftrainError as error:
        for line in str(error).splitlines():
            print(f"efftrain: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    launch("export", ExportConfig, job)


def check_target(overrides: list[str]) -> None:
    """Refuse a wrong run or form before Hydra creates the output folder, which lies in the run's.

    Args:
        overrides: Of the command line.

    Raises:
        CheckpointError: There is no finished run.
        ConfigError: No such form, or an override that cannot be read.
    """
    forms = get_args(get_type_hints(ExportConfig)["to"])
    given: dict[str, str] = {}
    for override in parse_overrides(overrides):
        if not override.is_sweep_override():
            given[str(override.key_or_group)] = str(override.value())
    form = given.get("to", str(forms[0]))
    if form not in forms:
        raise ConfigError(f"to={form} is not a form{did_you_mean(form, forms)}")
    if "run" in given:
        from efftrain.jobs.evaluate import find_run

        find_run(given["run"])


def job(config: DictConfig) -> None:
    """Hand over to the job, which imports torch: a typo is answered without waiting for that."""
    from efftrain.jobs.export import export

    export(config)


if __name__ == "__main__":
    main()
