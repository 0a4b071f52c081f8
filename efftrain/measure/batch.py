"""What is in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """Number of samples: the first dimension of the first tensor found, depth first.

    Returns:
        None where the batch holds no tensor with a dimension.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    parts: Sequence[Any] = ()
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        parts = batch
    return next((found for found in map(samples_in, parts) if found is not None), None)
