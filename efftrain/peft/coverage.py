"""How much of what looks like a norm was found to be one: a list to read before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from efftrain.peft.norms import NormSite, Suspect, survey


@dataclass(frozen=True)
class Coverage:
    """The norms of a model, and what only calls itself one.

    Attributes:
        sites: Every norm, each once.
        unknown: Layers that call themselves norms and could not be run alone: the gaps.
        refuted: Layers that call themselves norms, were run, and do not normalise.
        parameters: Elements of the norms' scales and biases; a tied tensor counts once.
        unknown_parameters: Elements of the gaps' parameters.
    """

    sites: tuple[NormSite, ...]
    unknown: tuple[Suspect, ...]
    refuted: tuple[Suspect, ...]
    parameters: int
    unknown_parameters: int

    @property
    def pct(self) -> float:
        """Share of the norm-like parameters of which it is known that they are a norm's, in %."""
        together = self.parameters + self.unknown_parameters
        return 100.0 * self.parameters / together if together else 100.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "sites": [site.to_dict() for site in self.sites],
            "unknown": [suspect.to_dict() for suspect in self.unknown],
            "refuted": [suspect.to_dict() for suspect in self.refuted],
            "parameters": self.parameters,
            "unknown_parameters": self.unknown_parameters,
            "pct": self.pct,
        }

    def __str__(self) -> str:
        """One line for each kind of norm, and a last line with the coverage."""
        lines = [f"{'kind':<28}{'layers':>7}{'channels':>15}  notes"]
        for kind, sites in _by_kind(self.sites).items():
            widths = sorted({site.channels for site in sites})
            span = f"{widths[0]:,}" if len(widths) == 1 else f"{widths[0]:,} to {widths[-1]:,}"
            line = f"{kind:<28}{len(sites):>7,}{span:>15}  {', '.join(_traits(sites))}"
            lines.append(line.rstrip())
        for kind, count in Counter(one.kind for one in self.refuted).items():
            lines.append(f"{kind:<28}{count:>7,}{'':>15}  does not normalise, not counted")
        for kind, count in Counter(one.kind for one in self.unknown).items():
            lines.append(f"{kind:<28}{count:>7,}{'':>15}  NOT RECOGNISED")
        lines.append(
            f"norm layers: {len(self.sites):,} || norm params: {self.parameters:,} "
            f"|| coverage%: {self.pct:.2f}"
        )
        return "\n".join(lines)


def norm_coverage(model: nn.Module, extra_norms: Iterable[str] = ()) -> Coverage:
    """List a model's norms with what was not recognised.

    Args:
        model: Any module, with weights or on the meta device. It is not changed.
        extra_norms: Class names to count as norms although they do not normalise.

    Raises:
        ConfigError: As `find_norms`.
    """
    sites, suspects = survey(model, extra_norms)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    unknown = tuple(suspect for suspect in suspects if not suspect.refuted)
    return Coverage(
        sites=tuple(sites),
        unknown=unknown,
        refuted=tuple(suspect for suspect in suspects if suspect.refuted),
        parameters=sum(sizes[name] for name in {n for site in sites for n in site.parameters}),
        unknown_parameters=sum(sizes[n] for n in {n for one in unknown for n in one.parameters}),
    )


def _by_kind(sites: Iterable[NormSite]) -> dict[str, list[NormSite]]:
    kinds: dict[str, list[NormSite]] = {}
    for site in sites:
        kinds.setdefault(site.kind, []).append(site)
    return kinds


def _traits(sites: list[NormSite]) -> list[str]:
    traits = {
        "scale acts as 1 + w": any(site.offset for site in sites),
        "scale and bias are buffers": any(site.frozen for site in sites),
        "no scale or bias": any(not site.affine for site in sites),
        "shared": any(site.shared_with for site in sites),
        "running statistics": any(site.running for site in sites),
    }
    return [trait for trait, holds in traits.items() if holds]
