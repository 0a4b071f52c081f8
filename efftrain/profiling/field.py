"""The pixels that the positions of one tensor see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Field:
    """Position p of a tensor sees the pixels start + p x jump to end + p x jump.

    Attributes:
        start: First pixel that the first position sees.
        end: Last pixel that it sees.
        jump: Pixels from one position to the next.
        positions: Height x width of the tensor.
        channels: Its channels.
        width: Its width.
    """

    start: int
    end: int
    jump: int
    positions: int
    channels: int
    width: int

    @property
    def size(self) -> int:
        """Pixels that one position sees."""
        return self.end - self.start + 1

    def through_window(self, kernel: int, stride: int, padding: int, dilation: int) -> Field:
        """What a position sees after a convolution or pool."""
        start = self.start - padding * self.jump
        end = self.end + (dilation * (kernel - 1) - padding) * self.jump
        return replace(self, start=start, end=end, jump=self.jump * stride)

    def shifted(self, positions: int) -> Field:
        """What a position sees after padding on the left (negative)."""
        pixels = positions * self.jump
        return replace(self, start=self.start + pixels, end=self.end + pixels)

    def shaped(self, shape: Sequence[int]) -> Field:
        """The same in a tensor [N, C, H, W]; another shape keeps its positions."""
        if len(shape) != 4 or (shape[-1] != self.width and shape[-1] == self.channels):
            if self.channels in shape:  # tokens beside the positions, such as a class token
                return self
            return replace(self, channels=max(math.prod(shape) // self.positions, 1))
        return replace(self, positions=shape[2] * shape[3], channels=shape[1], width=shape[3])


# A tensor that depends on all positions: through a global pool, or through attention.
FieldState = Field | Literal["pooled", "attention"]


def merge(states: Sequence[FieldState]) -> FieldState:
    """What the element-by-element combination of several tensors sees.

    A tensor that was pooled globally adds nothing of its own to one that has positions; attention
    stays attention.
    """
    if "attention" in states:
        return "attention"
    fields = [state for state in states if isinstance(state, Field)]
    if not fields:
        return "pooled"
    largest = max(fields, key=lambda field: field.positions * field.channels)
    return replace(
        largest,
        start=min(field.start for field in fields),
        end=max(field.end for field in fields),
    )
