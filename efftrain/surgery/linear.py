"""Layers that are linear in their input, and how a scale and shift of channels moves into them.

y = W x + b. A scale s and shift t behind the layer give W' = s W, b' = s b + t. A scale and shift
before it, x = s z + t, give W' = W s, b' = b + W t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import (
    _ConvNd,  # pyright: ignore[reportPrivateUsage]  # the base of every convolution
    _ConvTransposeNd,  # pyright: ignore[reportPrivateUsage]
)


@dataclass(frozen=True)
class Layout:
    """How a layer keeps its weight.

    Attributes:
        weight: Local name of the weight.
        bias: Local name of the bias.
        out_first: Whether axis 0 of the weight is the output channels, and axis 1 the input.
        groups: Of a grouped convolution.
        spatial: Spatial dimensions that it slides over.
    """

    weight: str = "weight"
    bias: str = "bias"
    out_first: bool = True
    groups: int = 1
    spatial: int = 0

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels in its inputs and outputs, from the end."""
        return -1 - self.spatial


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a linear layer, a convolution or an attention's input projection.

    Args:
        module: Any module.

    Returns:
        None where it is none of these, or where its weight is not a floating-point parameter of its
        own (quantized, or computed from others as in weight normalization).
    """
    found: Layout | None = None
    if isinstance(module, nn.Linear):
        found = Layout()
    elif isinstance(module, _ConvNd):
        found = Layout(
            out_first=not isinstance(module, _ConvTransposeNd),
            groups=module.groups,
            spatial=len(module.kernel_size),
        )
    elif isinstance(module, nn.MultiheadAttention):
        found = Layout(weight="in_proj_weight", bias="in_proj_bias")
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2's, in Hugging Face
        found = Layout(out_first=False)
    if found is None:
        return None
    parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    weight = parameters.get(found.weight)
    if weight is None or not weight.is_floating_point() or weight.ndim != 2 + found.spatial:
        return None
    return found


def scale_output(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Make a layer return what it returned x scale + shift.

    Args:
        module: Changed in place; in the dtype of scale and shift.
        scale: [output channels].
        shift: [output channels].
    """
    layout = _layout(module)
    weight = tensor_of(module, layout.weight)
    bias = _bias(module, layout)
    new = weight * _along(weight, layout, scale, output=True)
    shifted = shift if bias is None else bias * scale + shift
    _set(module, layout.weight, new)
    if bias is not None or bool(shift.any()):
        _set(module, layout.bias, shifted)


def absorb_input(module: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Make a layer take z where it took z x scale + shift.

    Args:
        module: Changed in place; in the dtype of scale and shift.
        scale: [input channels].
        shift: [input channels].

    Returns:
        False, with nothing changed, where a shift cannot become a bias: the layer is a transposed
        convolution, whose outputs see different numbers of inputs, or has no place for a bias.
    """
    layout = _layout(module)
    weight = tensor_of(module, layout.weight)
    bias = _bias(module, layout)
    if bool(shift.any()):
        if layout.spatial and not layout.out_first:
            return False
        if bias is None and not isinstance(module, nn.Linear | _ConvNd):
            return False
        moved = weight * _along(weight, layout, shift, output=False)
        added = moved.flatten(1).sum(dim=1) if layout.out_first else moved.sum(dim=0)
        _set(module, layout.bias, added if bias is None else bias + added)
    _set(module, layout.weight, weight * _along(weight, layout, scale, output=False))
    return True


def channels_of(module: nn.Module, *, output: bool) -> int:
    """How many channels a layer takes or returns."""
    layout = _layout(module)
    weight = tensor_of(module, layout.weight)
    axis = 0 if output == layout.out_first else 1
    return weight.shape[axis] * (layout.groups if axis else 1)


def smallest_input(module: nn.Module, shape: torch.Size) -> tuple[int, ...]:
    """A shape that a layer takes and that is quick to compute with.

    Args:
        module: A layer with a layout.
        shape: Of an input that it really got.
    """
    layout = _layout(module)
    sizes = [min(size, 3) for size in shape]
    sizes[layout.channel_dim] = shape[layout.channel_dim]
    conv: Any = module
    for place in range(layout.spatial):
        reach = conv.dilation[place] * (conv.kernel_size[place] - 1) + 1
        sizes[place - layout.spatial] = min(
            shape[place - layout.spatial], reach + conv.stride[place]
        )
    return tuple(sizes)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module, without its gradient history."""
    return cast("Tensor", getattr(module, name)).detach()


def _layout(module: nn.Module) -> Layout:
    found = layout_of(module)
    if found is None:
        raise TypeError(f"{type(module).__name__} is no linear layer")
    return found


def _bias(module: nn.Module, layout: Layout) -> Tensor | None:
    bias: object = getattr(module, layout.bias, None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _along(weight: Tensor, layout: Layout, vector: Tensor, *, output: bool) -> Tensor:
    """A vector of channels, shaped so that it multiplies the weight.

    Axis 0 of a weight runs over all channels of its side; axis 1 over those of one group.
    """
    tail = [1] * layout.spatial
    if output == layout.out_first:
        return vector.view(-1, 1, *tail)
    groups = layout.groups
    rows = weight.shape[0] // groups
    inside = vector.view(groups, 1, -1).expand(groups, rows, -1)
    return inside.reshape(weight.shape[0], -1, *tail)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    old: object = getattr(module, name, None)
    trains = old.requires_grad if isinstance(old, Tensor) else False
    module.register_parameter(name, nn.Parameter(value, requires_grad=trains))
