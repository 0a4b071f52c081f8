"""A training whose every part takes a known time."""

import time
from collections import defaultdict

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

PARTS_S = {"data": 0.04, "h2d": 0.04, "forward": 0.05, "backward": 0.06, "optimizer": 0.07}


class Naps:
    """Sleeps, and remembers how long each sleep really took; nothing where the part has no time."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.taken_ms = defaultdict(list)

    def take(self, part):
        if part not in self.seconds:
            return
        began = time.perf_counter()
        time.sleep(self.seconds[part])
        self.taken_ms[part].append(1000 * (time.perf_counter() - began))

    def steps_ms(self, part, batches=1):
        """What each step slept in a part, of so many batches."""
        taken = self.taken_ms[part]
        return [sum(taken[at : at + batches]) for at in range(0, len(taken), batches)]


class SleepInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, naps):
        ctx.naps = naps
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.naps.take("backward")
        return gradient, None


class SleepySGD(torch.optim.SGD):
    def __init__(self, parameters, naps):
        super().__init__(parameters, lr=0.1)
        self.naps = naps

    def step(self, closure=None):
        loss = super().step(closure)
        self.naps.take("optimizer")
        return loss


class SleepyParts(pl.LightningModule):
    def __init__(self, seconds=PARTS_S):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.naps = Naps(seconds)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.naps.take("h2d")
        return batch.to(device)

    def training_step(self, batch, batch_idx):
        self.naps.take("forward")
        return SleepInBackward.apply(self.layer(batch).square().mean(), self.naps)

    def configure_optimizers(self):
        return SleepySGD(self.parameters(), self.naps)


class Batches(torch.utils.data.Dataset):
    """So many batches, each of which takes its time to come."""

    def __init__(self, naps, count):
        self.naps = naps
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        self.naps.take("data")
        return torch.zeros(4, 3)


def sleepy_loader(module, batches):
    return torch.utils.data.DataLoader(Batches(module.naps, batches), batch_size=None)


def agree(logged_ms, slept_ms, within=0.05):
    """Whether each step took at least what it slept, and the least disturbed one hardly more.

    A busy machine adds to some steps; what is charged to a wrong part is missing in, or adds to, all.
    """
    ratios = [logged / slept for logged, slept in zip(logged_ms, slept_ms, strict=True)]
    return min(ratios) == pytest.approx(1 + within / 2, abs=within / 2 + 1e-4)
