"""Each trap of norm-only training stops the run with the name of the tensor; a sound run does not."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from efftrain.callbacks import Doctor
from efftrain.errors import ConfigError, NumericError
from efftrain.peft import apply, select, set_bn_stats


class Net(nn.Module):
    """Two convolutions with batch norms, a layer norm, a head; some of it may not run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.ln, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)
        self.unused = nn.LayerNorm(4)
        self.register_buffer("count", torch.zeros(1))

    def body(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.ln(self.body(x)))


class Module(pl.LightningModule):
    """Trains what requires a gradient, unless it is told otherwise."""

    def __init__(self, model, selection=None, optimizer=None, lr=0.01):
        super().__init__()
        self.model, self.selection = model, selection
        self.make, self.lr = optimizer, lr

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images).float(), labels)

    def configure_optimizers(self):
        if self.make is not None:
            return self.make(self.model)
        trains = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trains, lr=self.lr, weight_decay=0.0)


def batches(dtype=torch.float32, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    images = scale * torch.randn(24, 2, 8, 8, generator=draw)
    labels = torch.randint(0, 3, (24,), generator=draw)
    return DataLoader(TensorDataset(images.to(dtype), labels), 4)


def selected(method="norm", bn_stats="running", **options):
    torch.manual_seed(0)
    model = Net()
    selection = select(model, method, **{"exclude": ["unused"], **options})
    apply(model, selection, bn_stats=bn_stats)
    return model, selection


def fit(module, doctor, data=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[doctor], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=1, **options,
    )  # fmt: skip
    trainer.fit(module, data or batches())
    return trainer


def problem(module, doctor=None, kind=ConfigError, **options):
    with pytest.raises(kind) as caught:
        fit(module, doctor or Doctor(), **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("bn_stats", ["running", "batch", "update"])
@pytest.mark.parametrize("method", ["norm", "norm_head", "bias"])
def test_a_sound_run_gets_a_clean_bill(method, bn_stats):
    model, selection = selected(method, bn_stats)
    doctor = Doctor()
    fit(Module(model, selection), doctor)
    found = doctor.checkup
    assert found is not None
    assert found.steps == 3
    assert found.trainable == len(selection.names)
    assert found.changed_pct > 50
    assert found.unused == ()
    # of 14 parameters and 7 buffers, those that do not train and, with update, do not follow
    assert found.still == 14 + 7 - len(selection.names) - (6 if bn_stats == "update" else 0)
    assert found.to_dict()["cost_s"] > 0
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_accumulated_batches_are_one_step():
    model, selection = selected()
    doctor = Doctor(steps=2)
    fit(Module(model, selection), doctor, accumulate_grad_batches=3)
    assert doctor.checkup.steps == 2


def test_a_short_run_is_judged_by_the_steps_it_made():
    model, selection = selected()
    doctor = Doctor(steps=50)
    fit(Module(model, selection), doctor)
    assert doctor.checkup.steps == 6


def test_it_works_in_any_lightning_script():
    doctor = Doctor()
    module = Module(Net())
    module.model.unused.requires_grad_(False)
    fit(module, doctor)
    assert doctor.checkup.trainable == 12


def test_a_layer_that_does_not_run_is_a_warning_with_its_name():
    model, selection = selected(exclude=[])
    doctor = Doctor()
    with pytest.warns(UserWarning, match=r"peft\.exclude=\[unused\.weight\]"):
        fit(Module(model, selection), doctor)
    assert doctor.checkup.unused == ("unused.weight", "unused.bias")


def test_a_shared_norm_is_one_tensor():
    model = Net()
    model.bn2 = model.bn1
    selection = select(model, "norm", exclude=["unused"])
    apply(model, selection)
    doctor = Doctor()
    fit(Module(model, selection), doctor)
    assert doctor.checkup.trainable == 4


@pytest.mark.parametrize(
    ("name", "trains", "message"),
    [
        ("bn2.weight", False, "bn2.weight is selected and does not require a gradient"),
        ("conv1.bias", True, "conv1.bias requires a gradient and is not selected"),
    ],
)
def test_what_trains_is_the_selection(name, trains, message):
    model, selection = selected()
    model.get_parameter(name).requires_grad_(trains)
    assert message in problem(Module(model, selection))


def test_a_callback_that_unfreezes_on_its_own_is_noticed():
    class Thaw(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            pl_module.model.fc.requires_grad_(True)

    model, selection = selected()
    doctor = Doctor()
    with pytest.raises(ConfigError, match=r"fc\.weight requires a gradient and is not selected"):
        pl.Trainer(
            accelerator="cpu", logger=False, callbacks=[Thaw(), doctor], max_epochs=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Module(model, selection), batches())  # fmt: skip


def test_nothing_that_trains_is_an_error():
    model = Net().requires_grad_(False)
    model.loose = nn.Parameter(torch.zeros(1))  # only so that there is an optimizer
    module = Module(model)
    module.on_fit_start = lambda: model.requires_grad_(False)
    assert "nothing trains: no parameter requires a gradient" in problem(module)


def test_an_optimizer_from_before_freezing_is_noticed():
    model, selection = selected()
    module = Module(model, selection, lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    assert "the optimizer holds conv1.weight, which is frozen" in problem(module)


def test_a_parameter_that_no_optimizer_holds_is_noticed():
    model, selection = selected()
    module = Module(model, selection, lambda m: torch.optim.SGD(m.bn1.parameters(), lr=0.1))
    assert "bn2.weight requires a gradient and no optimizer holds it" in problem(module)


def test_a_parameter_in_two_groups_is_noticed():
    def twice(model):
        trains = [p for p in model.parameters() if p.requires_grad]
        one, other = torch.optim.SGD(trains, lr=0.1), torch.optim.SGD([model.bn1.weight], lr=0.1)
        one.param_groups += other.param_groups
        return one

    model, selection = selected()
    found = problem(Module(model, selection, twice))
    assert "the optimizer holds bn1.weight 2 times" in found


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
