"""`efftrain configs ls|check`: what can be named on the command line, and whether all of it works."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omegaconf import OmegaConf

from efftrain.config.compose import compose
from efftrain.config.schema import EvalConfig, TrainConfig
from efftrain.config.sources import readable
from efftrain.config.validate import validate
from efftrain.errors import ConfigError, EfftrainError
from efftrain.paths import conf_dir

_PRIMARIES = {"train": TrainConfig, "eval": EvalConfig}
_NO_OPTION = frozenset({"hydra"})


def main() -> None:
    """Entry point of `efftrain configs`."""
    parser = argparse.ArgumentParser(prog="efftrain configs", description=__doc__)
    parser.add_argument(
        "action", choices=["ls", "check"], help="list all, or compose and check all"
    )
    parser.add_argument("group", nargs="?", help="only this group, such as peft")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own YAML as well")
    arguments = parser.parse_args()
    try:
        folders = _folders(arguments.config_dir)
        groups = list_groups(folders)
        if arguments.group is not None:
            if arguments.group not in groups:
                raise ConfigError(f"no group '{arguments.group}'; there are: {', '.join(groups)}")
            groups = {arguments.group: groups[arguments.group]}
        sys.exit(_list(groups) if arguments.action == "ls" else _check(groups, folders))
    except EfftrainError as error:
        print(f"efftrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def list_groups(folders: list[Path]) -> dict[str, dict[str, Path]]:
    """Options of every group, by name; the first folder that has one wins."""
    groups: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            group = path.parent.name
            if group not in _NO_OPTION:
                groups.setdefault(group, {}).setdefault(path.stem, path)
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
    """Compose the default job with one option, and check it."""
    composition = compose("train", [f"{group}={option}"], folders)
    config = composition.config.copy()
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    problems = [*composition.problems, *validate(config, TrainConfig, composition.sources)]
    return [str(problem) for problem in problems]


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
