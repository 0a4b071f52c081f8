"""A model's modules, parameters and buffers, typed: torch leaves these partly unknown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn


def walk(model: nn.Module, *, duplicates: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path.

    Args:
        model: The root, under the path "".
        duplicates: Give a shared module once for each of its paths, not only for the first.
    """
    found: object = model.named_modules(remove_duplicate=not duplicates)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    yield from cast("Iterator[tuple[str, nn.Module]]", found)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a module itself registers, by local name."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def own_buffers(module: nn.Module, *, persistent: bool = False) -> dict[str, Tensor]:
    """The buffers that a module itself registers, by local name.

    Args:
        module: Any module.
        persistent: Only those that its state dict holds.
    """
    hidden = module._non_persistent_buffers_set if persistent else ()  # pyright: ignore[reportPrivateUsage]  # torch has no other way to ask
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        if name not in hidden
    }


def has_parameters(module: nn.Module) -> bool:
    """Whether there is any parameter in a module."""
    return next(module.parameters(), None) is not None


def elements(module: nn.Module) -> int:
    """Elements of all parameters in a module, each tensor once."""
    return sum(parameter.numel() for parameter in module.parameters())


def join(path: str, name: str) -> str:
    """The full name of what a module at a path calls by a local name."""
    return f"{path}.{name}" if path else name
