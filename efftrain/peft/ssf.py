"""SSF: a scale and a shift after frozen layers, which merge into them when the training is done.

Source: Lian et al. 2022, "Scaling & Shifting Your Features". Here both start at the identity, so
that the model starts as the pretrained one, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.peft.heads import find_heads
from efftrain.peft.patterns import match_all
from efftrain.peft.tree import walk

SCALE, SHIFT = "ssf_scale", "ssf_shift"

# Exact types only: a subclass may do more than its base, such as an activation after the norm, or
# be read by its owner instead of being called, such as the output projection of an attention.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
_CHANNELS_SECOND = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip


class ScaleShift:
    """The forward hook of one layer; copied and pickled with it."""

    def __call__(self, layer: nn.Module, _: object, output: Tensor) -> Tensor:
        """The layer's output, [..., C] or [N, C, ...], scaled and shifted per channel."""
        scale, shift = layer.get_parameter(SCALE), layer.get_parameter(SHIFT)
        if isinstance(layer, _CHANNELS_SECOND):
            shape = (-1, *(1 for _ in range(output.dim() - 2)))
            scale, shift = scale.view(shape), shift.view(shape)
        return torch.addcmul(shift.to(output.dtype), output, scale.to(output.dtype))


def add_ssf(model: nn.Module, include: Iterable[str] = ()) -> tuple[str, ...]:
    """Put a scale of 1 and a shift of 0 after linear layers, convolutions and norms.

    Each gets two parameters, `ssf_scale` and `ssf_shift`; other names, types and state-dict keys
    stay. Train them with `select(model, "ssf")` or `"ssf+head"`. A delta that holds them loads on a
    base on which this was called, too.

    Args:
        model: Changed in place. The head is left out, and weights that are tied.
        include: Only layers at these paths: globs or dotted prefixes; by default all.

    Returns:
        Paths of the layers.

    Raises:
        ConfigError: A pattern matches no layer, there is none, or the model has SSF already.
    """
    layers = _layers(model)
    if any(SCALE in dict(layer.named_parameters(recurse=False)) for layer in layers.values()):
        raise ConfigError(
            "peft.method=ssf: this model has scales and shifts already; merge_ssf first"
        )
    patterns = (include,) if isinstance(include, str) else tuple(include)
    chosen = match_all(layers, patterns, "peft.include") if patterns else frozenset(layers)
    if not chosen:
        raise ConfigError(
            f"peft.method=ssf: {type(model).__name__} has no linear layer, convolution or norm to "
            "put a scale and shift after"
        )
    for path, layer in layers.items():
        if path in chosen:
            weight = layer.get_parameter("weight")
            width = weight.shape[0]
            layer.register_parameter(SCALE, nn.Parameter(weight.new_ones(width)))
            layer.register_parameter(SHIFT, nn.Parameter(weight.new_zeros(width)))
            layer.register_forward_hook(ScaleShift())
    return tuple(path for path in layers if path in chosen)


def merge_ssf(model: nn.Module) -> tuple[str, ...]:
    """Fold every scale and shift into the layer before it; what is left is a plain model.

    Args:
        model: Changed in place; a layer without a bias gets one.

    Returns:
        Paths of the layers.

    Raises:
        ConfigError: The model has no SSF.
    """
    merged: list[str] = []
    for path, layer in walk(model):
        own = dict(layer.named_parameters(recurse=False))
        if SCALE not in own:
            continue
        _fold(layer, own)
        _remove(layer)
        merged.append(path)
    if not merged:
        raise ConfigError("merge_ssf: this model has no scale and shift; add_ssf puts them there")
    return tuple(merged)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with a weight of their own, outside the head."""
    try:
        heads = find_heads(model)
    except ConfigError:
        heads = ()
    owners: dict[int, int] = {}
    for _, module in walk(model, duplicates=True):
        for parameter in dict(module.named_parameters(recurse=False)).values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found: dict[str, nn.Module] = {}
    for path, module in walk(model):
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        in_head = any(f"{path}.".startswith(f"{head}.") for head in heads)
        several = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
        known = type(module) in (*_CHANNELS_LAST, *_CHANNELS_SECOND)
        if known and not in_head and not several and weight is not None and owners[id(weight)] == 1:
            found[path] = module
    return found


def _fold(layer: nn.Module, own: dict[str, nn.Parameter]) -> None:
    weight, bias = own["weight"], own.get("bias")
    scale, shift = own[SCALE].double(), own[SHIFT].double()
    with torch.no_grad():
        shape = (-1, *(1 for _ in range(weight.dim() - 1)))
        weight.copy_(weight.double() * scale.view(shape))
        if bias is None:
            value = shift.to(weight.dtype)
            layer.register_parameter("bias", nn.Parameter(value, weight.requires_grad))
        else:
            bias.copy_(bias.double() * scale + shift)


def _remove(layer: nn.Module) -> None:
    delattr(layer, SCALE)
    delattr(layer, SHIFT)
    # by what they are: the handles that registering returned do not survive a copy of the model
    hooks = cast("dict[int, object]", getattr(layer, "_forward_hooks"))  # noqa: B009
    for key, hook in list(hooks.items()):
        if isinstance(hook, ScaleShift):
            del hooks[key]
