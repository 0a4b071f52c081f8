"""What each device holds, and the largest batch that fits there, for several PEFT methods."""

from __future__ import annotations

import itertools
import logging

from omegaconf import DictConfig

from efftrain.errors import ConfigError, MachineError
from efftrain.jobs.rehearse import Rehearsed, rehearsed
from efftrain.measure.cost_report import MethodFit
from efftrain.peft.blocks import find_blocks
from efftrain.peft.methods import split_method
from efftrain.profiling.fit import largest_batch
from efftrain.profiling.peak import StepPeak
from efftrain.profiling.strategy import DevicePeak, estimate_per_device
from efftrain.render.quantity import bytes_text

_log = logging.getLogger(__name__)


def fit_methods(config: DictConfig, limit_bytes: int) -> tuple[MethodFit, ...]:
    """Find the largest batch for the job's own method and each of `config.fit_methods`, in each mode.

    Args:
        config: Checked against `ProfileConfig`.
        limit_bytes: What a step may hold.

    Returns:
        One for each method and memory mode, the job's own first; one that cannot be used says why.
    """
    methods = dict.fromkeys([config.peft.method, *config.fit_methods])
    try:
        for method in methods:
            split_method(method)  # a typo ends the job before the first dry run
    except ConfigError as error:
        raise ConfigError(f"fit_methods: {error}") from error
    modes = dict.fromkeys([config.memory.mode, *config.fit_memory])
    wanted = list(itertools.product(methods, modes))
    found: list[MethodFit] = []
    for number, (method, memory) in enumerate(wanted, start=1):
        _log.info(
            f"fit in {bytes_text(limit_bytes)}: {method}, memory={memory} "
            f"({number} of {len(wanted)})"
        )
        try:
            step = rehearsed(config, method, memory)
        except (ConfigError, MachineError) as error:
            found.append(MethodFit(method, memory, None, str(error)))
            continue
        fit = largest_batch(
            step.model,
            step.batch,
            limit_bytes,
            step.loss_fn,
            optimizer=step.optimizer,
            autocast=step.autocast,
            held_bytes=lambda peak, step=step: per_device(peak, step, config).device_peak_bytes,
        )
        found.append(MethodFit(method, memory, fit))
    return tuple(found)


def per_device(peak: StepPeak, step: Rehearsed, config: DictConfig) -> DevicePeak:
    """What one of the job's devices holds; FSDP shards each of the model's blocks on its own."""
    return estimate_per_device(
        peak, step.model, config.strategy, devices=config.devices, units=find_blocks(step.model)
    )
