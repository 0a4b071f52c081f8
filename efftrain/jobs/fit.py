"""The largest batch that fits into memory, for each of several PEFT methods."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from efftrain.errors import ConfigError, MachineError
from efftrain.jobs.rehearse import rehearsed
from efftrain.measure.cost_report import MethodFit
from efftrain.peft.methods import split_method
from efftrain.profiling.fit import largest_batch
from efftrain.render.quantity import bytes_text

_log = logging.getLogger(__name__)


def fit_methods(config: DictConfig, limit_bytes: int) -> tuple[MethodFit, ...]:
    """Find the largest batch of the job's own method and of each of `config.fit_methods`.

    Args:
        config: Checked against `ProfileConfig`.
        limit_bytes: What a step may hold.

    Returns:
        One for each method, the job's own first; one that cannot be used here says why.
    """
    methods = dict.fromkeys([config.peft.method, *config.fit_methods])
    try:
        for method in methods:
            split_method(method)  # a typo ends the job before the first dry run
    except ConfigError as error:
        raise ConfigError(f"fit_methods: {error}") from error
    found: list[MethodFit] = []
    for number, method in enumerate(methods, start=1):
        _log.info(f"fit in {bytes_text(limit_bytes)}: {method} ({number} of {len(methods)})")
        try:
            step = rehearsed(config, method)
        except (ConfigError, MachineError) as error:
            found.append(MethodFit(method, None, str(error)))
            continue
        fit = largest_batch(
            step.model,
            step.batch,
            limit_bytes,
            step.loss_fn,
            optimizer=step.optimizer,
            autocast=step.autocast,
        )
        found.append(MethodFit(method, fit, ""))
    return tuple(found)
