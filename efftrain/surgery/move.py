"""Compute the weights that take over a scale and shift, and try them out before they are used.

Everything is computed in float64 on a copy of the one layer, compared with the layer and the norm one
after the other on random input, and rounded to the layer's own dtype at the end.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from efftrain.surgery.equality import in_eval
from efftrain.surgery.linear import (
    absorb_input,
    layout_of,
    scale_output,
    smallest_input,
)
from efftrain.surgery.neighbours import LeftAloneError
from efftrain.surgery.norm import copy_in_float64, fixed_affine, what_follows
from efftrain.surgery.structure import add_bias
from efftrain.surgery.trace import LayerCall

_TOLERANCE = 1e-9  # both sides are float64; a wrong rule is off by whole numbers


def fixed_affine_of(norm: LayerCall) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm with running statistics, checked on random input.

    Returns:
        Each [C], in float64 on the CPU.

    Raises:
        LeftAloneError: In eval mode the norm does something else than apply these, drop and activate.
    """
    trial = copy_in_float64(norm.layer)
    scale, shift = fixed_affine(trial)
    sizes = [min(size, 3) for size in norm.inputs[0].shape]
    if len(sizes) < 2 or norm.inputs[0].shape[1] != len(scale):
        raise LeftAloneError("it does not normalise dimension 1")
    sizes[1] = len(scale)
    sample = _noise(sizes)
    view = [-1 if place == 1 else 1 for place in range(len(sizes))]
    with in_eval(trial):
        expected = _returned(trial(sample.clone()))
        found = _returned(what_follows(trial)(sample * scale.view(view) + shift.view(view)))
    if not _agree(expected, found):
        raise LeftAloneError(f"{type(norm.layer).__name__} does more than normalise and activate")
    return scale, shift


def with_output_scaled(layer: LayerCall, scale: Tensor, shift: Tensor) -> nn.Module:
    """A copy of a layer that returns what the layer returned x scale + shift.

    Args:
        layer: Its run.
        scale: [output channels].
        shift: [output channels].

    Raises:
        LeftAloneError: The layer's own class does something else with its weight.
    """
    trial = copy_in_float64(layer.layer)
    sample = _noise(smallest_input(layer.layer, layer.inputs[0].shape))
    with in_eval(trial):
        plain = _run(trial, sample)
        scale_output(trial, scale, shift)
        expected = plain * _like(scale, plain, layer) + _like(shift, plain, layer)
        if not _agree(expected, _run(trial, sample)):
            raise LeftAloneError(f"scaling the weight of {layer.path} does not scale its output")
    return trial


def with_input_absorbed(layer: LayerCall, scale: Tensor, shift: Tensor) -> nn.Module:
    """A copy of a layer that takes z where the layer took z x scale + shift.

    Args:
        layer: Its run.
        scale: [input channels].
        shift: [input channels].

    Raises:
        LeftAloneError: The layer has no bias and cannot get one, pads its input with zeros, or its
            own class does something else with its weight.
    """
    trial = copy_in_float64(layer.layer)
    sample = _noise(smallest_input(layer.layer, layer.inputs[0].shape))
    with in_eval(trial):
        expected = _run(trial, sample * _like(scale, sample, layer) + _like(shift, sample, layer))
        if not absorb_input(trial, scale, shift):
            raise LeftAloneError(f"{layer.path} has no bias that could take the norm's")
        if not _agree(expected, _run(trial, sample)):
            padded = bool(shift.any()) and hasattr(layer.layer, "padding")
            raise LeftAloneError(
                f"{layer.path} pads its input with zeros, which the norm's bias would not reach"
                if padded
                else f"scaling the weight of {layer.path} does not scale its input"
            )
    return trial


def check_range(layer: LayerCall, new: nn.Module) -> None:
    """Whether new weights fit into the layer's dtype.

    Raises:
        LeftAloneError: One is too large, as may happen in float16.
    """
    dtype = next(layer.layer.parameters(recurse=False)).dtype
    for name, value in _weights(new):
        if not bool(value.to(dtype).isfinite().all()):
            raise LeftAloneError(f"{layer.path}.{name} would not fit into {dtype}")


def write_weights(layer: LayerCall, new: nn.Module) -> bool:
    """Round new weights to the layer's dtype and put them in place.

    Returns:
        Whether the layer got a bias that it had not.
    """
    had = {name for name, _ in _weights(layer.layer)}
    added = False
    with torch.no_grad():
        for name, value in _weights(new):
            if name not in had:
                add_bias(layer.layer)
                added = True
            cast("Tensor", getattr(layer.layer, name)).copy_(value)
    return added


def _weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    layout = layout_of(module)
    assert layout is not None, "only layers with a layout come here"
    named = ((name, getattr(module, name, None)) for name in (layout.weight, layout.bias))
    return [(name, one.detach()) for name, one in named if isinstance(one, Tensor)]


def _run(layer: nn.Module, sample: Tensor) -> Tensor:
    if isinstance(layer, nn.MultiheadAttention):
        return _returned(layer(sample, sample, sample, need_weights=False))
    return _returned(layer(sample))


def _returned(output: object) -> Tensor:
    first: Any = cast("tuple[object, ...]", output)[0] if isinstance(output, tuple) else output
    return first


def _like(vector: Tensor, sample: Tensor, layer: LayerCall) -> Tensor:
    """A vector of channels, shaped so that it multiplies an input or output of a layer."""
    layout = layout_of(layer.layer)
    assert layout is not None, "only layers with a layout come here"
    return vector.view(-1, *[1] * (-1 - layout.channel_dim))


def _noise(shape: list[int] | tuple[int, ...]) -> Tensor:
    return torch.randn(
        tuple(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def _agree(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    return float((expected - found).abs().max()) <= _TOLERANCE * (1 + float(expected.abs().max()))
