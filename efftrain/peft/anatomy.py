"""What the parameters of a model are: norm, head, bias or other, and which block each is in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.heads import find_heads
from efftrain.peft.norms import NormSite, Suspect, survey
from efftrain.peft.patterns import matches

GROUPS = ("norm", "bias", "head", "other")
"""The roles, each parameter in exactly one: a norm before a head, a head before a bias."""

# Extra tokens of nn.MultiheadAttention, which are appended to the sequence and not added to it.
_NOT_BIASES = ("bias_k", "bias_v")


@dataclass(frozen=True)
class Anatomy:
    """A model's parameters by role, found once and shared by every method.

    Attributes:
        model: The model looked at.
        parameters: Each distinct parameter under its first name: a tied tensor counts once.
        aliases: Every name of every parameter, to its first name.
        norms: The normalization layers.
        suspects: Layers that only call themselves norms.
        head_path: The head that the user named, or None.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    aliases: dict[str, str]
    norms: tuple[NormSite, ...]
    suspects: tuple[Suspect, ...]
    head_path: str | None = None

    @classmethod
    def of(
        cls, model: nn.Module, head: str | None = None, extra_norms: Iterable[str] = ()
    ) -> Anatomy:
        """Look a model over.

        Args:
            model: Any module; it is not changed.
            head: Path of the head, where it should not be searched for.
            extra_norms: Class names to count as norms.

        Raises:
            ConfigError: The head or a class in `extra_norms` is not in the model.
        """
        norms, suspects = survey(model, extra_norms)
        parameters = dict(model.named_parameters())
        first = {id(parameter): name for name, parameter in parameters.items()}
        every = model.named_parameters(remove_duplicate=False)
        anatomy = cls(
            model=model,
            parameters=parameters,
            aliases={name: first[id(parameter)] for name, parameter in every},
            norms=tuple(norms),
            suspects=tuple(suspects),
            head_path=head,
        )
        if head is not None:
            find_heads(model, head)  # a wrong path is an error even where no method needs it
        return anatomy

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Paths of the heads. Raises ConfigError where there is none."""
        return find_heads(self.model, self.head_path)

    @cached_property
    def head_names(self) -> frozenset[str]:
        """Names of the parameters in the heads; empty where the model has none."""
        try:
            heads = self.heads
        except ConfigError:
            return frozenset()
        return self.inside(heads)

    @cached_property
    def norm_names(self) -> frozenset[str]:
        """Names of every norm's scale and bias."""
        return frozenset(name for site in self.norms for name in site.parameters)

    @cached_property
    def bias_names(self) -> frozenset[str]:
        """Names of all parameters that are added: by their name, or by what they do in a norm."""
        named = {
            name
            for name, parameter in self.parameters.items()
            if _is_named_bias(name.rpartition(".")[2])
            and sum(size > 1 for size in parameter.shape) <= 1
        }
        scales = {site.scale for site in self.norms}
        added = {site.bias for site in self.norms if site.bias is not None}
        return frozenset((named - scales) | added)

    def inside(self, paths: Iterable[str]) -> frozenset[str]:
        """First names of the parameters that lie in any of the modules."""
        paths = tuple(paths)
        return frozenset(
            first
            for name, first in self.aliases.items()
            if any(name.startswith(f"{path}.") for path in paths)
        )

    def matching(self, pattern: str) -> frozenset[str]:
        """First names of the parameters that a pattern means under any of their names."""
        return frozenset(first for name, first in self.aliases.items() if matches(name, pattern))

    def role(self, name: str) -> str:
        """The one of `GROUPS` that a parameter belongs to."""
        if name in self.norm_names:
            return "norm"
        if name in self.head_names:
            return "head"
        return "bias" if name in self.bias_names else "other"


def _is_named_bias(leaf: str) -> bool:
    if leaf in _NOT_BIASES:
        return False
    return leaf == "bias" or leaf.endswith("_bias") or leaf.startswith("bias_")
