"""What models are put through: copied, checkpointed, hooked, autocast, frozen in parts."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from efftrain.errors import ConfigError
from efftrain.memory import reduce_memory, restore_memory
from tests.memory.steps import (
    call,
    error,
    gradients,
    randomize_norms,
    reduced_copy,
    saved_bytes,
    train_norms_alone,
)


class Net(nn.Module):
    """Convolutions, a residual, in-place activations, pooling, dropout, a shared module."""

    def __init__(self, checkpointed: str = "") -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool, self.drop = nn.MaxPool2d(3, 2, 1), nn.Dropout(0.2)
        self.head = nn.Linear(8, 5)

    def block(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)

    def forward(self, x):
        x = self.pool(self.stem(x))
        for _ in range(2):  # the same modules twice
            if self.checkpointed:
                x = checkpoint(self.block, x, use_reentrant=self.checkpointed == "reentrant")
            else:
                x = self.block(x)
        return self.head(self.drop(x).mean((2, 3)))


@pytest.fixture
def net():
    return randomize_norms(train_norms_alone(Net(), "head")).eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 12, 12)


def same(plain: nn.Module, reduced: nn.Module, batch, tolerance: float = 1e-6) -> None:
    assert error(gradients(plain, batch), gradients(reduced, batch)) <= tolerance


@pytest.mark.parametrize("training", [True, False])
def test_a_net_that_uses_its_modules_twice(net, images, training: bool) -> None:
    net.train(training)
    reduced = reduced_copy(net)
    same(net, reduced, images)
    assert saved_bytes(reduced, images) < 0.6 * saved_bytes(net, images)
    for mine, theirs in zip(reduced.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_nothing_that_others_see_by_name_changes(net, images) -> None:
    before = {name: type(m) for name, m in net.named_modules()}
    keys, attributes = list(net.state_dict()), [set(vars(m)) for m in net.modules()]
    reduce_memory(net)
    assert {name: type(m) for name, m in net.named_modules()} == before
    assert list(net.state_dict()) == keys
    restore_memory(net)
    assert [set(vars(m)) for m in net.modules()] == attributes


def test_restoring_gives_back_what_plain_torch_keeps(net, images) -> None:
    expected = saved_bytes(net, images)
    reduce_memory(net)
    assert saved_bytes(net, images) < expected
    restore_memory(net)
    assert saved_bytes(net, images) == expected


def test_a_forward_that_was_put_on_the_instance_before_is_run_and_restored(net, images) -> None:
    def doubled(x):
        return 2 * type(net).forward(net, x)

    net.__dict__["forward"] = doubled
    expected = net(images)
    reduce_memory(net)
    assert torch.equal(net(images), expected)
    restore_memory(net)
    assert net.__dict__["forward"] is doubled


@pytest.mark.parametrize(
    "carry",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.double().float()],
    ids=["deepcopy", "pickle", "cast"],
)
def test_a_copy_is_reduced_and_independent(net, images, carry) -> None:
    reduced = carry(reduced_copy(net))
    same(net, reduced, images)
    assert saved_bytes(reduced, images) < saved_bytes(net, images)
    with torch.no_grad():
        for parameter in reduced.parameters():
            parameter.zero_()
    assert not reduced(images).any()  # its forwards run on its own modules
    assert net(images).any()


@pytest.mark.parametrize("kind", ["reentrant", "by hooks"])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_checkpointing(net, images, kind: str, training: bool) -> None:
    images.requires_grad_()  # or nothing would have a gradient in a reentrant region
    net.checkpointed = kind
    net.train(training)
    same(net, reduced_copy(net), images)


def test_a_norms_output_that_enters_a_checkpointed_region(images) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act, self.conv = nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            inside = nn.Sequential(self.act, self.conv)
            return checkpoint(inside, self.norm(x), use_reentrant=False)

    plain = train_norms_alone(Inside())
    same(plain, reduced_copy(plain), images)


def test_reduced_modules_in_a_checkpointed_closure(images) -> None:
    class Closure(nn.Module):  # as torchvision's memory_efficient DenseNet
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act, self.conv = nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return checkpoint(
                lambda y: self.conv(self.act(self.norm(y))), x * 1, use_reentrant=False
            )

    plain = train_norms_alone(Closure())
    same(plain, reduced_copy(plain), images.requires_grad_())


def test_low_precision_under_autocast_on_the_cpu(net, images) -> None:
    def half(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(model, batch)

    class Half(nn.Module):
        def __init__(self, inner) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    plain = Half(net)
    reduced = reduced_copy(plain)
    assert error(gradients(plain, images), gradients(reduced, images)) <= 1e-2  # bf16: 2^-8
    truth = gradients(copy.deepcopy(net).double(), images.double())
    truth = {f"inner.{n}" if n != "loss" else n: g for n, g in truth.items()}
    off = error(truth, gradients(plain, images))
    assert error(truth, gradients(reduced, images)) <= 1.1 * off
    assert saved_bytes(reduced, images) < saved_bytes(plain, images)
    assert half(net, images)["loss"].isfinite()


def test_frozen_linear_layers_keep_no_low_precision_copies(images) -> None:
    layers = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64))
    layers = train_norms_alone(layers)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x)

    x = torch.randn(2, 64, requires_grad=True)
    plain = Half()
    reduced = reduced_copy(plain)
    assert error(gradients(plain, x), gradients(reduced, x)) <= 1e-6
    weights = 2 * 64 * 256 * 2  # bytes of both in bf16
    assert saved_bytes(plain, x) - saved_bytes(reduced, x) == weights


def test_channels_last(net, images) -> None:
    net = net.to(memory_format=torch.channels_last)
    batch = images.contiguous(memory_format=torch.channels_last)
    for training in (False, True):
        net.train(training)
        reduced = reduced_copy(net)
        same(net, reduced, batch)
        assert saved_bytes(reduced, batch) < 0.6 * saved_bytes(net, batch)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference_is_plain(net, images, context) -> None:
    reduced = reduced_copy(net)
    with context():
        assert torch.equal(reduced(images), net(images))


def test_what_is_unfrozen_later_is_trained(net, images) -> None:
    reduced = reduced_copy(net)
    for model in (net, reduced):
        model.conv1.weight.requires_grad_(True)
    same(net, reduced, images)
    assert "conv1.weight" in gradients(reduced, images)


@pytest.mark.parametrize("training", [True, False])
def test_full_fine_tuning_is_the_same_and_keeps_no_more(net, images, training: bool) -> None:
    net.requires_grad_(True).train(training)
    reduced = reduced_copy(net)
    same(net, reduced, images)
    assert saved_bytes(reduced, images) <= saved_bytes(net, images)


def test_per_sample_gradients_of_torch_func_run_plainly(net, images) -> None:
    reduced = reduced_copy(net)
    names = {n: p for n, p in net.named_parameters() if p.requires_grad}

    def sample(parameters, image, model):
        return torch.func.functional_call(model, parameters, (image[None],)).sum()

    run = torch.func.vmap(torch.func.grad(sample), in_dims=(None, 0, None))
    expected, found = run(names, images, net), run(names, images, reduced)
    assert all(torch.allclose(expected[n], found[n]) for n in names)


def test_an_unknown_mode_names_those_that_there_are(net) -> None:
    with pytest.raises(
        ConfigError, match=r"mode=all is not a mode; allowed are off, exact, recompute"
    ):
        reduce_memory(net, "all")


def test_the_signature_of_forward_can_still_be_asked_for(net) -> None:
    import inspect

    reduce_memory(net)
    assert list(inspect.signature(net.forward).parameters) == ["x"]
    assert call(net, torch.randn(1, 3, 12, 12)).shape == (1, 5)
