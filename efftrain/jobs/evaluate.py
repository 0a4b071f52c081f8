"""Evaluate a finished run again, from its config and its delta."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from efftrain.config.schema import TrainConfig
from efftrain.config.validate import require_valid
from efftrain.errors import CheckpointError
from efftrain.files import write_text
from efftrain.jobs.assemble import Parts, assemble, make_trainer
from efftrain.jobs.expected_warnings import expected_warnings
from efftrain.jobs.stages import EXIT_CODES
from efftrain.jobs.stages import evaluate as measure
from efftrain.paths import RunFolder
from efftrain.peft import load_delta

_AS_IN_THE_RUN = ("precision", "limit_val_batches")
"""Settings that change the figures; null in an evaluation's config means the run's own."""


def evaluate(config: DictConfig) -> None:
    """Load the run, evaluate it, and set the result beside what the run itself reported.

    Args:
        config: Checked against `EvalConfig`.
    """
    run = find_run(config.run)
    saved = read_config(run)
    parts = load_run(run)
    node = config.trainer.copy()
    for key in _AS_IN_THE_RUN:
        if node[key] is None:
            node[key] = saved.trainer.get(key)
    trainer = make_trainer(node, callbacks=[], logger=False)
    with expected_warnings():
        status, metrics = measure(trainer, parts)
    if status != "finished":
        sys.exit(EXIT_CODES[status])
    if trainer.is_global_zero:
        report(config, run, metrics)


def report(config: DictConfig, run: RunFolder, metrics: dict[str, float]) -> None:
    """Print and write the metrics beside those of the run's own summary."""
    reported = _reported(run)
    folder = RunFolder(Path(config.run_dir))
    content = {"run": str(run.root), "metrics": metrics, "reported": reported}
    write_text(folder.summary_json, json.dumps(content, indent=2) + "\n")
    for name, value in metrics.items():
        then = f"   when it finished: {reported[name]:.4f}" if name in reported else ""
        print(f"{name:<12} {value:.4f}{then}")


def find_run(path: str) -> RunFolder:
    """The run folder at a path.

    Raises:
        CheckpointError: There is none, or it did not get as far as saving a delta.
    """
    folder = RunFolder(Path(path))
    if not folder.root.is_dir():
        raise CheckpointError(f"run: no folder {path}{_latest_run()}")
    for file in (folder.config, folder.delta):
        if not file.is_file():
            raise CheckpointError(
                f"run: {path} is not a finished run, it lacks {file.relative_to(folder.root)}"
                f"{_latest_run()}"
            )
    return folder


def read_config(run: RunFolder) -> DictConfig:
    """The config that a run was made with, checked as if it were new.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: It holds what may not be built, or was made by another version.
    """
    try:
        config = OmegaConf.load(run.config)
    except (YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"run: {run.config} is damaged") from error
    if not isinstance(config, DictConfig):
        raise CheckpointError(f"run: {run.config} is no config")
    config.run_dir = str(run.root)
    require_valid(config, TrainConfig)
    return config


def load_run(run: RunFolder) -> Parts:
    """Rebuild a run's model, data and task, with its delta loaded."""
    parts = assemble(read_config(run))
    load_delta(parts.model, run.delta)
    return parts


def _reported(run: RunFolder) -> dict[str, float]:
    if not run.summary_json.is_file():
        return {}
    return json.loads(run.summary_json.read_text(encoding="utf-8"))["metrics"]["after"]


def _latest_run() -> str:
    found = sorted(Path("outputs/train").glob("*/*/delta.safetensors"))
    return f"; the latest here is run={found[-1].parent}" if found else ""
