"""Whole models: what a step of theirs costs, against closed forms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efftrain.errors import ConfigError
from efftrain.profiling.count import count_forward, count_step
from tests.profiling import zoo


def on_cpu(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, device="cpu")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_forward_is_the_closed_form_in_eval_and_train_on_meta_and_cpu(name: str) -> None:
    known = zoo.build(name)
    with_weights = copy.deepcopy(known.model).to_empty(device="cpu")
    real = torch.utils._pytree.tree_map(on_cpu, known.batch)
    for model, batch in ((known.model, known.batch), (with_weights, real)):
        for training in (False, True):
            count = count_forward(model.train(training), batch)
            assert count.macs() == count.macs("forward") == known.macs
            assert count.uncounted == {}
            assert count.coverage_pct == 100
            assert not count.values


# thop, torchinfo, calflops and fvcore agree on these two to within their norms and pools
@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [("resnet50", 4_089_184_256, 25_557_032), ("mobilenet_v2", 300_774_272, 3_504_872)],
)
def test_forward_is_the_published_figure(name: str, macs: int, params: int) -> None:
    known = zoo.build(name)
    assert count_forward(known.model.eval(), known.batch).macs() == macs
    assert sum(p.numel() for p in known.model.parameters()) == params


class Block(nn.Module):
    def __init__(self, recompute: bool, reentrant: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.recompute = recompute
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if not self.recompute:
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_shows_as_recomputation_and_changes_nothing_else(reentrant: bool) -> None:
    batch = torch.zeros(4, 8, requires_grad=True)
    plain = count_step(Block(recompute=False), batch).macs_by_phase()
    again = count_step(Block(recompute=True, reentrant=reentrant), batch).macs_by_phase()
    assert plain["recompute"] == 0
    # the second linear layer's output is needed by nobody, so torch stops before it where it can
    assert again["recompute"] == 4 * 8 * 16 * (2 if reentrant else 1)
    assert {**again, "recompute": 0} == plain


def test_calls_belong_to_the_module_that_made_them_in_backward_too() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 4)))
    count = count_step(model, torch.zeros(2, 8))
    assert count.macs_by_module("forward") == {
        "": 2 * (8 * 16 + 16 * 4), "0": 2 * 8 * 16, "1": 2 * 16 * 4, "1.1": 2 * 16 * 4, "1.0": 0,
    }  # fmt: skip
    weights = count.macs_by_module("backward_weights")
    assert (weights["0"], weights["1.1"]) == (2 * 8 * 16, 2 * 16 * 4)
    assert count.macs_by_module("backward_inputs")["1.1"] == 2 * 16 * 4
    assert "0" not in count.macs_by_module("backward_inputs")
    assert count.macs_by_operator("forward") == {"addmm": 2 * (8 * 16 + 16 * 4)}


def test_a_module_that_runs_three_times_counts_three_times() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, layer, layer)
    assert count_forward(model, torch.zeros(2, 8)).macs_by_module() == {"": 384, "0": 384}


def test_the_optimizer_is_a_phase_of_its_own() -> None:
    model = nn.Linear(10, 10, bias=False)
    assert count_step(model, torch.zeros(1, 10)).flops("optimizer") == 0
    sgd = count_step(
        model, torch.zeros(1, 10), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, foreach=False)
    )
    assert sgd.flops("optimizer") == 100  # w += -lr * g, one operation of torch's add_


def test_integers_are_no_floating_point_operations() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + 1

    count = count_forward(Positions(), torch.zeros(10, dtype=torch.long))
    assert (count.flops(), count.integer_ops()) == (0, 20)
    count = count_forward(Positions(), torch.zeros(10))
    assert (count.flops(), count.integer_ops()) == (20, 0)


def test_what_has_no_formula_is_listed_with_its_share() -> None:
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x + 1).values

    count = count_forward(Sorting(), torch.zeros(10))
    assert count.uncounted == {"sort": 20}  # values and indices
    assert count.coverage_pct == pytest.approx(100 / 3)
    assert count.to_dict()["uncounted"] == {"sort": 20}


class Asking(nn.Module):
    """A model that cannot run without values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        times = int(x.sum().item())
        for _ in range(times):
            x = self.dropout(self.norm(self.layer(x)))
        return x


@pytest.mark.parametrize("model", [Asking(), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))])
def test_counting_changes_nothing(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    batch = torch.ones(2, 4, requires_grad=True)
    before = copy.deepcopy(model.state_dict())
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    count_step(model, batch, optimizer=torch.optim.AdamW)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert batch.grad is None
    assert getattr(model, "calls", 0) == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_asks_for_values_is_run_with_values() -> None:
    count = count_forward(Asking(), torch.ones(2, 4) / 2)
    assert count.values
    assert count.macs() == 4 * 2 * 4 * 4
    assert not count_forward(nn.Linear(4, 4), torch.ones(2, 4)).values


def test_a_model_that_asks_for_values_and_has_none_is_an_error_that_says_so() -> None:
    with torch.device("meta"):
        model = Asking()
    with pytest.raises(ConfigError, match=r"Asking could not be run on shapes alone .*weights"):
        count_forward(model, torch.ones(2, 4, device="meta"))


def test_an_error_of_the_model_itself_is_shown_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        count_forward(nn.Linear(4, 4), torch.zeros(2, 5))


def test_the_loss_is_part_of_the_step() -> None:
    model = nn.Linear(4, 4)
    count = count_step(model, torch.zeros(2, 4), lambda output: (output @ output.T).sum())
    assert count.macs("forward") == 2 * 4 * 4 + 2 * 2 * 4
    # two gradients of the product, both for activations; the layer's weight
    assert count.macs("backward_inputs") == 2 * 2 * 2 * 4
    assert count.macs("backward_weights") == 2 * 4 * 4


def test_a_call_that_makes_both_gradients_moves_its_tensors_once() -> None:
    conv, batch = nn.Conv2d(2, 3, 1, bias=False), torch.zeros(1, 2, 4, 4, requires_grad=True)
    moved = {
        entry.phase: entry.bytes_moved
        for entry in count_step(conv, batch).entries
        if "convolution" in entry.operator
    }
    image, weight, result = 32, 6, 48
    assert moved == {
        "forward": 4 * (image + weight + result),
        # reads the gradient, the image and the weight; writes two gradients
        "backward_inputs": 4 * (result + image + weight + image + weight),
        "backward_weights": 0,
    }
