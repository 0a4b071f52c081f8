"""What each method trains, as one table from its name to a function.

A method is a function from a model's anatomy to the names of the parameters that train. Methods are
joined with `+`, so `norm+head` trains what either of the two would.
"""

from __future__ import annotations

from collections.abc import Callable

from efftrain.errors import ConfigError
from efftrain.peft.anatomy import Anatomy
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.ssf import SCALE, SHIFT

Method = Callable[[Anatomy], frozenset[str]]


ADAPTERS = frozenset(
    ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"]
)
"""Parts of a parameter's name, as Hugging Face peft spells them."""


def norm(anatomy: Anatomy) -> frozenset[str]:
    """Scale and bias of every normalization layer (Frankle et al. 2021; Zhao et al. 2024)."""
    return anatomy.norm_names


def norm_scale(anatomy: Anatomy) -> frozenset[str]:
    """The scale of every normalization layer."""
    return frozenset(site.scale for site in anatomy.norms if site.scale is not None)


def norm_bias(anatomy: Anatomy) -> frozenset[str]:
    """The bias of every normalization layer."""
    return frozenset(site.bias for site in anatomy.norms if site.bias is not None)


def bias(anatomy: Anatomy) -> frozenset[str]:
    """Everything that is added: biases of linears, convolutions, norms and the head (BitFit)."""
    return anatomy.bias_names


def head(anatomy: Anatomy) -> frozenset[str]:
    """The head alone: a linear probe."""
    return anatomy.inside(anatomy.heads)


def norm_head(anatomy: Anatomy) -> frozenset[str]:
    """Norms and head."""
    return norm(anatomy) | head(anatomy)


def ssf(anatomy: Anatomy) -> frozenset[str]:
    """The scales and shifts that `add_ssf` has put after frozen layers."""
    return frozenset(
        name for name in anatomy.parameters if name.rpartition(".")[2] in (SCALE, SHIFT)
    )


def lora(anatomy: Anatomy) -> frozenset[str]:
    """The low-rank adapters that Hugging Face peft's layers hold."""
    return frozenset(name for name in anatomy.parameters if is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of a low-rank adapter."""
    return not ADAPTERS.isdisjoint(name.split("."))


def full(anatomy: Anatomy) -> frozenset[str]:
    """Every parameter."""
    return frozenset(anatomy.parameters)


METHODS: dict[str, Method] = {
    "norm": norm,
    "norm_head": norm_head,
    "norm_scale": norm_scale,
    "norm_bias": norm_bias,
    "bias": bias,
    "head": head,
    "last_k": full,  # all of the last k blocks: the blocks are cut out by `select`
    "ssf": ssf,
    "lora": lora,
    "full": full,
}

OUTSIDE_BLOCKS = ("head", "norm_head")
"""Methods whose head a choice of blocks does not cut off: a head lies in no block."""


def split_method(method: str) -> tuple[str, ...]:
    """The parts of a method's name.

    Args:
        method: One of `METHODS`, or several joined with `+`.

    Raises:
        ConfigError: A part is not a method.
    """
    parts = tuple(part.strip() for part in method.split("+"))
    problems = [
        f"peft.method={part} is not a method{did_you_mean(part, METHODS)}; allowed are "
        f"{', '.join(METHODS)}, and combinations such as norm+head"
        for part in parts
        if part not in METHODS
    ]
    if problems:
        raise ConfigError(*problems)
    return parts
