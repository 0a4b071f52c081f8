"""`efftrain configs ls|check|norms`: what can be named on the command line, and what it comes to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from efftrain.cli import stop_quietly
from efftrain.config.compose import compose
from efftrain.config.problem import Problem, did_you_mean
from efftrain.config.schema import TrainConfig
from efftrain.config.sources import readable
from efftrain.config.validate import NEEDS_VALUE, validate
from efftrain.errors import ConfigError, EfftrainError
from efftrain.paths import conf_dir

_NO_OPTION = frozenset({"hydra"})


def main() -> None:
    """Entry point of `efftrain configs`."""
    arguments = _parser().parse_args()
    try:
        folders = _folders(arguments.config_dir)
        if arguments.action == "norms":
            sys.exit(_norms(arguments.overrides, arguments.format, folders))
        groups = _chosen(list_groups(folders), arguments.group)
        sys.exit(_list(groups) if arguments.action == "ls" else _check(groups, folders))
    except BrokenPipeError:
        stop_quietly()
    except EfftrainError as error:
        for line in str(error).splitlines():
            print(f"efftrain: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="efftrain configs", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, what in (("ls", "list every group and option"), ("check", "compose and check all")):
        action = actions.add_parser(name, help=what)
        action.add_argument("group", nargs="?", help="only this group, such as peft")
    norms = actions.add_parser("norms", help="list the normalization layers of a model")
    norms.add_argument("overrides", nargs="*", help="such as model=timm model.name=resnet50")
    norms.add_argument("--format", choices=["table", "json"], default="table")
    for action in actions.choices.values():
        action.add_argument("--config-dir", type=Path, help="a folder of your own YAML as well")
    return parser


def _chosen(groups: dict[str, dict[str, Path]], group: str | None) -> dict[str, dict[str, Path]]:
    if group is None:
        return groups
    if group not in groups:
        raise ConfigError(f"no group '{group}'{did_you_mean(group, groups)}")
    return {group: groups[group]}


def _norms(overrides: list[str], form: str, folders: list[Path]) -> int:
    config, problems = _compose_and_check(overrides, folders)
    if problems:
        raise ConfigError(*map(str, problems))
    from efftrain.jobs.norms import describe_norms  # imports torch

    print(describe_norms(config, form))
    return 0


def list_groups(folders: list[Path]) -> dict[str, dict[str, Path]]:
    """Options of every group, by name; the first folder that has one wins."""
    groups: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/**/*.yaml")):
            group, *rest = path.relative_to(folder).with_suffix("").parts
            if group not in _NO_OPTION:
                groups.setdefault(group, {}).setdefault("/".join(rest), path)
    return dict(sorted(groups.items()))


def summarise(path: Path) -> str:
    """The sentence at the top of a config, after the command that uses it."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    sentences = [line for line in comments if not line.startswith(("efftrain ", "@package"))]
    return sentences[0] if sentences else ""


def check_option(group: str, option: str, folders: list[Path]) -> list[str]:
    """Compose the default job with one option, and check it.

    A value that an option leaves to its user is no problem of the option's.
    """
    problems = _compose_and_check([f"{group}={option}"], folders)[1]
    return [str(problem) for problem in problems if problem.what != NEEDS_VALUE]


def _compose_and_check(
    overrides: list[str], folders: list[Path]
) -> tuple[DictConfig, list[Problem]]:
    composition = compose("train", overrides, folders)
    config = composition.config.copy()
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    problems = [*composition.problems, *validate(config, TrainConfig, composition.sources)]
    return config, problems


def _folders(own: Path | None) -> list[Path]:
    if own is None:
        return [conf_dir()]
    if not own.is_dir():
        raise ConfigError(f"--config-dir: no folder {own}")
    return [own.resolve(), conf_dir()]


def _list(groups: dict[str, dict[str, Path]]) -> int:
    for group, options in groups.items():
        print(f"{group}=")
        width = max(map(len, options))
        for option, path in options.items():
            print(f"  {option:<{width}}  {summarise(path)}")
    return 0


def _check(groups: dict[str, dict[str, Path]], folders: list[Path]) -> int:
    failures = 0
    for group, options in groups.items():
        for option, path in options.items():
            try:
                problems = check_option(group, option, folders)
            except EfftrainError as error:
                problems = str(error).splitlines()
            for problem in problems:
                print(f"efftrain: {readable(path)}: {problem}", file=sys.stderr)
            failures += bool(problems)
    total = sum(map(len, groups.values()))
    print(f"{total - failures} of {total} configs compose and validate")
    return ConfigError.exit_code if failures else 0


if __name__ == "__main__":
    main()
