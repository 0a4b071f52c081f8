"""Compose a config as Hydra will, and report all that is wrong with its overrides at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from efftrain.config.allow import resolve
from efftrain.config.annotations import parameters
from efftrain.config.problem import Problem, did_you_mean
from efftrain.config.sources import COMMAND_LINE, Sources, locate_files
from efftrain.errors import ConfigError

_FAILURES = (HydraException, OmegaConfBaseException, YAMLError, ValueError)

MAX_CHECKED_JOBS = 64
"""Jobs of a sweep that are checked before the first one starts; composing takes about 0.1 s each."""


@dataclass(frozen=True)
class Composition:
    """A composed config, and what was left out of it because it was wrong.

    Attributes:
        config: With Hydra's own node under `hydra`; without the overrides that `problems` names.
        problems: Overrides that do not apply.
        sources: Where each key came from.
    """

    config: DictConfig
    problems: list[Problem]
    sources: Sources


def compose(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> Composition:
    """Compose one job's config.

    Args:
        name: The primary config, such as "train".
        overrides: As on the command line; not sweeps.
        folders: Where the YAML lies; earlier ones win.

    Raises:
        ConfigError: A file cannot be read at all, or an override cannot be parsed.
    """
    parsed = parse_overrides(overrides)
    with _search(folders) as loader:
        try:
            good, problems = list(overrides), []
            config = _compose(name, good)
        except _FAILURES:
            good, problems = _sort_out(name, parsed)
            config = _compose_or_explain(name, good)
        defaults = loader.compute_defaults_list(name, good, RunMode.RUN).defaults
        keys = frozenset(o.key_or_group for o in parsed if not _is_group(o, loader))
    files = locate_files(defaults, folders)
    return Composition(config, problems, Sources(files.files, keys))


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job that a multirun starts, up to `MAX_CHECKED_JOBS`.

    An override whose values only the sweeper knows (an interval, a glob) is left out.
    """
    choices: list[list[str]] = []
    for override in parse_overrides(overrides):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif override.is_discrete_sweep() and not isinstance(override.value(), Glob):
            values = override.sweep_string_iterator()
            choices.append([f"{override.get_key_element()}={value}" for value in values])
    jobs = itertools.islice(itertools.product(*choices), MAX_CHECKED_JOBS)
    return [list(job) for job in jobs]


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides, with all that cannot be parsed in one error.

    Raises:
        ConfigError: One line each.
    """
    parser, parsed, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except HydraException:
            hint = "quote it as 'key=\"value\"'" if "=" in text else "write key=value"
            problems.append(str(Problem("", f"cannot read '{text}'; {hint}", COMMAND_LINE)))
    if problems:
        raise ConfigError(*problems)
    return parsed


def _sort_out(name: str, parsed: Sequence[Override]) -> tuple[list[str], list[Problem]]:
    """Apply one override after another, group choices first, and keep those that apply."""
    good: list[str] = []
    problems: list[Problem] = []
    base = _compose_or_explain(name, good)
    loader = _loader()
    for override in sorted(parsed, key=lambda item: not _is_group(item, loader)):
        line = str(override.input_line)
        try:
            base = _compose(name, [*good, line])
            good.append(line)
        except _FAILURES as error:
            problems.append(_explain(override, error, base, loader))
    return good, problems


def _explain(
    override: Override, error: Exception, config: DictConfig, loader: ConfigLoader
) -> Problem:
    key = override.key_or_group
    if isinstance(error, YAMLError):
        return Problem(key, _yaml_line(error), COMMAND_LINE)
    if _is_group(override, loader):
        return Problem(key, _explain_group(override, error, config, loader), COMMAND_LINE)
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, DictConfig) and leaf not in node:
        known = {str(name) for name in node} - {"hydra"}
        groups = set() if parent else set(loader.get_group_options("", results_filter=None))
        addable = "" if not _takes(node, leaf) else f"; to add it, write +{key}=…"
        return Problem(
            key, f"unknown key{addable or did_you_mean(leaf, known | groups)}", COMMAND_LINE
        )
    first = key.split(".")[0]
    if node is None and first not in config:
        hint = did_you_mean(first, {str(name) for name in config} - {"hydra"})
        return Problem(key, f"unknown key '{first}'{hint}", COMMAND_LINE)
    if node is None:
        return Problem(key, "unknown key", COMMAND_LINE)
    return Problem(key, _first_line(error), COMMAND_LINE)


def _explain_group(
    override: Override, error: Exception, config: DictConfig, loader: ConfigLoader
) -> str:
    key, option = override.key_or_group, override.get_value_string()
    options = loader.get_group_options(key)
    if override.value() is None and key in config:
        off = f"; {key}=none switches it off" if "none" in options else ""
        return f"cannot be null{off}"
    if isinstance(error, MissingConfigException) and option not in options:
        return f"no option '{option}'{did_you_mean(option, options)}"
    return _first_line(error)


def _takes(node: DictConfig, name: str) -> bool:
    """Whether what a node builds has such an argument, though the YAML does not name it."""
    target = node.get("_target_")
    try:
        return isinstance(target, str) and name in parameters(resolve(target))
    except ConfigError:
        return False


def _compose_or_explain(name: str, overrides: list[str]) -> DictConfig:
    try:
        return _compose(name, overrides)
    except YAMLError as error:
        raise ConfigError(_yaml_line(error)) from error
    except _FAILURES as error:
        raise ConfigError(_first_line(error)) from error


def _compose(name: str, overrides: list[str]) -> DictConfig:
    return hydra.compose(name, overrides=overrides, return_hydra_config=True)


@contextmanager
def _search(folders: Sequence[Path]) -> Iterator[ConfigLoader]:
    """Let Hydra look into the folders, as `hydra.main` does with --config-dir.

    Its public `initialize_config_dir` takes one folder only.
    """
    version.setbase("1.3")
    path = create_config_search_path(search_path_dir=str(folders[-1]))
    for folder in reversed(folders[:-1]):
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="main"))
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        Hydra.create_main_hydra2(task_name="efftrain", config_search_path=path)
        yield _loader()
    finally:
        GlobalHydra.instance().hydra = before


def _loader() -> ConfigLoader:
    return GlobalHydra.instance().config_loader()


def _is_group(override: Override, loader: ConfigLoader) -> bool:
    return bool(loader.get_group_options(override.key_or_group))


def _first_line(error: BaseException) -> str:
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{error} {error.__cause__}"
    else:
        text = str(error)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines else type(error).__name__


def _yaml_line(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "cannot be read"
    return f"{mark.name}:{mark.line + 1}: {what}" if mark is not None else f"broken YAML: {what}"
