"""What is in a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """Number of samples: the first dimension of the first tensor found, depth first.

    Returns:
        None where the batch holds no tensor with a dimension.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    for part in _parts(batch):
        found = samples_in(part)
        if found is not None:
            return found
    return None


def tokens_in(batch: Any) -> int | Tensor | None:
    """Number of tokens, as tokenizers name them: `attention_mask`, or else `input_ids`.

    Where there is an `attention_mask` of [N, L], its ones are counted, so that padding is not;
    without one, every element of `input_ids`, padding and all.

    Returns:
        On a device other than the CPU a tensor that it has still to compute, so that nobody waits;
        None where the batch holds no tokens.
    """
    if isinstance(batch, Tensor):
        return None
    if isinstance(batch, Mapping):
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if isinstance(ids, Tensor):
            if not isinstance(mask, Tensor) or mask.shape != ids.shape:
                return ids.numel()
            tokens = mask.count_nonzero()
            return int(tokens) if tokens.is_cpu else tokens
    for part in _parts(batch):
        found = tokens_in(part)
        if found is not None:
            return found
    return None


def _parts(batch: Any) -> Iterable[Any]:
    if isinstance(batch, (list, tuple)):
        return batch
    return batch.values() if isinstance(batch, Mapping) else ()
