"""Whether a config value fits a type annotation."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SEQUENCES = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function, annotations evaluated where they can be."""
    signature = inspect.signature(target)
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # an annotation that only a type checker can see
        hints = {}
    return {
        name: parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
    }


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value may be passed where `annotation` is declared.

    No annotation, `Any` or a type variable accepts everything: the constructor has the last word.
    """
    if annotation in (Any, object, inspect.Parameter.empty):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    kind = origin or annotation
    if kind in (None, type(None)):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str)
    if kind in _SEQUENCES:
        return isinstance(value, (list, tuple)) and _items_fit(value, kind, arguments)
    if kind in _MAPPINGS:
        return isinstance(value, Mapping)
    if inspect.isclass(kind):  # only an object of that class fits, and YAML has none
        return issubclass(kind, str) and isinstance(value, str)
    return True


def describe(annotation: Any) -> str:
    """An annotation in the words of someone who writes YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        names = dict.fromkeys(describe(choice) for choice in arguments)
        return " or ".join(names)
    if annotation is type(None):
        return "null"
    return getattr(origin or annotation, "__name__", str(annotation))


def _items_fit(items: Any, kind: Any, arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if kind is tuple and arguments[-1] is not Ellipsis:
        return len(items) == len(arguments) and all(map(fits, items, arguments))
    return all(fits(item, arguments[0]) for item in items)
