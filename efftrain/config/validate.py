"""Check a composed config against its schema and report every problem together."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from efftrain.config.allow import resolve
from efftrain.config.annotations import describe, fits, parameters
from efftrain.config.build import INTERPOLATION, NO_INTERPOLATION, TARGET
from efftrain.config.problem import Problem, did_you_mean
from efftrain.config.schema import RANGES, Built
from efftrain.config.sources import Sources
from efftrain.errors import ConfigError

_DIRECTIVES = {"_partial_": bool, "_convert_": str, "_recursive_": bool}
_RUN_DIR = "run_dir"

NEEDS_VALUE = "needs a value: set it on the command line or in an experiment"
"""Problem of a key that is ??? in the YAML."""


def validate(config: DictConfig, schema: type, sources: Sources | None = None) -> list[Problem]:
    """Check keys, types, ranges and targets.

    Args:
        config: Composed, without Hydra's own node.
        schema: A dataclass of `efftrain.config.schema`.
        sources: Where the keys came from, for the messages.

    Returns:
        Every problem, in the order of the config; empty for a config that can be built.
    """
    checker = _Checker(sources or Sources())
    plain = checker.resolve_values(config)
    checker.check_dataclass(plain, schema, "")
    return checker.problems


def require_valid(config: DictConfig, schema: type, sources: Sources | None = None) -> None:
    """Raise one `ConfigError` with a line per problem, or return."""
    problems = validate(config, schema, sources)
    if problems:
        raise ConfigError(*map(str, problems))


class _Checker:
    def __init__(self, sources: Sources) -> None:
        self.problems: list[Problem] = []
        self._sources = sources
        self._reported: set[str] = set()

    def report(self, key: str, what: str) -> None:
        self._reported.add(key)
        self.problems.append(Problem(key, what, self._sources.find(key)))

    def resolve_values(self, config: DictConfig) -> dict[str, Any]:
        """Interpolations become values; one that cannot is a problem, and its key is left out."""

        def read(node: Any, name: Any, key: str) -> Any:
            value = node[name]
            if isinstance(value, str) and INTERPOLATION in value:
                self.report(key, NO_INTERPOLATION)
            return walk(value, key) if OmegaConf.is_config(value) else value

        def walk(node: Any, prefix: str) -> Any:
            if OmegaConf.is_list(node):
                return [read(node, i, f"{prefix}.{i}") for i in range(len(node))]
            plain: dict[str, Any] = {}
            for name in node:
                key = f"{prefix}.{name}" if prefix else str(name)
                if OmegaConf.is_missing(node, name):
                    self.report(key, NEEDS_VALUE)
                    continue
                try:
                    plain[name] = read(node, name, key)
                except OmegaConfBaseException as error:
                    self.report(key, str(error).splitlines()[0])
            return plain

        return walk(_without_run_dir(config), "")

    def check_dataclass(self, node: Any, schema: type, prefix: str) -> None:
        if not isinstance(node, Mapping):
            return self.report(prefix, f"expected keys and values, got {node!r}")
        hints = typing.get_type_hints(schema)
        known = {field.name: field for field in fields(schema)}
        for name, value in node.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            if name not in known:
                self.report(key, f"unknown key{did_you_mean(str(name), known)}")
            else:
                self.check_value(value, hints[name], key, known[name].metadata.get("given", ()))
        for name in known.keys() - node.keys():
            key = f"{prefix}.{name}" if prefix else name
            if key not in self._reported and type(None) not in _choices(hints[name]):
                self.report(key, "missing")
        return None

    def check_value(self, value: Any, annotation: Any, key: str, given: Sequence[str]) -> None:
        choices = _choices(annotation)
        if (value is None or value == {}) and type(None) in choices:
            return
        if isinstance(annotation, type) and is_dataclass(annotation):
            self.check_dataclass(value, annotation, key)
        elif Built in choices:
            self.check_built(value, key, given)
        elif annotation == dict[str, Built | None]:
            self.check_keyed(value, key)
        elif not fits(value, annotation):
            self.report(key, f"expected {describe(annotation)}, got {value!r}")
        else:
            self.check_range(value, key)

    def check_keyed(self, nodes: Any, key: str) -> None:
        if nodes is not None and not isinstance(nodes, Mapping):
            return self.report(key, f"expected named entries, got {nodes!r}")
        for name, node in (nodes or {}).items():
            if node is not None:
                self.check_built(node, f"{key}.{name}", ())
        return None

    def check_built(self, node: Any, key: str, given: Sequence[str]) -> None:
        if f"{key}.{TARGET}" in self._reported:  # it is missing
            return None
        if not isinstance(node, Mapping) or not isinstance(node.get(TARGET), str):
            return self.report(key, f"expected {TARGET} and its arguments, got {node!r}")
        try:
            accepted = parameters(resolve(node[TARGET]))
        except ConfigError as error:
            return self.report(f"{key}.{TARGET}", str(error))
        any_keyword = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        for name, value in node.items():
            if name == TARGET:
                continue
            if name in _DIRECTIVES:
                self.check_value(value, _DIRECTIVES[name], f"{key}.{name}", ())
            elif name in accepted and name not in given:
                self.check_argument(value, accepted[name].annotation, f"{key}.{name}")
            elif any_keyword:
                self.check_argument(value, Any, f"{key}.{name}")
            else:
                known = accepted.keys() - set(given)
                self.report(f"{key}.{name}", f"unknown key{did_you_mean(str(name), known)}")
        if not node.get("_partial_"):
            self.check_required(node, accepted, key, given)
        return None

    def check_argument(self, value: Any, annotation: Any, key: str) -> None:
        """An argument may itself be built, or hold things that are."""
        if isinstance(value, Mapping) and TARGET in value:
            self.check_built(value, key, ())
        elif isinstance(value, Mapping) and any(_is_built(item) for item in value.values()):
            self.check_keyed(value, key)
        elif isinstance(value, list) and any(map(_is_built, value)):
            for index, item in enumerate(value):
                self.check_built(item, f"{key}.{index}", ())
        elif not fits(value, annotation):
            self.report(key, f"expected {describe(annotation)}, got {value!r}")
        else:
            self.check_range(value, key)

    def check_required(
        self,
        node: Mapping[str, Any],
        accepted: Mapping[str, inspect.Parameter],
        key: str,
        given: Sequence[str],
    ) -> None:
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for name, parameter in accepted.items():
            needed = parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
            if needed and name not in node and name not in given:
                full = f"{key}.{name}"
                if full not in self._reported:
                    self.report(full, "missing")

    def check_range(self, value: Any, key: str) -> None:
        allowed = RANGES.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if allowed is not None and is_number and value not in allowed:
            self.report(key, f"must be {allowed}, got {value}")


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_built(node: Any) -> bool:
    return isinstance(node, Mapping) and TARGET in node


def _without_run_dir(config: DictConfig) -> DictConfig:
    """A copy in which paths below the run folder resolve, though there is no run yet."""
    copy = config.copy()
    OmegaConf.set_readonly(copy, False)
    if _RUN_DIR in copy:
        copy[_RUN_DIR] = ""
    return copy
