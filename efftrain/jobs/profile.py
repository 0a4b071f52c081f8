"""Predict what a job would cost, print it in the form that is asked for, and keep all forms."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from efftrain.config.build import TARGET
from efftrain.data.first_batch import REFUSALS, describe
from efftrain.errors import ConfigError, EfftrainError, MachineError
from efftrain.graph.rehearsal import first_sample
from efftrain.jobs.fit import fit_methods, per_device
from efftrain.jobs.other import as_overrides, with_overrides
from efftrain.jobs.rehearse import Rehearsed, rehearsed
from efftrain.measure.ceilings import load_or_measure, measure_ceilings
from efftrain.measure.cost_report import Comparison, CostReport
from efftrain.measure.energy_meter import Counter, find_counters
from efftrain.measure.latency import Latency, device_of, measure_latency, measure_step
from efftrain.measure.layer_times import measure_layers
from efftrain.measure.measured import Measured
from efftrain.measure.sample_energy import measure_sample_energy
from efftrain.measure.throughput import measure_throughput
from efftrain.models.interface import interface_of
from efftrain.paths import RunFolder
from efftrain.peft.delta_size import predict_delta_bytes
from efftrain.profiling import Profile, profile
from efftrain.profiling.roofline import Ceilings
from efftrain.render.cost_report import print_report, write_report
from efftrain.units import parse_bytes

_log = logging.getLogger(__name__)


def profile_job(config: DictConfig) -> None:
    """One profile; a sweep calls this once for each.

    Args:
        config: Checked against `ProfileConfig`.
    """
    limit_bytes = None if config.fit is None else parse_bytes(config.fit, "fit")
    if config.measure and config.device == "meta":
        raise ConfigError("measure=true needs weights: leave device=cpu")
    changes = as_overrides(config.against)
    other = with_overrides("profile", changes) if changes else None
    ceilings = _ceilings(config)
    if (config.devices == 1) != (config.strategy == "single"):
        raise ConfigError(
            f"strategy={config.strategy} devices={config.devices}: several devices need "
            "strategy=ddp or strategy=fsdp, and one is strategy=single"
        )
    step = rehearsed(config)
    found = predict_cost(step, ceilings, second_opinion=config.second_opinion)
    measured = _measure(step) if config.measure else None
    report = CostReport(
        profile=found,
        selection=step.selection,
        measured=measured,
        fits=() if limit_bytes is None else fit_methods(config, limit_bytes),
        per_device=None if config.devices == 1 else per_device(found.memory.peak, step, config),
        against=None if other is None else _compare(config, other, found, measured, ceilings),
    )
    folder = RunFolder(Path(config.run_dir))
    write_report(report, folder, title=_title(config), depth=config.depth, figures=config.figures)
    print_report(report, folder, form=config.format, depth=config.depth, sort=config.sort)


def _compare(
    config: DictConfig,
    other: DictConfig,
    found: Profile,
    measured: Measured | None,
    ceilings: Ceilings | None,
) -> Comparison:
    """Predict the other job, and measure its step where that of this one was measured."""
    step = rehearsed(other)
    before = predict_cost(step, ceilings)
    times = None
    if measured is not None and measured.step is not None:
        taken = _measure_step(step)
        times = None if taken is None else (taken.p50_ms, measured.step.p50_ms)
    return Comparison(as_overrides(config.against), before.diff(found, times))


def _title(config: DictConfig) -> str:
    """The model's name, or how it is made."""
    name = config.model.get("name") or config.model.get("type")
    return str(name or config.model[TARGET].rpartition(".")[2])


def predict_cost(
    step: Rehearsed, ceilings: Ceilings | None, *, second_opinion: bool = False
) -> Profile:
    """The profile of a step, with the size of the delta that it would leave."""
    try:
        found = profile(
            step.model,
            step.batch,
            step.loss_fn,
            optimizer=step.optimizer,
            autocast=step.autocast,
            ceilings=ceilings,
            second_opinion=second_opinion,
        )
    except REFUSALS as error:
        raise explain_made_batch(step, error) from error
    delta_bytes = predict_delta_bytes(step.model, step.selection)
    return replace(found, size=replace(found.size, delta_bytes=delta_bytes))


def explain_made_batch(step: Rehearsed, error: Exception) -> Exception:
    """What is to be raised where a model has failed on a batch that was made for it."""
    if isinstance(error, EfftrainError):
        return error
    takes = str(interface_of(step.model))
    return ConfigError(
        f"input_size: {type(step.model).__name__} refuses a batch of {describe(step.batch)}"
        f"{f'; it takes {takes}' if takes else ''}: {' '.join(str(error).split())[:240]}"
    )


def _ceilings(config: DictConfig) -> Ceilings | None:
    if not config.ceilings:
        return None
    device = "cpu" if config.device == "meta" else config.device

    def measure(measured: torch.device) -> Ceilings:
        _log.info("measuring this machine's two ceilings; they are kept for the next time")
        return measure_ceilings(measured)

    return load_or_measure(device, measure=measure)


def _measure(step: Rehearsed) -> Measured:
    model, batch = step.model, step.batch
    latency = measure_latency(model, batch, progress=_progress("latency"))
    throughput = measure_throughput(model, batch, progress=_progress("throughput"))
    layers_ms = measure_layers(model, first_sample(batch), progress=_progress("layers"))
    energy = measure_sample_energy(model, batch, _counters(device_of(model, batch)))
    return Measured(latency, throughput, _measure_step(step), layers_ms, energy)


def _counters(device: torch.device) -> list[Counter]:
    """The device's energy counters; none, with a line that says so, where a package is missing."""
    try:
        return find_counters(device)
    except MachineError as error:
        _log.info(f"energy is not measured: {error}")
        return []


def _measure_step(step: Rehearsed) -> Latency | None:
    """Time of a training step; None where nothing trains."""
    model = step.model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return None
    device = next(model.parameters()).device.type
    with nullcontext() if step.autocast is None else torch.autocast(device, step.autocast):
        return measure_step(
            model, step.batch, step.loss_fn, step.optimizer, progress=_progress("training step")
        )


def _progress(what: str) -> Callable[[int, int], None]:
    """A line when a measurement begins; each takes seconds."""
    began = False

    def show(done: int, total: int) -> None:
        nonlocal began
        if not began:
            began = True
            _log.info(f"measuring: {what}, {total} runs")

    return show
