"""Loading a full state dict from a safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from efftrain.errors import CheckpointError


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights that cover the model exactly, or leave it as it is.

    Args:
        model: Its state dict names the tensors.
        path: A .safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged, or its names or shapes differ.
    """
    key = "model.pretrained"
    if not path.is_file():
        raise CheckpointError(f"{key}: no file {path}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{key}: {path} is damaged or not safetensors: {error}") from error
    own = model.state_dict()
    names = sorted(own.keys() ^ weights.keys())
    if names:
        side = "lacks" if names[0] in own else "has an unknown"
        raise CheckpointError(f"{key}: {path} {side} '{names[0]}' ({len(names)} names differ)")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)}, the model {list(tensor.shape)}"
            raise CheckpointError(
                f"{key}: {path} has '{name}' as {shapes}; check model.num_classes"
            )
    model.load_state_dict(weights)
