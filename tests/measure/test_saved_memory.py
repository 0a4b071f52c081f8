"""What autograd keeps of real steps, against counts by hand and against the dry run."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from efftrain.graph.autograd_node import saved_tensor_hooks
from efftrain.measure.saved_memory import SavedMeter
from efftrain.profiling import profile
from efftrain.profiling.saved import Saved


def measure(model: nn.Module, batch: Tensor, loss_of=lambda output: output.sum()) -> Saved:
    meter = SavedMeter()
    assert meter.start(model, batch)
    loss = loss_of(model(batch))
    found = meter.stop(loss)
    loss.backward()
    assert found is not None
    return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act, self.pool, self.fc = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.act(self.norm(self.conv(x)))).flatten(1))


def test_the_count_by_hand():
    """A batch of 2 at 8 x 8 in float32; the batch itself and the weights are left out."""
    found = measure(Net(), torch.randn(2, 3, 8, 8))
    maps = 4 * 2 * 8 * 8 * 8
    assert found.by_module() == {
        "": 3 * maps // 4 + 2 * maps + 2 * 4 * 8,
        "norm": maps + 2 * 4 * 8,  # its input, and the batch's mean and deviation
        "act": maps,  # its result, which the pool keeps as well
        "pool": maps // 4 * 2,  # where each maximum was, as int64
        "fc": maps // 4,  # its input
    }
    assert found.by_cause() == {
        "norm": maps + 64, "activation": maps, "pool": maps // 2, "linear": maps // 4
    }  # fmt: skip


def test_a_frozen_model_with_one_trained_layer_keeps_that_layers_input_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    model[2].requires_grad_(True)
    found = measure(model, torch.randn(3, 4))
    assert found.by_module() == {"": 4 * 3 * 8, "2": 4 * 3 * 8}


def test_memory_that_two_operations_keep_counts_once():
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()  # keeps its result
            return y * y.view(-1).sin().view_as(y)  # keeps it again, and once more as a view

    x = torch.randn(10, requires_grad=True)
    assert measure(Twice(), x).saved_bytes == 2 * 4 * 10  # y, and its sine


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "swin_t"])
def test_it_is_what_the_dry_run_predicts(name):
    model = getattr(torchvision.models, name)()
    model.eval()  # dropout's mask is another tensor on shapes alone
    batch, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])

    def loss_of(output: Tensor) -> Tensor:
        return cross_entropy(output, labels)

    predicted = profile(model, batch, loss_of).memory.saved
    measured = measure(model, batch, loss_of)
    assert measured.saved_bytes == pytest.approx(predicted.saved_bytes, abs=100)
    ours, theirs = measured.by_cause(), predicted.by_cause()
    assert ours == {cause: pytest.approx(size, abs=100) for cause, size in theirs.items()}
    here, there = measured.by_module(), predicted.by_module()
    assert {path: here[path] for path in there if path} == {p: b for p, b in there.items() if p}


def test_a_checkpointed_part_keeps_its_input_alone():
    part = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part = nn.Linear(4, 4), part

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.part, self.first(x), use_reentrant=False)

    assert measure(Outer(), torch.randn(3, 4)).saved_bytes == 4 * 3 * 4


def test_the_step_computes_what_it_computes_without():
    batch = torch.randn(2, 3, 8, 8)
    gradients = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Net()
        if watched:
            measure(model, batch)
        else:
            model(batch).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_nothing_is_left_behind():
    model = Net()
    measure(model, torch.randn(2, 3, 8, 8))
    assert saved_tensor_hooks() is None
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_graph_that_is_dropped_frees_its_memory():
    """A result that autograd keeps must not keep itself alive through the meter."""
    model, batch = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), torch.randn(3, 4)
    meter = SavedMeter()
    assert meter.start(model, batch)
    dropped, loss = model(batch), model(batch).sum()
    del dropped
    found = meter.stop(loss)
    assert found is not None
    assert found.by_module() == {"": 4 * 3 * 4, "1": 4 * 3 * 4}


def test_where_others_have_hooks_in_force_nothing_is_watched():
    model, meter = Net(), SavedMeter()
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        before = saved_tensor_hooks()
        assert not meter.start(model, torch.randn(2, 3, 8, 8))
        assert saved_tensor_hooks() == before
    assert meter.stop() is None
    assert not model._forward_pre_hooks


def test_a_compiled_model_is_watched_as_a_whole_and_is_not_compiled_again():
    from torch._dynamo.utils import counters

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    compiled, batch = torch.compile(model, backend="aot_eager"), torch.randn(3, 4)
    compiled(batch).sum().backward()
    graphs = counters["stats"]["unique_graphs"]
    meter = SavedMeter()
    assert meter.start(model, batch)
    loss = compiled(batch).sum()
    found = meter.stop(loss)
    loss.backward()
    assert found is not None
    assert found.saved_bytes == 4 * 3 * 8  # the ReLU's result
    assert counters["stats"]["unique_graphs"] == graphs
