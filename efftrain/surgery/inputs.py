"""What a model is called with, and the tensors in whatever it takes or returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

Inputs: TypeAlias = "Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]"
"""One call of a model: its only argument, its positional arguments, or its keyword arguments."""

_DEEPEST = 6  # a cache inside an output inside a tuple; deeper, and it is some other structure


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with its inputs, whichever of the three forms they have.

    Args:
        model: Any module.
        inputs: A tensor, positional arguments or keyword arguments.

    Returns:
        What the model returns.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def tensors_in(value: object, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in a value: in mappings, sequences, and the attributes of other objects.

    Args:
        value: An argument, an output or a part of one.
        depth: How far inside the whole the value is.
    """
    if isinstance(value, Tensor):
        yield value
    elif depth > _DEEPEST:
        return
    elif isinstance(value, Mapping):
        for part in cast("Mapping[Any, object]", value).values():
            yield from tensors_in(part, depth + 1)
    elif isinstance(value, list | tuple | set):
        for part in cast("list[object]", value):
            yield from tensors_in(part, depth + 1)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from tensors_in(vars(value), depth + 1)


def random_like(inputs: Inputs, seed: int = 0) -> Inputs:
    """Inputs of the same form and shapes, with random content that a model can still take.

    Floats become standard normal. Integers stay within the range that is there: they are tokens or
    positions, and others may not exist. Masks (booleans, and integers of 0 and 1 alone) stay.

    Args:
        inputs: Real inputs.
        seed: Of the random content.

    Returns:
        New tensors on the same devices; everything else as it is.
    """
    generator = torch.Generator().manual_seed(seed)

    def renew(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _random_tensor(value, generator)
        if isinstance(value, Mapping):
            return {key: renew(part) for key, part in cast("Mapping[Any, Any]", value).items()}
        if type(value) in (list, tuple):
            return type(value)(renew(part) for part in cast("list[Any]", value))
        return value

    return renew(inputs)


def _random_tensor(given: Tensor, generator: torch.Generator) -> Tensor:
    if given.is_floating_point():
        drawn = torch.randn(given.shape, generator=generator, dtype=torch.float64)
        return drawn.to(given.device, given.dtype)
    if given.dtype == torch.bool or given.is_complex() or given.numel() == 0:
        return given
    low, high = int(given.min()), int(given.max())
    if low >= 0 and high <= 1:
        return given
    drawn = torch.randint(low, high + 1, given.shape, generator=generator)
    return drawn.to(given.device, given.dtype)
