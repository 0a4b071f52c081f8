"""Before the first step: each trap stops the run with the name of the tensor; a sound run passes."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from efftrain.callbacks import Doctor
from efftrain.errors import ConfigError
from efftrain.peft import apply, select
from tests.callbacks.doctor_run import Module, Net, batches, fit, problem, selected


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
