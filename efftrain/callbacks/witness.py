"""Noticing that tensors changed, without keeping copies of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""A type of each element size, to read the bits of any other type of that size as numbers."""


class Witness:
    """Notices when a tensor that should stay as it is does not.

    Keeps one number for each tensor: the sum of its elements' bits read as integers, which is exact,
    the same in any order, and read in one pass on the tensor's own device. An XOR would be as quick,
    and would miss that a vector of equal numbers has decayed to other equal numbers.

    Args:
        tensors: By name; the tensors themselves are watched, under whatever mode or step.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the first look."""
        self._tensors = dict(tensors)
        self._before = self._look()

    def __len__(self) -> int:
        """How many tensors are watched."""
        return len(self._tensors)

    def moved(self) -> list[str]:
        """Names of the tensors that differ from the first look. Waits for the device once."""
        looks = zip(self._tensors, self._look(), self._before, strict=True)
        return [name for name, now, before in looks if now != before]

    def _look(self) -> list[int]:
        return read_together([_sum_of_bits(tensor) for tensor in self._tensors.values()])


class Sample:
    """Counts how many elements of tensors have changed, from a sample of each.

    Args:
        tensors: By name.
        most: Elements that are kept of each, evenly spread. A norm's scale is kept whole.
    """

    def __init__(self, tensors: Mapping[str, Tensor], most: int = 4096) -> None:
        """Copy the sample."""
        self._tensors = dict(tensors)
        self._most = most
        self._before = {name: self._take(one).clone() for name, one in self._tensors.items()}

    def changed(self) -> dict[str, tuple[int, int]]:
        """Name to the elements that changed and those in the sample. Waits for the device once."""
        found = read_together(
            [(self._take(one) != self._before[name]).sum() for name, one in self._tensors.items()]
        )
        sizes = [before.numel() for before in self._before.values()]
        return dict(zip(self._tensors, zip(found, sizes, strict=True), strict=True))

    def _take(self, tensor: Tensor) -> Tensor:
        flat = local(tensor).detach().reshape(-1)
        return flat[:: max(1, -(-flat.numel() // self._most))]


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that lies here; any other tensor itself."""
    here: Any = getattr(tensor, "_local_tensor", tensor)
    return here


def _sum_of_bits(tensor: Tensor) -> Tensor:
    here = local(tensor).detach()
    if here.is_complex():
        here = torch.view_as_real(here)
    return here.view(_INTEGERS[here.element_size()]).sum(dtype=torch.int64)


def read_together(numbers: list[Tensor]) -> list[int]:
    """Integers that lie on devices, with one wait for each device instead of one for each number."""
    by_device: dict[torch.device, list[int]] = {}
    for place, number in enumerate(numbers):
        by_device.setdefault(number.device, []).append(place)
    joined = torch.zeros(len(numbers), dtype=torch.int64)
    for places in by_device.values():
        joined[places] = torch.stack([numbers[place] for place in places]).cpu()
    return [int(number) for number in joined.tolist()]
