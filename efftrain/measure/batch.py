"""What is in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """Number of samples: the first dimension of the first tensor found, depth first.

    Returns:
        None where the batch holds no tensor with a dimension.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    return next((found for found in map(samples_in, _parts(batch)) if found is not None), None)


def tokens_in(batch: Any) -> int | Tensor | None:
    """Number of tokens, as tokenizers name them: `attention_mask`, or else `input_ids`.

    Where there is an `attention_mask` of [N, L], its ones are counted, so that padding is not;
    without one, every element of `input_ids`, padding and all.

    Returns:
        On a device other than the CPU a tensor that it has still to compute, so that nobody waits;
        None where the batch holds no tokens.
    """
    if isinstance(batch, Mapping):
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if isinstance(ids, Tensor):
            if not isinstance(mask, Tensor) or mask.shape != ids.shape:
                return ids.numel()
            tokens = mask.count_nonzero()
            return int(tokens) if tokens.is_cpu else tokens
    if isinstance(batch, Tensor):
        return None
    return next((found for found in map(tokens_in, _parts(batch)) if found is not None), None)


def _parts(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        return iter(batch.values())
    return iter(batch) if isinstance(batch, (list, tuple)) else iter(())
