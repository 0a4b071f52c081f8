"""In the first steps: what moves, what gets no gradient and what is rounded away is named."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from efftrain.callbacks import Doctor
from efftrain.errors import ConfigError, NumericError
from efftrain.peft import apply, select, set_bn_stats
from tests.callbacks.doctor_run import Module, Net, batches, fit, problem, selected


def test_a_frozen_weight_that_moves_is_noticed():
    class Decays(Module):
        def on_train_batch_end(self, *_):
            self.model.fc.weight.data.mul_(0.999)

    def make():
        model, selection = selected()
        nn.init.ones_(model.fc.weight)  # equal numbers stay equal: an XOR of them would not change
        return Decays(model, selection)

    assert "fc.weight is frozen and moved in step 2" in problem(make())
    fit(make(), Doctor(may_move=["fc.weight"]))


def test_an_optimizer_of_another_copy_is_noticed():
    model, selection = selected()
    other = copy.deepcopy(model)
    module = Module(model, selection, lambda _: torch.optim.SGD(other.bn1.parameters(), lr=0.1))
    assert "the optimizer holds a tensor [4] that is no parameter of Net" in problem(module)


def test_a_buffer_that_nothing_selects_is_noticed():
    class Counts(Module):
        def on_after_backward(self):
            self.model.count.add_(1)

    found = problem(Counts(*selected()))
    assert "count is a buffer that nothing selects and moved in step 1" in found
    fit(Counts(*selected()), Doctor(may_move=["coun?"]))


def test_statistics_that_drift_beside_the_selection_are_noticed():
    """A pattern that misses a norm leaves its statistics to drift, and no delta holds them."""
    model = Net().requires_grad_(False)
    model.bn2.requires_grad_(True)
    found = problem(Module(model))
    assert "bn1 (BatchNorm2d) is frozen and in training mode: it normalises by the batch" in found
    set_bn_stats(model, "running")
    fit(Module(model), Doctor())


def test_train_on_a_held_batch_norm_is_noticed():
    class Unhold(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.model.bn2.training = True

    model, selection = selected()
    with pytest.raises(ConfigError, match=r"bn2 .* is in training mode"):
        pl.Trainer(
            accelerator="cpu", logger=False, callbacks=[Doctor(), Unhold()], max_epochs=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Module(model, selection), batches())  # fmt: skip


class Checkpointed(Net):
    reentrant = True

    def body(self, x):
        return checkpoint(super().body, x, use_reentrant=self.reentrant)


def test_reentrant_checkpointing_leaves_norms_without_gradients():
    model = Checkpointed()
    selection = select(model, "norm_head", exclude=["unused"])
    apply(model, selection)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        found = problem(Module(model, selection))
    assert "bn1.weight got no gradient in step 1 although its layer ran" in found


def test_checkpointing_that_updates_statistics_twice_is_noticed():
    model = Checkpointed()
    model.reentrant = False
    selection = select(model, "norm", exclude=["unused"])
    apply(model, selection, bn_stats="update")
    found = problem(Module(model, selection))
    assert "bn1 (BatchNorm2d) updates its running statistics a second time" in found or (
        "bn2 (BatchNorm2d) updates its running statistics a second time" in found
    )
    apply(model, selection, bn_stats="running")
    fit(Module(model, selection), Doctor())


def test_a_gradient_that_is_not_finite_is_a_numeric_error():
    model, selection = selected()
    found = problem(Module(model, selection), kind=NumericError, data=batches(scale=1e38))
    assert "the gradient of bn1.weight is not finite in step 1" in found


class Low(Net):
    """In bfloat16, where 1 + 1e-3 is 1."""

    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)


def test_steps_that_bfloat16_rounds_away_are_noticed():
    model = Low()
    selection = select(model, "norm_scale", exclude=["unused"])
    apply(model, selection, bn_stats="running", float32_norms=False)
    module = Module(model, selection, lr=1e-4)
    found = problem(module, kind=NumericError, data=batches(torch.bfloat16))
    assert "nothing changed in 3 steps in 3 trainable tensors, first bn1.weight" in found
    assert "in bfloat16 a step of lr=0.0001 is rounded away" in found


def test_norms_that_stand_still_beside_a_head_that_moves_are_noticed():
    model = Low()
    selection = select(model, "norm_scale+head", exclude=["unused"])
    apply(model, selection, bn_stats="running", float32_norms=False)
    found = problem(
        Module(model, selection, lr=1e-4), kind=NumericError, data=batches(torch.bfloat16)
    )
    assert "first bn1.weight" in found


def test_a_warm_up_is_waited_for():
    class WarmUp(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 3))
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    model, selection = selected()
    doctor = Doctor()
    fit(WarmUp(model, selection), doctor)
    assert doctor.checkup.steps == 5


def test_decay_of_norms_is_a_warning():
    model, selection = selected()

    def decays(m):
        trains = [p for p in m.parameters() if p.requires_grad]
        return torch.optim.AdamW(trains, lr=0.01, weight_decay=0.1)

    with pytest.warns(UserWarning, match=r"weight_decay=0.1 pulls bn1\.weight and 5 more"):
        fit(Module(model, selection, decays), Doctor())
