"""What is predicted of a step is that of this very step, and disturbs nothing."""

from __future__ import annotations

import logging

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from efftrain.callbacks import ModelCost, Throughput
from efftrain.callbacks.step_rehearsal import find_optimizer
from efftrain.measure.ceilings import kept_ceilings
from efftrain.profiling import profile
from tests.callbacks.small_job import MACS, SIDE, Net, Plain, batches, fit, make_task

BATCH = 4


@pytest.fixture(autouse=True)
def no_ceilings(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFTRAIN_CACHE", str(tmp_path / "cache"))


def predicted(model: nn.Module):
    batch, labels = torch.zeros(BATCH, 2, SIDE, SIDE), torch.zeros(BATCH, dtype=torch.long)
    return profile(
        model,
        batch,
        lambda output: nn.functional.cross_entropy(output, labels),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.0),
    )


def test_a_task_is_rehearsed_by_its_model_and_loss():
    cost, task = ModelCost(), make_task("norm")
    logger, _ = fit(task, [cost])
    expected = predicted(task.model)
    assert logger.values("macs/forward")[0] == MACS
    assert logger.values("flops/step_gflop")[0] == expected.flops.step / 1e9
    assert logger.values("memory/saved_mib")[0] == pytest.approx(
        expected.memory.saved.saved_bytes / 1024**2, abs=1e-4
    )
    peak = logger.values("memory/step_peak_mib")[0]
    assert peak == pytest.approx(expected.memory.peak.step_peak_bytes / 1024**2, abs=1e-4)
    assert logger.values("receptive_field/size")[0] == 3
    assert logger.steps("macs/forward") == [0, 6]
    assert not any(tag for tag in ("latency/predicted_ms",) if logger.values(tag))


def test_freezing_is_seen():
    costs = {}
    for method in ("full", "norm", "head"):
        costs[method] = ModelCost()
        fit(make_task(method), [costs[method]])
    backward = {method: cost.profile.flops.backward for method, cost in costs.items()}
    assert backward["full"] > backward["norm"] > backward["head"] > 0


def test_another_module_is_rehearsed_by_its_training_step():
    cost, module = ModelCost(), Plain()
    fit(module, [cost])
    expected = predicted(Net())
    assert cost.failure == ""
    assert cost.step_flops == expected.flops.forward + expected.flops.backward
    assert cost.flops_per_sample == cost.step_flops / BATCH
    assert module.calls == 6, "the rehearsal was of a copy"


def test_training_goes_as_it_goes_without():
    weights = []
    for callbacks in ([], [ModelCost()]):
        torch.manual_seed(0)
        module = Plain()
        fit(module, callbacks, batches())
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_throughput_takes_its_flops_from_here():
    cost = ModelCost()
    logger, _ = fit(Plain(), [cost, Throughput(warmup_steps=0)])
    assert len(logger.values("throughput/achieved_gflops")) == 6
    assert all(value > 0 for value in logger.values("throughput/achieved_gflops"))


class NoStep(Plain):
    """Looks at its trainer, which a copy has not; the real step does not mind."""

    def training_step(self, batch, batch_idx):
        assert self.trainer.global_step >= 0
        return super().training_step(batch, batch_idx)


def own(caplog):
    return [record.message for record in caplog.records if record.name.startswith("efftrain.")]


def test_a_step_that_cannot_be_rehearsed_is_one_line_and_no_more(caplog):
    cost = ModelCost()
    with caplog.at_level(logging.WARNING, logger="efftrain.callbacks.model_cost"):
        logger, _ = fit(NoStep(), [cost])
    (message,) = own(caplog)
    assert message.startswith("the cost of a step is not predicted: ")
    assert "\n" not in message
    assert cost.failure
    assert cost.flops_per_sample is None
    assert logger.values("macs/forward") == []


class AsksForValues(Net):
    def forward(self, x):
        return super().forward(x) * (1.0 if x.sum().item() > -1e9 else 2.0)


def test_a_large_model_that_asks_for_values_is_not_copied(monkeypatch, caplog):
    cost = ModelCost()
    fit(Plain(AsksForValues()), [cost])
    assert cost.profile is not None, "a small one is"
    monkeypatch.setattr("efftrain.callbacks.step_rehearsal.MOST_COPIED_BYTES", 100)
    with caplog.at_level(logging.WARNING, logger="efftrain.callbacks.model_cost"):
        fit(Plain(AsksForValues()), [cost])
    assert cost.profile is None
    assert len(own(caplog)) == 1


class Freeze(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.model.conv.requires_grad_(trainer.current_epoch == 0)


def test_it_is_predicted_again_when_others_train_than_before():
    logger, _ = fit(Plain(), [Freeze(), ModelCost()], max_epochs=2)
    first, *_, last = logger.values("flops/backward_gflop")
    assert first > last > 0


def test_a_compiled_step_is_rehearsed_as_it_is_written():
    module, cost = Plain(), ModelCost()
    module.model = torch.compile(Net(), backend="eager")
    fit(module, [cost], limit_train_batches=1)
    assert cost.failure == ""
    assert cost.profile.macs.forward == MACS


def test_gradients_accumulate_as_before():
    """A rehearsal in the middle of training leaves the gradients that are there."""
    weights = []
    for callbacks in ([Freeze()], [Freeze(), ModelCost()]):
        torch.manual_seed(0)
        module = Plain()
        fit(module, callbacks, batches(), max_epochs=2, accumulate_grad_batches=2)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_times_are_predicted_where_the_machine_is_known(monkeypatch):
    from efftrain.profiling.roofline import Ceilings

    known = Ceilings("a machine", 1, {"float32": 1e9}, 1e9, "made up")
    monkeypatch.setattr("efftrain.callbacks.model_cost.kept_ceilings", lambda device: known)
    logger, _ = fit(Plain(), [ModelCost()], limit_train_batches=1)
    assert logger.values("latency/predicted_ms")[0] > 2 * MACS / 1e9 * 1e3


def test_ceilings_are_never_measured_for_this():
    assert kept_ceilings("cpu") is None
    fit(Plain(), [ModelCost()], limit_train_batches=1)
    assert kept_ceilings("cpu") is None


def test_the_optimizer_is_made_as_the_trainers_was():
    layer = nn.Linear(2, 2)
    given = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    made = find_optimizer([given])(nn.Linear(3, 3).parameters())
    assert type(made) is torch.optim.SGD
    assert (made.defaults["lr"], made.defaults["momentum"]) == (0.5, 0.9)
    assert find_optimizer([given, given]) is None
    assert find_optimizer([torch.optim.LBFGS(layer.parameters())]) is None
    assert type(find_optimizer([torch.optim.AdamW(layer.parameters())])([layer.weight])) is (
        torch.optim.AdamW
    )
