"""Models that take as long as they are told to, on a clock that nobody waits for."""

import torch
from torch import nn


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Slow(nn.Module):
    """Takes `fixed_s` for each call and `sample_s` for each sample."""

    def __init__(self, clock, fixed_s=0.0, sample_s=0.0):
        super().__init__()
        self.clock, self.fixed_s, self.sample_s = clock, fixed_s, sample_s
        self.weight = nn.Parameter(torch.ones(1))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        self.clock.now += self.fixed_s + self.sample_s * len(x)
        return x * self.weight

    def __deepcopy__(self, memo):
        """A copy on the same clock, which keeps the same list of sizes."""
        copied = Slow(self.clock, self.fixed_s, self.sample_s)
        copied.sizes = self.sizes
        return copied
