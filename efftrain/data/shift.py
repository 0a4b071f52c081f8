"""The domain shift of the default job: the same digits through a bad camera."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efftrain.data.geometry import transform

TILT_DEGREES = (20.0, 40.0)
"""Uniform for each image, always to the same side."""

CONTRAST = 0.5
"""0..1 becomes 0.25..0.75."""

LIGHT = 0.2
"""A linear ramp of plus and minus this across the image, its direction uniform for each image."""

GRAIN = 0.05
"""Standard deviation of Gaussian noise."""


def camera_shift(images: Tensor, seed: int) -> Tensor:
    """Tilt the images, halve their contrast, light them from one side and add grain.

    The same images and seed give the same result, so that the shifted data set is a fixed one.

    Args:
        images: [N, C, H, W] in 0..1.
        seed: Another one for another split.

    Returns:
        [N, C, H, W] in 0..1.
    """
    generator = torch.Generator().manual_seed(seed)
    count, _, height, width = images.shape
    low, high = TILT_DEGREES
    tilt = torch.deg2rad(low + (high - low) * torch.rand(count, generator=generator))
    towards = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)

    seen = transform(images, tilt, torch.ones(count), torch.zeros(count, 2))
    seen = 0.5 + CONTRAST * (seen - 0.5)
    across = torch.linspace(-1, 1, width).view(1, 1, 1, width)
    down = torch.linspace(-1, 1, height).view(1, 1, height, 1)
    seen = seen + LIGHT * (towards.cos() * across + towards.sin() * down)
    seen = seen + GRAIN * torch.randn(images.shape, generator=generator)
    return seen.clamp(0, 1)
