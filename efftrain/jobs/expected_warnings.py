"""Warnings that say nothing new about a run, each with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_EXPECTED = (
    # bn_stats=running puts BatchNorms into eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # The data of the small jobs lie in memory; more processes would slow them down.
    r"The '\w+_dataloader' does not have many workers",
    # Lightning 2.6 asks torch 2.13 in an older way; nothing that a user could change.
    r".*isinstance\(treespec, LeafSpec\)",
    # A short run logs less often than it steps, and the user has chosen both.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # The held-out split is evaluated on all devices; the last samples may count twice there.
    r"Using `DistributedSampler` with the dataloaders",
    # The best and last state are one file here.
    r"Checkpoint directory .* exists and is not empty",
)


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Leave out the warnings of the list, and no other."""
    with warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        yield
