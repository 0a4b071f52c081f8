"""Which file and line a key of a composed config came from."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.core.default_element import ResultDefault

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Sources:
    """The files that a config was composed from, later ones winning.

    Attributes:
        files: File and the package (dotted prefix) that its content was put under.
        overrides: Keys that were set on the command line.
    """

    files: Sequence[tuple[Path, str]] = ()
    overrides: frozenset[str] = frozenset()

    def find(self, key: str) -> str:
        """Where the value of a dotted key was written last.

        Returns:
            "command line", "file:line", or "" for a key that no source holds.
        """
        prefixes = {key, *(key[:i] for i, char in enumerate(key) if char == ".")}
        if prefixes & self.overrides:
            return COMMAND_LINE
        for path, package in reversed(self.files):
            if package and not f"{key}.".startswith(f"{package}."):
                continue
            inside = key[len(package) :].lstrip(".")
            line = _lines(path).get(inside)
            if line is not None:
                return f"{readable(path)}:{line}"
        return ""


def locate_files(defaults: Iterable[ResultDefault], folders: Sequence[Path]) -> Sources:
    """Turn Hydra's defaults list into files on disk; the first folder that has one wins."""
    files = []
    for default in defaults:
        name = default.config_path or ""
        for folder in folders:
            path = folder / f"{name}.yaml"
            if path.is_file():
                package = default.package or ""
                files.append((path, "" if package == "_global_" else package))
                break
    return Sources(files)


def readable(path: Path) -> str:
    """A path relative to the working folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


@functools.lru_cache(maxsize=256)
def _lines(path: Path) -> dict[str, int]:
    """Line number of every dotted key in a YAML file."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            found[key] = key_node.start_mark.line + 1
            walk(value_node, f"{key}.")

    walk(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), "")
    return found
