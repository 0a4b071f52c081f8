"""Whether data, model and loss fit together; what is looked at costs the first batch only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efftrain.errors import DataError, EfftrainError
from efftrain.models.interface import interface_of

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What models raise on inputs of another shape, size or kind."""

_NOT_THE_DATA = (torch.OutOfMemoryError, NotImplementedError, EfftrainError)
"""What has another cause: no memory, an operator that the device lacks, an error that is explained."""


def explain_refusal(model: nn.Module, inputs: Any, error: Exception) -> Exception:
    """What is to be raised where a model has failed on its first batch.

    Args:
        model: That was called.
        inputs: With which.
        error: What it raised.

    Returns:
        A `DataError` that names what the model takes and what it was given; the same error where
        the inputs cannot be the reason.
    """
    if isinstance(error, _NOT_THE_DATA):
        return error
    takes = str(interface_of(model))
    wanted = f"; it takes {takes}" if takes else ""
    is_image = isinstance(inputs, Tensor) and inputs.ndim == 4
    keys = " (data.channels, data.image_size)" if is_image else ""
    return DataError(
        f"data: {type(model).__name__} refuses a batch of {describe(inputs)}{wanted}{keys}: "
        f"{_reason(error)}"
    )


def explain_loss(loss: nn.Module, scores: Tensor, labels: Tensor, error: Exception) -> Exception:
    """What is to be raised where a loss has failed.

    Args:
        loss: That was called.
        scores: With which scores.
        labels: And labels.
        error: What it raised.

    Returns:
        A `DataError` that names both shapes; the same error where they cannot be the reason.
    """
    if isinstance(error, _NOT_THE_DATA):
        return error
    return DataError(
        f"data: {type(loss).__name__} refuses scores of shape {describe(scores)} with labels of shape "
        f"{describe(labels)}: {_reason(error)}"
    )


def check_labels(scores: Tensor, labels: Tensor, ignored: int) -> None:
    """Refuse class numbers that the model has no score for.

    Args:
        scores: [N, C, ...].
        labels: [N, ...] of class numbers; labels of another dtype or shape are taken as they are.
        ignored: A label that the loss leaves out.

    Raises:
        DataError: A label is below 0 or not below C.
    """
    if scores.ndim != labels.ndim + 1 or labels.is_floating_point():
        return
    counted = labels[labels != ignored]
    if counted.numel() == 0:
        return
    low, high, classes = int(counted.min()), int(counted.max()), scores.shape[1]
    if low < 0:
        raise DataError(f"data: a label is {low}; class numbers begin at 0")
    if high >= classes:
        raise DataError(
            f"data: a label is {high}, the model gives {classes} scores, for 0 to {classes - 1}; "
            f"set model.num_classes={high + 1} or more"
        )


def describe(inputs: Any) -> str:
    """Inputs in words: "[32, 1, 64, 64]" or "input_ids [32, 128], attention_mask [32, 128]"."""
    if isinstance(inputs, Tensor):
        return str(list(inputs.shape))
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {describe(value)}" for name, value in inputs.items())
    return type(inputs).__name__


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__
