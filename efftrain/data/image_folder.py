"""A user's own images, in one folder per class."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from efftrain.data.adapt import check_classes, require_image_input
from efftrain.data.picture import Framing, read_picture
from efftrain.data.split import Collate, Sets, SplitData, split_indices
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface

_log = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of photographs, for a model that does not say what it was trained on."""

Paths = list[tuple[Path, int]]


class ImageFolderData(SplitData):
    """Images below `root/<class>/`, or below `root/train/<class>/` and `root/val/<class>/`.

    Classes are numbered in alphabetical order of their folders. Images are turned as their EXIF
    says, scaled, cropped in the middle and standardised. Batches are
    `(images [N, C, H, W], labels [N])`.

    Args:
        root: The folder.
        held_out: Share of each class that is held out, where there is no `train` and `val`; the
            same images in every run.
        image_size: Height and width in pixels; None: what the model was made for.
        channels: 1 (grey), 3 or 4; None: as many as the model takes.
        mean: Subtracted from the pixels in 0..1, one for each channel; None: the model's own.
        std: They are divided by it; None: the model's own.
        augment: Crop and mirror the training images anew each time.
        batch_size: Images a batch.
        num_workers: Processes that load; None: one for each core but one, up to 8.
    """

    def __init__(
        self,
        root: str,
        held_out: float = 0.2,
        image_size: int | None = None,
        channels: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: bool = False,
        batch_size: int = 32,
        num_workers: int | None = None,
    ) -> None:
        """Nothing is read yet."""
        super().__init__(batch_size, _workers() if num_workers is None else num_workers)
        self.root = Path(root).expanduser()
        self.held_out = held_out
        self.image_size = image_size
        self.channels = channels
        self.mean = mean
        self.std = std
        self.augment = augment
        self.classes: list[str] = []
        self._interface = ModelInterface()

    def adapt_to(self, interface: ModelInterface) -> None:
        """Take the model's size, channels and pixel statistics where none are given."""
        require_image_input(interface, "image_folder")
        self._interface = interface

    def read(self) -> Sets:
        """List the files; images are read when they are needed."""
        if not self.root.is_dir():
            raise DataError(f"data.root: no folder {self.root}")
        framing = self._framing()
        if (self.root / "train").is_dir() and (self.root / "val").is_dir():
            self.classes, train = _list_images(self.root / "train")
            others, held_out = _list_images(self.root / "val")
            unknown = sorted(set(others) - set(self.classes))
            if unknown:
                raise DataError(
                    f"data.root: {self.root}/val has the class '{unknown[0]}', train has not"
                )
            numbers = [self.classes.index(name) for name in others]
            held_out = [(path, numbers[label]) for path, label in held_out]
        else:
            self.classes, images = _list_images(self.root)
            train, held_out = _split_by_class(images, len(self.classes), self.held_out)
            if not held_out:
                raise DataError(
                    f"data.root: {self.root} has one image a class, none to evaluate on"
                )
        check_classes(len(self.classes), self._interface, str(self.root))
        _log.info(
            f"{len(self.classes)} classes, {len(train):,} images to train on and {len(held_out):,} held out"
        )
        return Images(train, framing, self.augment), Images(held_out, framing, augment=False)

    def collate_with(self, training: bool) -> Collate:
        """Stack the images, or hand on what is wrong with one of them."""
        return _collate

    def _framing(self) -> Framing:
        model = self._interface
        channels = self.channels or model.channels or 3
        if channels not in (1, 3, 4):
            raise DataError(f"data.channels: images have 1, 3 or 4, the model takes {channels}")
        side = self.image_size or 224
        own = None if self.image_size else model.image_size
        size = own or (side, side)
        mean = self.mean or model.mean or IMAGENET_MEAN
        std = self.std or model.std or IMAGENET_STD
        statistics = _each(mean, channels, "mean"), _each(std, channels, "std")
        return Framing(size, channels, *statistics, dtype=model.dtype)


class Images(Dataset[tuple[Tensor, int]]):
    """Image files and their labels.

    Args:
        paths: With the number of the class.
        framing: What is made of each.
        augment: Crop and mirror anew each time.
    """

    def __init__(self, paths: Paths, framing: Framing, augment: bool) -> None:
        """Nothing is read yet."""
        self.paths = paths
        self.framing = framing
        self.augment = augment

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """An image [C, H, W] and its label; in a worker process, a `DataError` in its place."""
        path, label = self.paths[index]
        try:
            return read_picture(path, self.framing, self.augment), label
        except DataError as error:
            if get_worker_info() is None:
                raise
            return error


def _collate(samples: list[Any]) -> Any:
    broken = next((one for one in samples if isinstance(one, DataError)), None)
    return broken if broken is not None else default_collate(samples)


def _list_images(root: Path) -> tuple[list[str], Paths]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise DataError(f"data.root: {root} has no folders; there has to be one for each class")
    images: Paths = []
    for label, folder in enumerate(folders):
        found = sorted(path for path in folder.rglob("*") if _is_image(path))
        if not found:
            raise DataError(
                f"data.root: no images in {folder}; known are {', '.join(sorted(SUFFIXES))}"
            )
        images += [(path, label) for path in found]
    return [folder.name for folder in folders], images


def _is_image(path: Path) -> bool:
    """By name; macOS leaves hidden files beside images."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _split_by_class(images: Paths, classes: int, held_out: float) -> tuple[Paths, Paths]:
    """The same share of every class; one of a single image is only trained on."""
    parts: tuple[Paths, Paths] = ([], [])
    for label in range(classes):
        own = [image for image in images if image[1] == label]
        chosen = split_indices(len(own), held_out) if len(own) > 1 else ([0], [])
        for part, indices in zip(parts, chosen, strict=True):
            part += [own[i] for i in indices]
    return parts


def _each(values: Any, channels: int, name: str) -> Tensor:
    """One value for each channel, [C, 1, 1]; grey takes the mean of the colours."""
    tensor = torch.tensor(list(values), dtype=torch.float32)
    if channels == 1 and len(tensor) == 3:
        tensor = tensor.mean(0, keepdim=True)
    if len(tensor) != channels:
        raise DataError(f"data.{name}: {len(tensor)} values for {channels} channels")
    return tensor.view(-1, 1, 1)


def _workers() -> int:
    can_tell = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if can_tell else os.cpu_count() or 1
    return min(max(cores - 1, 0), 8)
