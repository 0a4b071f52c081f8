"""A training and a held-out set, and the loaders over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from efftrain.errors import DataError

SPLIT_SEED = 0
"""The same samples are held out in every run, whatever its seed."""

Collate = Callable[[list[Any]], Any]
Sets = tuple["Dataset[Any]", "Dataset[Any]"]


class SplitData(pl.LightningDataModule):
    """Loaders over two sets that a subclass reads.

    A subclass implements `read` and `collate_with`.

    Args:
        batch_size: Samples a batch.
        num_workers: Processes that load.
        drop_last: Leave out the last training batch of an epoch where it is not full.
    """

    def __init__(self, batch_size: int, num_workers: int, drop_last: bool = False) -> None:
        """Nothing is read yet."""
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._sets: Sets | None = None

    def read(self) -> Sets:
        """The training and the held-out set."""
        raise NotImplementedError  # each data set has its own

    def collate_with(self, training: bool) -> Collate:
        """What makes a batch of samples; workers get a copy of it, so it holds no trainer.

        Args:
            training: For the training set; else for the held-out one.
        """
        raise NotImplementedError  # each data set has its own

    def setup(self, stage: str = "fit") -> None:
        """Read; a second call does nothing."""
        if self._sets is None:
            self._sets = self.read()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by the run's seed."""
        return self._loader(training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out set, in order."""
        return self._loader(training=False)

    def _loader(self, training: bool) -> DataLoader[Any]:
        assert self._sets is not None, "Lightning calls setup before it asks for a loader"
        return Loader(
            self._sets[0 if training else 1],
            self.batch_size,
            shuffle=training,
            drop_last=training and self.drop_last,
            num_workers=self.num_workers,
            collate_fn=self.collate_with(training),
        )


class Loader(DataLoader[Any]):
    """Raises what a worker process found in a file: its own exception would be a page long."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch declares its own iterator
        """Batches; a data set may put a `DataError` in the place of one."""
        return map(_raise_error, super().__iter__())  # which draws its seed now, as always


def _raise_error(batch: Any) -> Any:
    if isinstance(batch, DataError):
        raise batch
    return batch


def split_indices(count: int, held_out: float) -> tuple[list[int], list[int]]:
    """A fixed random split of so many samples.

    Args:
        count: At least 2.
        held_out: Share that is held out; at least one sample is, and one is not.

    Returns:
        Indices to train on and to hold out, each in ascending order.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    cut = min(max(round(count * held_out), 1), count - 1)
    return sorted(order[cut:]), sorted(order[:cut])


class Samples(Dataset[Any]):
    """Samples that lie in memory.

    Args:
        samples: Whatever the collate function takes.
    """

    def __init__(self, samples: Sequence[Any]) -> None:
        """Nothing is copied."""
        self.samples = samples

    def __len__(self) -> int:
        """How many there are."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """One of them."""
        return self.samples[index]
