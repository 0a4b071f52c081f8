"""What real steps keep, beside what was predicted for them."""

from __future__ import annotations

import logging

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from efftrain.callbacks import ActivationMemory, ModelCost
from efftrain.graph.autograd_node import saved_tensor_hooks
from tests.callbacks.small_job import SIDE, Net, Plain, batches, fit, make_task

MIB = 1024**2
MAPS = 4 * 4 * 4 * SIDE * SIDE
"""Bytes of the four feature maps of a batch of 4."""


def test_one_step_after_warm_up_and_then_every_nth_is_measured():
    memory = ActivationMemory(every_n_steps=2, warmup_steps=1)
    logger, _ = fit(make_task("norm"), [memory])
    assert logger.steps("memory/saved_measured_mib") == [1, 3, 5]
    # the norm's input, the ReLU's result, and for the loss: scores and the labels' weight, some bytes
    measured = memory.saved.by_module()
    assert measured["norm"] == MAPS
    assert measured["act"] == MAPS
    assert "conv" not in measured
    assert logger.values("memory/saved/norm_mib")[0] == MAPS / MIB


def test_prediction_stands_beside_measurement():
    memory = ActivationMemory(warmup_steps=1)
    logger, _ = fit(make_task("full"), [ModelCost(), memory])
    assert memory.predicted_bytes == pytest.approx(memory.saved.saved_bytes, abs=100)
    (difference,) = logger.values("memory/saved_difference_pct")
    assert abs(difference) < 2


def test_a_batch_of_another_shape_is_not_compared():
    memory = ActivationMemory(warmup_steps=2)
    logger, _ = fit(make_task("full"), [ModelCost(), memory], batches(samples=10))
    assert len(logger.values("memory/saved_measured_mib")) == 1, "the third batch, of 2 samples"
    assert logger.values("memory/saved_difference_pct") == []
    assert memory.predicted_bytes is None


def test_steps_compute_what_they_compute_without():
    weights = []
    for callbacks in ([], [ActivationMemory(every_n_steps=1, warmup_steps=0)]):
        torch.manual_seed(0)
        module = Plain()
        fit(module, callbacks, batches())
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Spy(pl.Callback):
    """Notes which steps run their forward, and their backward, under hooks."""

    def __init__(self):
        self.forward, self.backward, self.leftover = [], [], []

    def setup(self, trainer, pl_module, stage):
        pl_module.model.norm.register_forward_hook(self.look)

    def look(self, *_):
        if torch.is_grad_enabled():
            self.forward.append(saved_tensor_hooks() is not None)

    def on_after_backward(self, trainer, pl_module):
        self.backward.append(saved_tensor_hooks() is not None)
        self.leftover.append(len(pl_module.model.conv._forward_pre_hooks))


def test_hooks_are_there_in_the_forward_of_a_measured_step_alone():
    spy = Spy()
    fit(Plain(), [spy, ActivationMemory(every_n_steps=3, warmup_steps=1)])
    assert spy.forward == [False, True, False, False, True, False]
    assert spy.backward == [False] * 6
    assert spy.leftover == [0] * 6


class OthersHooks(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.hooks = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        self.hooks.__enter__()

    def on_after_backward(self, trainer, pl_module):
        self.hooks.__exit__()


def test_where_others_hooks_are_in_force_it_is_said_once(caplog):
    memory = ActivationMemory(every_n_steps=1, warmup_steps=0)
    with caplog.at_level(logging.INFO, logger="efftrain.callbacks.activation_memory"):
        logger, _ = fit(Plain(), [OthersHooks(), memory])
    own = [record.message for record in caplog.records if record.name.startswith("efftrain.")]
    assert own == [
        "memory/saved_measured_mib is left out: others have saved_tensors_hooks in force"
    ]
    assert logger.values("memory/saved_measured_mib") == []


class UsesFunctionTransforms(Net):
    """torch.func raises where saved tensors have hooks."""

    def forward(self, x):
        torch.func.grad(lambda y: y.sum())(x.detach())
        return super().forward(x)


def test_a_step_that_hooks_would_break_is_left_alone():
    cost, memory = ModelCost(), ActivationMemory(every_n_steps=1, warmup_steps=0)
    logger, _ = fit(Plain(UsesFunctionTransforms()), [cost, memory])
    assert "hooks" in cost.failure
    assert logger.values("memory/saved_measured_mib") == []


class Skips(Plain):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_leaves_no_hook():
    spy = Spy()
    fit(Skips(), [spy, ActivationMemory(every_n_steps=100, warmup_steps=1)])
    assert spy.forward == [False, True, False, False, False, False]


class Fails(Plain):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        raise RuntimeError("broken")


def test_a_step_that_fails_leaves_no_hook():
    module = Fails()
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, [ActivationMemory(warmup_steps=0)])
    assert saved_tensor_hooks() is None
    assert not module.model.conv._forward_pre_hooks


class Wide(nn.Module):
    """Each training step holds 32 MiB, a validation 64 MiB more."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        rows = 1 if self.training else 3
        wide = self.scale * x.flatten()[:1].expand(rows * 8 * MIB).contiguous()
        return wide.exp().sum().reshape(1, 1).expand(len(x), 3) * 1e-9


def test_the_peak_is_that_of_training_steps_above_what_is_there():
    memory = ActivationMemory(warmup_steps=2)
    logger, _ = fit(
        Plain(Wide()), [memory], validation=batches(4), log_every_n_steps=2, val_check_interval=3
    )
    peaks = logger.values("memory/device_peak_mib")
    assert logger.steps("memory/device_peak_mib") == [2, 4, 6]
    # x alone, its product, and the exponential are alive at once; gradients of both come in backward
    assert all(60 < peak < 170 for peak in peaks), peaks
    assert memory.peak_bytes == int(max(peaks) * MIB)
