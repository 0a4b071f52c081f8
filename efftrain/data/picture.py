"""From an image file to a standardised tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from efftrain.errors import DataError

CROP = 0.875
"""Share of the height and width that the crop in the middle keeps; the usual one for ImageNet."""

AREA = (0.35, 1.0)
"""Share of the image that a random crop keeps."""

STRETCH = 4 / 3
"""A random crop is up to so many times wider than high, or the other way round."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True)
class Framing:
    """What is made of every image.

    Attributes:
        size: Height and width.
        channels: 1, 3 or 4.
        mean: [C, 1, 1], of pixels in 0..1.
        std: [C, 1, 1].
        dtype: Of what comes out.
    """

    size: tuple[int, int]
    channels: int
    mean: Tensor
    std: Tensor
    dtype: torch.dtype = torch.float32


def read_picture(path: Path, framing: Framing, augment: bool) -> Tensor:
    """Read, turn, crop, scale and standardise an image.

    Args:
        path: Any format that Pillow reads.
        framing: What is to come out.
        augment: Take a random crop, mirrored half of the time, by torch's global random numbers.

    Returns:
        [C, H, W].

    Raises:
        DataError: The file is damaged or no image.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            picture = upright.convert(_MODES[framing.channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"data.root: {path} is damaged or no image: {error}") from error
    box = _random_box(picture.size) if augment else _middle_box(picture.size, framing.size)
    height, width = framing.size
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if augment and torch.rand(()) < 0.5:
        picture = ImageOps.mirror(picture)
    pixels = torch.from_numpy(np.array(picture)).view(height, width, framing.channels)
    scaled = pixels.permute(2, 0, 1).float() / 255
    return ((scaled - framing.mean) / framing.std).to(framing.dtype)


def _middle_box(given: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest part of the wanted shape, made smaller by `CROP`."""
    width, height = given
    wanted = size[1] / size[0]
    part_width = CROP * min(width, height * wanted)
    part_height = part_width / wanted
    left, top = (width - part_width) / 2, (height - part_height) / 2
    return left, top, left + part_width, top + part_height


def _random_box(given: tuple[int, int]) -> Box:
    """As Szegedy et al. 2015 (Inception): a random area, shape and place."""
    width, height = given
    area, shape, across, down = torch.rand(4).tolist()
    share = AREA[0] + (AREA[1] - AREA[0]) * area
    stretch = math.exp(math.log(STRETCH) * (2 * shape - 1))
    part_width = min(width, math.sqrt(share * width * height * stretch))
    part_height = min(height, math.sqrt(share * width * height / stretch))
    left, top = across * (width - part_width), down * (height - part_height)
    return left, top, left + part_width, top + part_height
