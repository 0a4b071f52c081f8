"""Fine-tune a model, and write what changed, what it cost and how good it is."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from efftrain.callbacks import (
    ActivationMemory,
    EfficiencySummary,
    ModelCost,
    StepTimer,
    Throughput,
)
from efftrain.callbacks.cards import log_figure, log_hyperparameters, log_text
from efftrain.callbacks.trained_network import find_callback
from efftrain.config.build import build_each
from efftrain.errors import NumericError
from efftrain.files import write_text
from efftrain.jobs.assemble import Parts, assemble, make_trainer, plain
from efftrain.jobs.expected_warnings import expected_warnings
from efftrain.jobs.memory import check_first_batch
from efftrain.jobs.stages import EXIT_CODES, evaluate, fit, last_metrics, measure_statistics
from efftrain.measure.environment import describe_environment
from efftrain.paths import RunFolder
from efftrain.peft import save_delta
from efftrain.profiling.params import count_parameters
from efftrain.render.profile_figure import draw_figures
from efftrain.render.run_figure import draw_saved, draw_time
from efftrain.render.summary import metrics_markdown, print_summary, summary_markdown
from efftrain.run import Figure, RunSummary
from efftrain.units import KIB

_log = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """One run; a sweep calls this once for each.

    Args:
        config: Checked against `TrainConfig`.
    """
    folder = RunFolder(Path(config.run_dir))
    parts = assemble(config)
    trainer = make_trainer(
        config.trainer,
        build_each(config.callbacks, "callbacks"),
        build_each(config.logger, "logger"),
    )
    if trainer.is_global_zero:  # of several processes, one writes and prints
        write_text(folder.environment, json.dumps(describe_environment(), indent=2) + "\n")
        print(parts.selection, flush=True)
    with expected_warnings():
        summary = fine_tune(config, trainer, parts, folder)
    if trainer.is_global_zero:
        write_text(folder.summary_json, json.dumps(summary.to_dict(), indent=2) + "\n")
        write_text(folder.summary_md, summary_markdown(summary))
        print_summary(summary, _readable(folder))
    if summary.status != "finished":
        sys.exit(EXIT_CODES[summary.status])


def fine_tune(
    config: DictConfig, trainer: pl.Trainer, parts: Parts, folder: RunFolder
) -> RunSummary:
    """Evaluate, train, evaluate again, and save what changed."""
    log_text(trainer.loggers, "config", f"```yaml\n{OmegaConf.to_yaml(config, resolve=True)}```")

    status, before = evaluate(trainer, parts)
    if status != "finished":
        sys.exit(EXIT_CODES[status])
    _require_finite(before)
    if config.peft.bn_stats == "recalibrate":
        measure_statistics(trainer, parts, config.peft.recalibrate_batches)
    memory = config.get("memory")
    if memory is not None and memory.check and memory.mode != "off":
        check = check_first_batch(parts.task, parts.data, str(trainer.strategy.root_device))
        _log.info(f"memory.check: gradients differ by {check.error:.1e} of their length")
    began = time.perf_counter()
    status = fit(trainer, parts)
    train_s = time.perf_counter() - began
    delta_bytes = 0
    if trainer.is_global_zero:  # at once: what comes next can be stopped, too
        delta_bytes = save_delta(parts.model, folder.delta, selection=parts.selection).bytes
    # Who stops a run does not want to wait for another evaluation.
    after = last_metrics(trainer)
    if status == "finished":
        status, after = evaluate(trainer, parts)
    after = {name: value for name, value in after.items() if math.isfinite(value)}

    summary = RunSummary(
        status=status,
        run_dir=str(folder.root),
        method=parts.selection.method,
        seed=config.seed,
        before=before,
        after=after,
        params=count_parameters(parts.model).to_dict(),
        time={"train_s": train_s, **_step_times(trainer)},
        throughput=_throughput(trainer),
        delta={"path": folder.delta.name, "bytes": delta_bytes},
        config=plain(config),
        figures=_figures(trainer, delta_bytes),
    )
    log_text(trainer.loggers, "summary", metrics_markdown(summary))
    try:
        _draw(trainer)
    except Exception as error:  # a finished run is worth more than its pictures
        _log.warning(f"pictures for TensorBoard are left out: {type(error).__name__}: {error}")
    results = {**after, **_costs(summary)}
    log_hyperparameters(trainer.loggers, _hyperparameters(config), results, trainer.global_step)
    for logger in trainer.loggers:
        logger.finalize("success")
    return summary


def _require_finite(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NumericError(
                f"{name} is {value} before the first step; model.pretrained or the data hold such numbers"
            )


def _step_times(trainer: pl.Trainer) -> dict[str, float]:
    timer = find_callback(trainer, StepTimer)
    times = None if timer is None else timer.times
    return {} if times is None else {"steps": times.steps, **times.to_figures()}


def _throughput(trainer: pl.Trainer) -> dict[str, float]:
    meter = find_callback(trainer, Throughput)
    rate = None if meter is None else meter.samples_per_s
    return {} if rate is None else {"samples_per_s": rate}


def _figures(trainer: pl.Trainer, delta_bytes: int) -> tuple[Figure, ...]:
    """What the callbacks have brought together, with the size of the file that was written."""
    summary = find_callback(trainer, EfficiencySummary)
    return tuple(
        replace(figure, measured=delta_bytes / KIB) if figure.name == "size/delta_kib" else figure
        for figure in (() if summary is None else summary.figures)
    )


def _costs(summary: RunSummary) -> dict[str, float]:
    """What stands beside the metrics in TensorBoard's table of runs, and in its scatter plots."""
    measured = {
        figure.name: figure.measured
        for figure in summary.figures
        if figure.measured is not None and not figure.name.startswith("efficiency/")
    }
    return {"params/trainable": summary.params["trainable"], **measured}


def _draw(trainer: pl.Trainer) -> None:
    """Pictures of what the run measured, and of what was predicted for it."""
    pictured = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    if not trainer.is_global_zero or not pictured:
        return
    step = trainer.global_step
    memory, timer = find_callback(trainer, ActivationMemory), find_callback(trainer, StepTimer)
    cost = find_callback(trainer, ModelCost)
    profile = None if cost is None else cost.profile
    if memory is not None and memory.saved is not None:
        alike = profile is not None and memory.predicted_bytes is not None
        predicted = profile.memory.saved if profile is not None and alike else None
        log_figure(
            trainer.loggers, "memory/kept_by_layer", draw_saved(memory.saved, predicted), step
        )
    if timer is not None and timer.times is not None:
        log_figure(trainer.loggers, "time/parts", draw_time(timer.times.to_figures()), step)
    for name, figure in {} if profile is None else draw_figures(profile).items():
        log_figure(trainer.loggers, f"predicted/{name}", figure, step)


def _hyperparameters(config: DictConfig) -> dict[str, Any]:
    """What tells runs apart in TensorBoard's table."""
    keys = {
        "model": "model._target_",
        "method": "peft.method",
        "bn_stats": "peft.bn_stats",
        "optimizer": "optim._target_",
        "lr": "optim.lr",
        "weight_decay": "optim.weight_decay",
        "batch_size": "data.batch_size",
        "max_epochs": "trainer.max_epochs",
        "precision": "trainer.precision",
        "seed": "seed",
    }
    found = {name: OmegaConf.select(config, key) for name, key in keys.items()}
    return {
        name: str(value).rpartition(".")[2] if name in ("model", "optimizer") else value
        for name, value in found.items()
        if value is not None
    }


def _readable(folder: RunFolder) -> RunFolder:
    """The same folder, relative to where the command was typed if it lies below."""
    try:
        return RunFolder(folder.root.relative_to(Path.cwd()))
    except ValueError:
        return folder
