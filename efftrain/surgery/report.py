"""What a fold did and what it left alone, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import nn

from efftrain.surgery.equality import Equality

LeftAs = Literal["identity", "activation", "no_affine", "neutral"]


@dataclass(frozen=True)
class FoldedNorm:
    """A norm whose scale and shift have moved into its neighbours.

    Attributes:
        path: Where it is in the model.
        kind: Its class name.
        into: Paths of the layers that took them over.
        before: Whether those come before the norm (a batch norm's convolution) or after it.
        left_as: What stands in its place: `nn.Identity`; the activation that was fused with it; the
            norm without scale and shift; the norm with a scale and shift that change nothing.
        added_bias: Those of `into` that had no bias and have one now.
    """

    path: str
    kind: str
    into: tuple[str, ...]
    before: bool
    left_as: LeftAs
    added_bias: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "into": list(self.into),
            "added_bias": list(self.added_bias),
        }


@dataclass(frozen=True)
class LeftNorm:
    """A norm that stayed as it was.

    Attributes:
        path: Where it is in the model.
        kind: Its class name.
        reason: Why.
    """

    path: str
    kind: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FoldReport:
    """The result of a fold.

    Attributes:
        model: The folded copy; the model that was given where nothing was folded or the proof
            failed.
        folded: What moved.
        left: What did not, and why.
        given: How far the copy is from the original on the inputs that were given; None where
            nothing was folded.
        random: The same on random inputs of the same form.
        refused: Why the fold was not made after all; "" where it was, or where there was nothing to
            fold.
    """

    model: nn.Module = field(repr=False)
    folded: tuple[FoldedNorm, ...]
    left: tuple[LeftNorm, ...]
    given: Equality | None = None
    random: Equality | None = None
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as plain values."""
        return {
            "folded": [norm.to_dict() for norm in self.folded],
            "left": [norm.to_dict() for norm in self.left],
            "given": None if self.given is None else self.given.to_dict(),
            "random": None if self.random is None else self.random.to_dict(),
            "refused": self.refused,
        }

    def __str__(self) -> str:
        """A line for what was folded, and one for each norm that was not."""
        total = len(self.folded) + len(self.left)
        lines = [f"folded {len(self.folded)} of {total} norms"]
        for name, one in (("given", self.given), ("random", self.random)):
            if one is not None:
                lines.append(
                    f"{name} inputs: largest error {one.max_abs:.2e}, relative {one.max_rel:.2e} "
                    f"(allowed {one.tolerance:.0e})"
                )
        lines += [f"left alone: {norm.path} ({norm.kind}): {norm.reason}" for norm in self.left]
        if self.refused:
            lines.append(f"refused: {self.refused}")
        return "\n".join(lines)
