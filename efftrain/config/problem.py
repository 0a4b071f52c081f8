"""One thing that is wrong with a config, and how a reader finds and mends it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A finding that fits on one line.

    Attributes:
        key: Dotted config key.
        what: What is wrong, and what is allowed.
        where: File and line, or "command line"; empty where neither is known.
    """

    key: str
    what: str
    where: str = ""

    def __str__(self) -> str:
        line = f"{self.key}: {self.what}" if self.key else self.what
        return f"{line} ({self.where})" if self.where else line


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the nearest known word, or else the few that there are.

    Args:
        name: What was written.
        known: What is allowed.

    Returns:
        A sentence that starts with a blank, or "" where nothing is known.
    """
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(words)}" if words else ""
