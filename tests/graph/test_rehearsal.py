"""The private copy that everything runs on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.graph.observer import Call, Observer
from efftrain.graph.rehearsal import Rehearsal, batch_size, first_sample, rehearse


def test_the_copy_has_shapes_and_no_values() -> None:
    model = nn.Linear(3, 4)

    def run(rehearsal: Rehearsal) -> tuple[bool, torch.Size]:
        assert rehearsal.model is not model
        return rehearsal.values, rehearsal.forward().shape

    assert rehearse(run, model, torch.zeros(5, 3)) == (False, torch.Size([5, 4]))
    assert rehearse(run, model, torch.zeros(5, 3), values=True) == (True, torch.Size([5, 4]))


def test_a_meta_model_is_rehearsed_as_if_it_were_on_the_cpu() -> None:
    with torch.device("meta"):
        model, batch = nn.Linear(3, 4), torch.zeros(5, 3)

    def devices(rehearsal: Rehearsal) -> set[str]:
        return {t.device.type for t in (*rehearsal.model.parameters(), rehearsal.forward())}

    assert rehearse(devices, model, batch) == {"cpu"}
    assert model.weight.device.type == "meta"


def test_frozen_stays_frozen_and_tied_stays_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 3)

    def look(rehearsal: Rehearsal) -> tuple[bool, list[bool], bool]:
        first, second, _ = copied = rehearsal.model
        trains = [p.requires_grad for p in copied.parameters()]
        return first.weight is second.weight, trains, first.weight.grad is None

    assert rehearse(look, model, torch.zeros(2, 3)) == (True, [True] * 3 + [False] * 2, True)
    assert model[0].weight.grad is not None


def test_a_model_with_values_is_needed_only_where_the_model_asks() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(x.max().item())]

    runs: list[bool] = []

    def run(rehearsal: Rehearsal) -> int:
        runs.append(rehearsal.values)
        return rehearsal.forward().shape[0]

    assert rehearse(run, Asking(), torch.full((5, 2), 3.0)) == 3
    assert runs == [False, True]
    with pytest.raises(ConfigError, match="could not be run on shapes alone"):
        rehearse(run, Asking(), torch.zeros(5, 2, device="meta"))
    with pytest.raises(ConfigError, match="no values"):
        rehearse(run, Asking(), torch.zeros(5, 2, device="meta"), values=True)


def test_a_compiled_model_runs_as_it_is_written() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    seen: list[str] = []

    def run(rehearsal: Rehearsal) -> None:
        with Observer(lambda call: seen.append(call.operator.name)):
            rehearsal.forward()

    rehearse(run, compiled, torch.zeros(2, 3))
    assert seen == ["t", "addmm", "relu", "detach"]


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(4, 2), 4),
        ((torch.tensor(1.0), torch.zeros(3, 2)), 3),
        ({"x": torch.zeros(7), "n": 5}, 7),
        (["no tensor"], 1),
    ],
)
def test_the_batch_is_as_long_as_its_first_tensor(batch: object, size: int) -> None:
    assert batch_size(batch) == size


def test_what_is_not_as_long_as_the_batch_is_kept_whole() -> None:
    images, mask, scale = torch.zeros(4, 2), torch.zeros(9, 9), torch.tensor(1.0)
    shapes = [tuple(t.shape) for t in first_sample((images, mask, scale))]
    assert shapes == [(1, 2), (9, 9), ()]


def test_the_observer_sees_lists_of_tensors_and_what_they_share() -> None:
    calls: list[Call] = []
    with Observer(calls.append):
        torch.cat([torch.zeros(2), torch.ones(3)]).view(5, 1)
    cat, view = calls[-2:]
    assert [t.numel() for t in cat.inputs] == [2, 3]
    assert (cat.operator.view, view.operator.view) == (False, True)
