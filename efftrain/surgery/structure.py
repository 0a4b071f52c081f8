"""The shape of a folded model: what stands where a norm stood, and which biases are new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from efftrain.errors import CheckpointError
from efftrain.surgery.linear import channels_of
from efftrain.surgery.norm import drop_affine, what_follows
from efftrain.surgery.report import FoldedNorm


def restructure(
    model: nn.Module,
    folded: Iterable[FoldedNorm | Mapping[str, Any]],
    added_bias: Iterable[str] = (),
) -> None:
    """Give a model the structure of a folded one, so that the folded state dict loads into it.

    Args:
        model: Built as the one that was folded; changed in place. Its weights are no longer of use.
        folded: `FoldReport.folded`, or what its `to_dict` made of it.
        added_bias: Paths of layers that had got a bias before the fold.

    Raises:
        CheckpointError: The model has no such norm or layer.
    """
    for path in added_bias:
        add_bias(find_module(model, path))
    for one in folded:
        norm = one.to_dict() if isinstance(one, FoldedNorm) else one
        module = find_module(model, norm["path"])
        if norm["left_as"] in ("identity", "activation"):
            replace_module(model, norm["path"], what_follows(module))
        elif norm["left_as"] == "no_affine":
            drop_affine(module)
        for path in norm["added_bias"]:
            add_bias(find_module(model, path))


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        CheckpointError: There is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(
            f"{type(model).__name__} has no module {path}; the folded model was another one"
        ) from error


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module where another one was."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).register_module(name, new)


def add_bias(layer: nn.Module) -> None:
    """Give a layer without a bias one of zeros."""
    weight = next(layer.parameters())
    size = channels_of(layer, output=True)
    bias = torch.zeros(size, dtype=weight.dtype, device=weight.device)
    layer.register_parameter("bias", nn.Parameter(bias, requires_grad=weight.requires_grad))
