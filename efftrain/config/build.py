"""From a checked config node to an object: the only place that calls Hydra's `instantiate`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from efftrain.config.allow import resolve
from efftrain.errors import ConfigError, EfftrainError

TARGET = "_target_"

INTERPOLATION = "${"
NO_INTERPOLATION = "'${' is left after all values are resolved, and would be resolved once more"
"""An escaped interpolation could name code that no check has seen."""


def build(node: Any, key: str, **given: Any) -> Any:
    """Build what a node describes, its parts first.

    Args:
        node: A mapping with `_target_`, as composed.
        key: Its config key, for the message when it cannot be built.
        **given: Arguments that no config can hold, such as the model.

    Returns:
        The object; with `_partial_: true`, a callable that still takes arguments.

    Raises:
        ConfigError: A target is not allowed, or its constructor refused the arguments.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    # The checked object itself goes on to Hydra, not its name: nothing is looked up twice.
    checked = _with_resolved_targets(plain, key)
    stays_partial = bool(checked.get("_partial_"))
    try:
        make = hydra.utils.instantiate(checked | {"_partial_": True}, _convert_="all")
        # Hydra would take a dataclass among the given arguments for a config and convert it.
        return functools.partial(make, **given) if stays_partial else make(**given)
    except Exception as error:  # a constructor may raise anything
        raise _explain(error, key) from error


def build_each(nodes: Mapping[str, Any] | None, key: str) -> list[Any]:
    """Build the values of a keyed group, in order; a null entry switches one off."""
    return [
        build(node, f"{key}.{name}") for name, node in (nodes or {}).items() if node is not None
    ]


def _with_resolved_targets(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return {
            name: _resolved(value, f"{key}.{name}")
            if name == TARGET
            else _with_resolved_targets(value, f"{key}.{name}")
            for name, value in node.items()
        }
    if isinstance(node, list):
        return [_with_resolved_targets(item, f"{key}.{i}") for i, item in enumerate(node)]
    if isinstance(node, str) and INTERPOLATION in node:
        raise ConfigError(f"{key}: {NO_INTERPOLATION}")
    return node


def _resolved(target: Any, key: str) -> Any:
    try:
        return resolve(str(target))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _explain(error: BaseException, key: str) -> EfftrainError:
    """What a constructor complained of, in one line."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, EfftrainError):
        return error
    lines = str(error).strip().splitlines()
    return ConfigError(f"{key}: {type(error).__name__}: {lines[0] if lines else 'no message'}")
