"""Small random changes of every image, for pretraining."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efftrain.data.geometry import transform

TILT_DEGREES = 15.0
ZOOM = 0.1
MOVE = 0.1
"""Share of the width and height."""


def jitter(images: Tensor) -> Tensor:
    """Tilt, zoom and move every image a little, by torch's global random numbers.

    Args:
        images: [N, C, H, W].

    Returns:
        [N, C, H, W].
    """
    count = len(images)
    angle = math.radians(TILT_DEGREES) * _even(count)
    return transform(images, angle, 1 + ZOOM * _even(count), MOVE * _even(count, 2))


def _even(*shape: int) -> Tensor:
    """Uniform between -1 and 1."""
    return 2 * torch.rand(*shape) - 1
