"""Turning, zooming and moving a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def transform(images: Tensor, angle: Tensor, zoom: Tensor, move: Tensor) -> Tensor:
    """Resample every image through its own affine map; 0 comes in from outside.

    Args:
        images: [N, C, H, W].
        angle: [N], radians.
        zoom: [N]; above 1 shows more of the surroundings, so that the content shrinks.
        move: [N, 2], x and y as shares of the width and height.

    Returns:
        [N, C, H, W].
    """
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    x, y = 2 * move[:, 0], 2 * move[:, 1]  # affine_grid's coordinates run from -1 to 1
    theta = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(-1, 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="zeros", align_corners=False)
