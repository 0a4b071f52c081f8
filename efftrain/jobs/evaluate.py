"""Evaluate a finished run again, from its config and its delta."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from efftrain.config.schema import TrainConfig
from efftrain.config.validate import require_valid
from efftrain.errors import CheckpointError
from efftrain.files import write_text
from efftrain.jobs.assemble import Parts, assemble, make_trainer
from efftrain.jobs.expected_warnings import expected_warnings
from efftrain.paths import RunFolder
from efftrain.peft import load_delta


def evaluate(config: DictConfig) -> None:
    """Load the run, evaluate it, and set the result beside what the run itself reported.

    Args:
        config: Checked against `EvalConfig`.
    """
    run = find_run(config.run)
    parts = load_run(run)
    trainer = make_trainer(config.trainer, callbacks=[], logger=False)
    with expected_warnings():
        results = trainer.validate(parts.task, datamodule=parts.data, verbose=False)
    metrics = {name: float(value) for name, value in results[0].items()}
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


def load_run(run: RunFolder) -> Parts:
    """Rebuild a run's model, data and task, with its delta loaded."""
    config = OmegaConf.load(run.config)
    assert isinstance(config, DictConfig)
    config.run_dir = str(run.root)
    require_valid(config, TrainConfig)
    parts = assemble(config)
    load_delta(parts.model, run.delta)
    return parts


def _reported(run: RunFolder) -> dict[str, float]:
    if not run.summary_json.is_file():
        return {}
    return json.loads(run.summary_json.read_text(encoding="utf-8"))["metrics"]["after"]


def _latest_run() -> str:
    found = sorted(Path("outputs/train").glob("*/*/delta.safetensors"))
    return f"; the latest here is run={found[-1].parent}" if found else ""
