"""What a config may ask of Hydra itself, which acts before any code of ours runs.

Hydra builds its callbacks, launcher and sweeper, and Python's logging builds handlers and formatters,
from names in the `hydra` node. So that node is judged before Hydra sees it, and by exact names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from efftrain.config.allow import resolve, trusted_packages
from efftrain.config.problem import Problem
from efftrain.errors import ConfigError

_PLUGINS = "hydra_plugins.hydra_"
ALLOWED_TARGETS = frozenset(
    [
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra.experimental.callbacks.LogJobReturnCallback",
        "hydra.experimental.callbacks.PickleJobInfoCallback",
        f"{_PLUGINS}joblib_launcher.joblib_launcher.JoblibLauncher",
        f"{_PLUGINS}optuna_sweeper.optuna_sweeper.OptunaSweeper",
        f"{_PLUGINS}ray_launcher.ray_aws_launcher.RayAWSLauncher",
        f"{_PLUGINS}ray_launcher.ray_launcher.RayLauncher",
        f"{_PLUGINS}submitit_launcher.submitit_launcher.LocalLauncher",
        f"{_PLUGINS}submitit_launcher.submitit_launcher.SlurmLauncher",
        *(
            f"optuna.samplers.{kind}Sampler"
            for kind in ("CmaEs", "Grid", "NSGAII", "Random", "TPE")
        ),
    ]
)
"""Hydra's own and its published plugins, each spelt as it is defined: an alias is none of them."""

_LOGGING_CLASSES = frozenset(
    ["logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter",
     "colorlog.ColoredFormatter"]
)  # fmt: skip
_LOGGING_STREAMS = frozenset(["ext://sys.stdout", "ext://sys.stderr"])
_LOGGING_MAGIC = frozenset(["()", "."])
"""Keys that make logging call a factory, or set attributes."""
_LOGGING_TEXTS = frozenset(["filename", "format", "level"])
"""Values that may hold an interpolation: they are used as text."""
_ENVIRONMENT = ("EFFTRAIN_", "PYTHON", "LD_", "DYLD_", "TORCH_FORCE")
"""Variables that decide which code runs."""


def check_hydra_node(node: DictConfig) -> list[Problem]:
    """Find what the `hydra` node would run that is neither Hydra's own nor trusted.

    Args:
        node: The composed `hydra` node; it is not resolved.
    """
    plain = OmegaConf.to_container(node, resolve=False)
    problems: list[Problem] = []
    for parts, value in _leaves(plain, ("hydra",)):
        what = _objection(parts, value)
        if what:
            problems.append(Problem(".".join(parts), what))
    return problems


def _objection(parts: tuple[str, ...], value: Any) -> str:
    """Why a value of the node is refused; "" where it is not."""
    if parts[-1] == "_target_" and not _may_build(value):
        return f"may not build '{value}'"
    if parts[1:3] == ("job", "env_set") and parts[-1].startswith(_ENVIRONMENT):
        return "may not be set by a config; set it in the shell"
    if parts[1] in ("job_logging", "hydra_logging"):
        return _logging_objection(parts, str(value))
    return ""


def _logging_objection(parts: tuple[str, ...], text: str) -> str:
    """Python's logging configuration can call anything through factories, classes and `ext://`."""
    if not _LOGGING_MAGIC.isdisjoint(parts):
        return "a config may not name a logging factory"
    if parts[-1] == "class" and text not in _LOGGING_CLASSES:
        return f"may not build '{text}'; allowed: {', '.join(sorted(_LOGGING_CLASSES))}"
    if text.startswith(("ext://", "cfg://")) and text not in _LOGGING_STREAMS:
        return f"may not use '{text}'; allowed: {', '.join(sorted(_LOGGING_STREAMS))}"
    if "${" in text and parts[-1] not in _LOGGING_TEXTS:
        return "may not be an interpolation"
    return ""


def _may_build(target: Any) -> bool:
    if target in ALLOWED_TARGETS:
        return True
    if str(target).split(".")[0] not in trusted_packages():
        return False
    try:
        resolve(str(target))
    except ConfigError:
        return False
    return True


def _leaves(node: Any, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no container, with its path; an empty container counts as a value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    if not items:
        yield parts, node
    for name, value in items:
        yield from _leaves(value, (*parts, str(name)))
