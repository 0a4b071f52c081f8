"""Patterns on dotted names, and what to suggest when one of them matches nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from efftrain.errors import ConfigError


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name is what a pattern means.

    Args:
        name: A parameter's or a module's name, such as `layer4.0.bn1.weight`.
        pattern: A shell-style glob, or a dotted prefix: `layer4`, `layer?.0`, `*.bn1.*`. It has to
            match the whole name, or its first parts up to a dot.
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def match_all(
    names: Iterable[str], patterns: Iterable[str], key: str, known: Iterable[str] = ()
) -> frozenset[str]:
    """The names that any of the patterns mean.

    Args:
        names: What may be chosen.
        patterns: Globs or dotted prefixes.
        key: The config key that the patterns stand under, for the message.
        known: Every name that exists, where `names` is only a part of them.

    Raises:
        ConfigError: A pattern matches none of the names; one line for each.
    """
    names = tuple(names)
    everything = tuple(known) or names
    chosen: set[str] = set()
    problems: list[str] = []
    for pattern in patterns:
        found = [name for name in names if matches(name, pattern)]
        chosen.update(found)
        if found:
            continue
        elsewhere = sum(matches(name, pattern) for name in everything)
        if elsewhere:
            problems.append(
                f"{key}={pattern} matches {elsewhere} of {len(everything)} names, "
                "but none that the other choices leave in; loosen one of them"
            )
        else:
            problems.append(
                f"{key}={pattern} matches none of {len(everything)} names"
                f"{did_you_mean(pattern, _prefixes(everything))}; allowed are globs and dotted "
                "prefixes such as layer4 or *.norm1.weight"
            )
    if problems:
        raise ConfigError(*problems)
    return frozenset(chosen)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A clause to add to a message: the known names closest to the one given, or nothing."""
    close = difflib.get_close_matches(given, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _prefixes(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return found
