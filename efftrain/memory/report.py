"""What was done to a model and what was left alone, as values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReducedModule:
    """A module whose operations keep less.

    Attributes:
        path: Where it is in the model.
        kind: Its class name.
        keeps: What of it is kept for backward, in words.
    """

    path: str
    kind: str
    keeps: str


@dataclass(frozen=True)
class LeftModule:
    """A module that keeps what plain torch keeps.

    Attributes:
        path: Where it is in the model.
        kind: Its class name.
        reason: Why.
        kept_bytes: Of its own, where they are known; else None.
    """

    path: str
    kind: str
    reason: str
    kept_bytes: int | None = None


@dataclass(frozen=True)
class MemoryReport:
    """The result of `reduce_memory`.

    Attributes:
        mode: As it was asked for.
        reduced: Modules that keep less.
        left: Modules that were left alone and keep something.
    """

    mode: str
    reduced: tuple[ReducedModule, ...]
    left: tuple[LeftModule, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "mode": self.mode,
            "reduced": [vars(one) for one in self.reduced],
            "left": [vars(one) for one in self.left],
        }

    def __str__(self) -> str:
        """A line for each kind of module."""
        lines = [f"memory={self.mode}: {len(self.reduced)} modules keep less for backward"]
        for (kind, keeps), count in Counter((m.kind, m.keeps) for m in self.reduced).items():
            lines.append(f"{count} x {kind}: keeps {keeps}")
        for (kind, reason), count in Counter((m.kind, m.reason) for m in self.left).items():
            lines.append(f"left alone: {count} x {kind}: {reason}")
        return "\n".join(lines)
