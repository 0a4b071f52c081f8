"""Another job than the one that runs: the same command line and a few more overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from efftrain.config.compose import compose
from efftrain.config.schema import ProfileConfig
from efftrain.config.validate import validate
from efftrain.errors import ConfigError

_PLAIN = re.compile(r"[\w./+-]+")
"""Text that Hydra reads as it stands; other text is quoted."""


def as_overrides(changes: Any, prefix: str = "") -> tuple[str, ...]:
    """A mapping of keys as the overrides that would set them: `peft=full`, `optim.lr=0.1`."""
    if not isinstance(changes, DictConfig):
        return (f"{prefix}={_value(changes)}",)
    return tuple(
        override
        for name, value in changes.items()
        for override in as_overrides(value, f"{prefix}.{name}" if prefix else str(name))
    )


def with_overrides(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the job that is running once more, with overrides of its own.

    Args:
        name: The primary config.
        overrides: As on the command line; they come last, so that they win.

    Raises:
        ConfigError: One of them does not apply.
    """
    running = HydraConfig.get()
    folders = [
        Path(source.path) for source in running.runtime.config_sources if source.schema == "file"
    ]
    composition = compose(name, [*running.overrides.task, *overrides], folders)
    config = composition.config.copy()
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    problems = [*composition.problems, *validate(config, ProfileConfig, composition.sources)]
    if problems:
        raise ConfigError(*(f"against: {problem}" for problem in problems))
    return config


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return json.dumps(plain)
