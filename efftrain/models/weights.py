"""Reading a full state dict from a file, and loading it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from efftrain.errors import CheckpointError
from efftrain.models.hub import KEY, TORCH_SUFFIXES

_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)

_WRAPPERS = ("model", "state_dict")
"""Under which training scripts keep the weights beside an optimizer's state."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights that cover the model exactly, or leave it as it is.

    Args:
        model: Its state dict names the tensors.
        path: A .safetensors file, or a state dict that `torch.save` wrote.

    Raises:
        CheckpointError: The file is missing or damaged, or its names or shapes differ.
    """
    fit_weights(model, read_weights(path), path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, on the CPU.

    Args:
        path: A .safetensors file, or a state dict that `torch.save` wrote; nothing in it is run.

    Raises:
        CheckpointError: The file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{KEY}: no file {path}")
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{KEY}: {path} is damaged or not safetensors: {error}") from error


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors that cover the model exactly, or leave it as it is.

    Args:
        model: Its state dict names the tensors.
        weights: By state-dict name.
        path: Where they come from, for the message.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    own = model.state_dict()
    names = sorted(own.keys() ^ weights.keys())
    if names:
        side = "lacks" if names[0] in own else "has an unknown"
        raise CheckpointError(f"{KEY}: {path} {side} '{names[0]}' ({len(names)} names differ)")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)}, the model {list(tensor.shape)}"
            raise CheckpointError(
                f"{KEY}: {path} has '{name}' as {shapes}; check model.num_classes"
            )
    model.load_state_dict(weights)


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{KEY}: {path} is damaged, or holds more than tensors, which is not loaded: {reason}"
        ) from error
    if isinstance(content, Mapping):
        inside = next((content[name] for name in _WRAPPERS if name in content), content)
        if isinstance(inside, Mapping) and inside:
            tensors = {str(name): value for name, value in inside.items()}
            if all(isinstance(value, Tensor) for value in tensors.values()):
                return tensors
    raise CheckpointError(f"{KEY}: {path} holds no state dict (names and their tensors)")
