"""A model that is small enough to count by hand, and its profile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from efftrain.profiling import Profile, profile
from efftrain.profiling.roofline import Ceilings

SAMPLES = 2


class Block(nn.Module):
    """Per sample: 16 MACs, 16 parameters, activations 4 (product, with its ReLU) + 4 (sum)."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.lin(x))


class Small(nn.Module):
    """stem 12 + 3 x 16 + head 8 = 68 MACs, 16 + 3 x 16 + 10 = 74 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.body = nn.ModuleDict({"blocks": nn.Sequential(Block(), Block(), Block())})
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body["blocks"](self.stem(x)))


def profile_of(model: nn.Module, *shape: int) -> Profile:
    return profile(model, torch.zeros(SAMPLES, *shape))


@pytest.fixture(scope="session")
def small() -> Profile:
    return profile_of(Small(), 3)


@pytest.fixture(scope="session")
def timed(small: Profile) -> Profile:
    """1 kFLOP/s and 5 kB/s: products are bound by computing, ReLUs and sums by memory.

    A product of 32 FLOP takes 32 ms, a ReLU that moves 32 bytes 6.4 ms, a sum that moves 48 bytes
    9.6 ms: a block 48 ms, stem and head 24 and 16 ms, all 184 ms.
    """
    return small.on(Ceilings("a machine", 2, {"float32": 1e3}, 5e3, "made up"))
