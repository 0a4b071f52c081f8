"""scikit-learn's handwritten digits as 32 x 32 images, clean or shifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset, default_collate

from efftrain.data.jitter import jitter
from efftrain.data.shift import camera_shift

IMAGE_SIZE = 32
HELD_OUT = 0.25
SPLIT_SEED = 0
MAX_INK = 16.0
"""The scans count the dark pixels of 4 x 4 blocks."""

MEAN, STD = 0.30, 0.32
"""Of the clean training pixels in 0..1, rounded. Shifted images are standardised by the same."""

Shift = Literal["none", "camera"]


class DigitsData(pl.LightningDataModule):
    """1,797 digits; a fixed, stratified quarter is held out, the same for every shift and seed.

    Batches are `(images [N, 1, 32, 32], labels [N])`.

    Args:
        shift: "none" for the scans as they are, "camera" for `camera_shift`.
        augment: Jitter the training images anew each time.
        drop_last: Leave out the last training batch of an epoch where it is not full.
        batch_size: Samples a batch.
        num_workers: Processes that load; 0 is fastest for tensors in memory.

    Source: E. Alpaydin and C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI
    """

    def __init__(
        self,
        shift: Shift = "none",
        augment: bool = False,
        drop_last: bool = False,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Nothing is read yet."""
        super().__init__()
        self.shift = shift
        self.augment = augment
        self.drop_last = drop_last
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._train: TensorDataset | None = None
        self._held_out: TensorDataset | None = None

    def setup(self, stage: str = "fit") -> None:
        """Read, split and shift; a second call does nothing."""
        if self._train is not None:
            return
        (train, train_labels), (held_out, held_out_labels) = load_digits_split()
        if self.shift == "camera":
            train, held_out = camera_shift(train, seed=1000), camera_shift(held_out, seed=1001)
        self._train = TensorDataset(train, train_labels)
        self._held_out = TensorDataset(held_out, held_out_labels)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled by the run's seed."""
        assert self._train is not None, "Lightning calls setup before it asks for a loader"
        collate = _collate_jittered if self.augment else _collate
        return DataLoader(
            self._train,
            self.batch_size,
            shuffle=True,
            drop_last=self.drop_last,
            num_workers=self.num_workers,
            collate_fn=collate,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The held-out quarter, in order."""
        assert self._held_out is not None, "Lightning calls setup before it asks for a loader"
        return DataLoader(
            self._held_out, self.batch_size, num_workers=self.num_workers, collate_fn=_collate
        )


def load_digits_split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out images [N, 1, 32, 32] in 0..1, ink bright, with labels [N]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, digits = load_digits(return_X_y=True)
    train, held_out, train_digits, held_out_digits = train_test_split(
        scans, digits, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=digits
    )
    return (
        (enlarge(torch.tensor(train)), torch.tensor(train_digits)),
        (enlarge(torch.tensor(held_out)), torch.tensor(held_out_digits)),
    )


def enlarge(scans: Tensor) -> Tensor:
    """Scans [N, 64] in 0..16 as images [N, 1, 32, 32] in 0..1."""
    images = scans.float().view(-1, 1, 8, 8) / MAX_INK
    return interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)


def standardise(images: Tensor) -> Tensor:
    """Clean training pixels come out with mean 0 and variance 1, nearly; shifted ones do not."""
    return (images - MEAN) / STD


def _collate(samples: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(list(samples))
    return standardise(images), labels


def _collate_jittered(samples: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(list(samples))
    return standardise(jitter(images)), labels
