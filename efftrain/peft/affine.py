"""Give a scale and a bias to norms that have none to train: thaw frozen ones, add missing ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.peft.norm_rule import TORCH_NORMS, frozen_affine
from efftrain.peft.norms import NormSite, find_norms
from efftrain.peft.patterns import match_all
from efftrain.peft.tree import join, walk


@dataclass(frozen=True)
class AddedAffine:
    """What `add_affine` did.

    Attributes:
        added: Paths of the norms that have a scale (and a bias) now.
        skipped: Paths of norms without one that do not say how wide they are.
    """

    added: tuple[str, ...]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def thaw_norms(model: nn.Module) -> tuple[str, ...]:
    """Turn the scale and bias of frozen batch norms from buffers into parameters.

    State-dict keys, values and outputs stay. The statistics stay frozen: such a layer has nothing
    that moves them.

    Args:
        model: Changed in place. Detection models of torchvision, Hugging Face and timm carry such
            layers, and `timm.freeze` makes them.

    Returns:
        Names of the new parameters; empty where no norm is frozen.
    """
    thawed: list[str] = []
    for path, module in walk(model):
        for name in frozen_affine(module):
            value = module.get_buffer(name)
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(value))
            thawed.append(join(path, name))
    return tuple(thawed)


def add_affine(model: nn.Module, include: Iterable[str] = ()) -> AddedAffine:
    """Give norms without parameters a scale of 1 and a bias of 0, so that nothing changes yet.

    State-dict keys are added, none is changed; a delta that holds them loads on a base on which
    this was called, too.

    Args:
        model: Changed in place.
        include: Only norms at these paths: globs or dotted prefixes; by default all.

    Returns:
        Which norms have a scale and bias now, and which could not be given one.

    Raises:
        ConfigError: The model has no norm without a scale, or a pattern matches none of them.
    """
    sites = {site.path: site for site in find_norms(model) if not site.affine}
    if not sites:
        raise ConfigError(
            f"peft.add_affine: every norm of {type(model).__name__} has a scale or a bias already; "
            "leave it out"
        )
    patterns = (include,) if isinstance(include, str) else tuple(include)
    chosen = match_all(sites, patterns, "peft.add_affine") if patterns else frozenset(sites)
    added = [path for path, site in sites.items() if path in chosen and _add(model, site)]
    skipped = [path for path in sites if path in chosen and path not in added]
    return AddedAffine(tuple(added), tuple(skipped))


class Affine:
    """A forward hook that applies the scale and bias of a class that knows of none.

    Such classes (OLMo's LayerNorm, Llama's L2 norm) normalise the last dimension.
    """

    def __call__(self, module: nn.Module, _: object, output: Tensor) -> Tensor:
        """[..., C] in and out."""
        scale, bias = module.get_parameter("weight"), module.get_parameter("bias")
        return output * scale.to(output.dtype) + bias.to(output.dtype)


def _add(model: nn.Module, site: NormSite) -> bool:
    module = model.get_submodule(site.path)
    own_type = isinstance(module, TORCH_NORMS)
    if not site.channels or (not own_type and hasattr(module, "weight")):
        return False  # a class of its own that holds something else under this name
    shape: tuple[int, ...] = (site.channels,)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        shape = tuple(module.normalized_shape)
    near = next(iter(model.parameters()), torch.zeros(()))
    module.register_parameter("weight", nn.Parameter(near.new_ones(shape)))
    if not isinstance(module, nn.RMSNorm):
        module.register_parameter("bias", nn.Parameter(near.new_zeros(shape)))
    if not own_type:
        module.register_forward_hook(Affine())
    for flag in ("affine", "elementwise_affine"):
        if hasattr(module, flag):
            object.__setattr__(module, flag, True)
    return True
