"""A new head on a pretrained model, for another number of classes."""

from __future__ import annotations

import logging

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import find_head

_log = logging.getLogger(__name__)


def replace_head(model: nn.Module, num_classes: int) -> str | None:
    """Put a new layer in the head's place, where its width differs.

    Args:
        model: Changed in place; its head is found by structure.
        num_classes: Width of the new layer.

    Returns:
        The head's path, or None where it has this width already.

    Raises:
        ConfigError: The head is not a single linear layer or convolution.
    """
    path = find_head(model)
    old = model.get_submodule(path)
    if isinstance(old, nn.Linear):
        if old.out_features == num_classes:
            return None
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        if old.out_channels == num_classes:
            return None
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
    else:
        raise ConfigError(
            f"model.num_classes: the head {path} is a {type(old).__name__}, which cannot be widened;"
            " leave the number of classes that the weights have with model.num_classes=null"
        )
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, name, new.to(old.weight))
    if hasattr(model, "num_classes"):
        setattr(model, "num_classes", num_classes)  # noqa: B010  # no declared attribute of a Module
    return path


def say_new_head(path: str, num_classes: int | None) -> None:
    """One log line: the head is random, and which method trains it."""
    width = "" if num_classes is None else f" for {num_classes} classes"
    _log.info(
        f"new head {path}{width}, with random weights: peft=norm_head trains it, peft=norm does not"
    )
