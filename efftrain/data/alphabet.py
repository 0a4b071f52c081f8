"""The few token ids that synthetic sequences are written in."""

from __future__ import annotations

import torch
from torch import Tensor

from efftrain.errors import DataError

RESERVED = 4
"""First ids of a vocabulary, which tend to stand for padding, unknown, begin and end."""


def alphabet(vocab_size: int, letters: int) -> Tensor:
    """Ids spread evenly over a vocabulary.

    Args:
        vocab_size: Ids that the model takes, from 0.
        letters: How many are wanted.

    Returns:
        [letters], ascending and different.

    Raises:
        DataError: The vocabulary is too small.
    """
    if vocab_size < letters + RESERVED:
        raise DataError(
            f"data: {letters} letters and {RESERVED} reserved ids do not fit the model's vocabulary of"
            f" {vocab_size}; lower data.letters"
        )
    return torch.linspace(RESERVED, vocab_size - 1, letters, dtype=torch.float64).long()
