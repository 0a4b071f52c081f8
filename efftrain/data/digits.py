"""scikit-learn's handwritten digits as 32 x 32 images, clean or shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset, default_collate

from efftrain.data.adapt import check_classes, require_image_input
from efftrain.data.jitter import jitter
from efftrain.data.shift import camera_shift
from efftrain.data.split import SPLIT_SEED, Collate, Sets, SplitData
from efftrain.models.interface import ModelInterface

IMAGE_SIZE = 32
ENLARGED_SIZE = 64
"""For a model that was made for larger images but takes any: at 32 little would be left of a digit
behind its strides, and its own size would cost twelve times as much."""

CLASSES = 10
HELD_OUT = 0.25
MAX_INK = 16.0
"""The scans count the dark pixels of 4 x 4 blocks."""

MEAN, STD = 0.30, 0.32
"""Of the clean training pixels in 0..1, rounded. Shifted images are standardised by the same."""

Shift = Literal["none", "camera"]


@dataclass(frozen=True)
class Framing:
    """What is made of every image for a model.

    Attributes:
        channels: The one channel is repeated.
        size: Height and width.
        dtype: That of the model's parameters.
    """

    channels: int = 1
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
    dtype: torch.dtype = torch.float32


class DigitsData(SplitData):
    """1,797 digits; a fixed, stratified quarter is held out, the same for every shift and seed.

    Batches are `(images [N, 1, 32, 32], labels [N])`; for a model that takes other images, they are
    enlarged and the one channel is repeated.

    Args:
        shift: "none" for the scans as they are, "camera" for `camera_shift`.
        augment: Jitter the training images anew each time.
        drop_last: Leave out the last training batch of an epoch where it is not full.
        channels: None: as many as the model takes.
        image_size: Height and width in pixels; None: the model's own, or 64 where it takes any.
        batch_size: Samples a batch.
        num_workers: Processes that load; 0 is fastest for tensors in memory.

    Source: E. Alpaydin and C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI
    """

    def __init__(
        self,
        shift: Shift = "none",
        augment: bool = False,
        drop_last: bool = False,
        channels: int | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Nothing is read yet."""
        super().__init__(batch_size, num_workers, drop_last)
        self.shift = shift
        self.augment = augment
        self.channels = channels
        self.image_size = image_size
        self._framing = self._frame(ModelInterface(channels=1, image_size=(IMAGE_SIZE, IMAGE_SIZE)))

    def adapt_to(self, interface: ModelInterface) -> None:
        """Take the model's channels and size where none are given."""
        require_image_input(interface, "digits")
        check_classes(CLASSES, interface, "digits")
        self._framing = self._frame(interface)

    def read(self) -> Sets:
        """Read, split and shift."""
        (train, train_labels), (held_out, held_out_labels) = load_digits_split()
        if self.shift == "camera":
            train, held_out = camera_shift(train, seed=1000), camera_shift(held_out, seed=1001)
        return TensorDataset(train, train_labels), TensorDataset(held_out, held_out_labels)

    def collate_with(self, training: bool) -> Collate:
        """Standardise a batch, jitter it where it is to train on, and frame it for the model."""
        return partial(_collate, jittered=training and self.augment, framing=self._framing)

    def _frame(self, model: ModelInterface) -> Framing:
        size = model.image_size or (ENLARGED_SIZE, ENLARGED_SIZE)
        if model.any_image_size:
            side = max(min(ENLARGED_SIZE, *size), model.min_image_size)
            size = side, side
        if self.image_size is not None:
            size = self.image_size, self.image_size
        return Framing(self.channels or model.channels or 1, size, model.dtype)


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


def frame(images: Tensor, framing: Framing) -> Tensor:
    """Scale, and repeat the one channel.

    Args:
        images: [N, 1, H, W].
        framing: What is to come out.

    Returns:
        [N, C, height, width]; the very same images where nothing is to be done.
    """
    if images.shape[-2:] != framing.size:
        images = interpolate(images, size=framing.size, mode="bilinear", align_corners=False)
    if framing.channels > 1:
        images = images.expand(-1, framing.channels, -1, -1).contiguous()
    return images.to(framing.dtype)


def _collate(
    samples: Sequence[tuple[Tensor, ...]], jittered: bool, framing: Framing
) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(list(samples))
    if jittered:
        images = jitter(images)
    return frame(standardise(images), framing), labels
