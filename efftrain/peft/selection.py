"""What trains and what stays, as a value that prints before anything changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from efftrain.peft.norms import NormSite
from efftrain.units import KIB, MIB


@dataclass(frozen=True)
class Selection:
    """The parameters that a method trains in one model.

    Attributes:
        method: As asked for, such as `norm+head`.
        groups: Role (`norm`, `bias`, `head`, `other`) to parameter names; every name is in exactly
            one, roles without a name are left out.
        sizes: Trainable elements of each group.
        total: Elements of all parameters; a tied tensor counts once.
        trainable: Elements that train.
        trainable_bytes: Bytes of the tensors that train, in their own dtype.
        frozen: Elements that stay as they are, by top-level child; those with none are left out.
        drifting: Paths of the layers whose running statistics training would move if
            `peft.bn_stats` did not hold them.
        norms: The normalization layers of which something trains.
        heads: Paths of the heads, where the method asks for them.
        notes: What a reader should know, one line each.
    """

    method: str
    groups: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    total: int
    trainable: int
    trainable_bytes: int
    frozen: dict[str, int]
    drifting: tuple[str, ...] = ()
    norms: tuple[NormSite, ...] = ()
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters that train, group by group."""
        return tuple(name for names in self.groups.values() for name in names)

    @property
    def trainable_pct(self) -> float:
        """100 x trainable / total."""
        return 100.0 * self.trainable / self.total

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. Keys as in the project's list of figures."""
        return {
            "method": self.method,
            "params": {
                "total": self.total,
                "trainable": self.trainable,
                "trainable_pct": self.trainable_pct,
            },
            "trainable_bytes": self.trainable_bytes,
            "groups": {group: list(names) for group, names in self.groups.items()},
            "sizes": dict(self.sizes),
            "frozen": dict(self.frozen),
            "drifting": list(self.drifting),
            "norms": [site.to_dict() for site in self.norms],
            "heads": list(self.heads),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """A table in plain text; its last line is the one that Hugging Face peft prints."""
        lines = [f"{self.method}: {'group':<8}{'tensors':>9}{'parameters':>15}"]
        width = len(self.method) + 2
        for group, names in self.groups.items():
            lines.append(f"{'':<{width}}{group:<8}{len(names):>9,}{self.sizes[group]:>15,}")
        lines.append(f"trains {_in_bytes(self.trainable_bytes)}")
        if self.frozen:
            frozen = ", ".join(f"{child} {count:,}" for child, count in self.frozen.items())
            lines.append(f"stays frozen: {frozen}")
        if self.drifting:
            lines.append(
                f"running statistics of {len(self.drifting)} layers would move in training; "
                "bn_stats=running holds them"
            )
        lines.extend(self.notes)
        lines.append(
            f"trainable params: {self.trainable:,} || all params: {self.total:,} "
            f"|| trainable%: {self.trainable_pct:.4f}"
        )
        return "\n".join(lines)


def _in_bytes(count: int) -> str:
    if count >= MIB:
        return f"{count / MIB:,.1f} MiB"
    return f"{count / KIB:,.1f} KiB"
