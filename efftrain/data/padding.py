"""Token sequences of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100
"""A label that no loss counts; torch's and transformers' own number."""


def pad(sequences: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Fill up to the longest sequence, on the right.

    Args:
        sequences: Token ids.
        pad_id: What is filled in; the mask is 0 there.

    Returns:
        `input_ids` and `attention_mask`, [N, T].
    """
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def collate_labelled(
    samples: Sequence[tuple[Sequence[int], int]], pad_id: int = 0
) -> dict[str, Tensor]:
    """A batch of sequences that have one label each.

    Returns:
        `input_ids` and `attention_mask` [N, T], `labels` [N].
    """
    sequences, labels = zip(*samples, strict=True)
    return {**pad(sequences, pad_id), "labels": torch.tensor(labels)}


def collate_stream(samples: Sequence[Sequence[int]], pad_id: int = 0) -> dict[str, Tensor]:
    """A batch of sequences that are to be continued: each token is the label of the one before.

    Returns:
        `input_ids`, `attention_mask` and `labels`, [N, T]; the model or task shifts them.
    """
    batch = pad(samples, pad_id)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    return {**batch, "labels": labels}
