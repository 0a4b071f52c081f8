"""The order in which the elements of a tensor lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last where x lies so and is not plainly contiguous as well; else contiguous."""
    if not x.is_contiguous():
        for dimensions, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == dimensions and x.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format
