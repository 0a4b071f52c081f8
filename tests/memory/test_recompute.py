"""Layers that expand are computed again: torch's gradients, and bytes counted by hand."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from efftrain.memory import reduce_memory
from efftrain.memory.functions.product import note_product
from efftrain.memory.origin import Memo
from tests.memory.steps import (
    error,
    gradients,
    randomize_norms,
    reduced_copy,
    saved_bytes,
    train_norms_alone,
)


def conv_norm(before: int, after: int, kernel: int = 1, groups: int = 1, act=nn.ReLU6):
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), *([act(inplace=True)] if act else []))


class Inverted(nn.Module):
    """An inverted residual: 8 channels, 48 within."""

    def __init__(self, act=nn.ReLU6) -> None:
        super().__init__()
        self.expand = conv_norm(8, 48, act=act)
        self.depthwise = conv_norm(48, 48, 3, groups=48, act=act)
        self.project = conv_norm(48, 8, act=None)

    def forward(self, x):
        return x + self.project(self.depthwise(self.expand(x)))


class Bottleneck(nn.Module):
    """64 channels, 16 within."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.middle = conv_norm(64, 16, act=nn.ReLU), conv_norm(16, 16, 3, act=nn.ReLU)
        self.expand, self.relu = conv_norm(16, 64, act=None), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.expand(self.middle(self.reduce(x)))
        out += x
        return self.relu(out)


class Excited(Inverted):
    """With squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__(nn.SiLU)
        self.squeeze = nn.Conv2d(48, 48, 1)

    def forward(self, x):
        out = self.depthwise(self.expand(x))
        out = out * self.squeeze(out.mean((2, 3), keepdim=True)).sigmoid()
        return x + self.project(out)


class Mlp(nn.Module):
    """Width 16, 64 within."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Gated(nn.Module):
    """SwiGLU: width 16, 40 within."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up = nn.RMSNorm(16), nn.Linear(16, 40), nn.Linear(16, 40)
        self.down = nn.Linear(40, 16)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


IMAGE, TOKENS = (2, 8, 10, 10), (2, 12, 16)
BLOCKS = {
    "inverted": (Inverted, IMAGE),
    "bottleneck": (Bottleneck, (2, 64, 10, 10)),
    "excited": (Excited, IMAGE),
    "mlp": (Mlp, TOKENS),
    "gated": (Gated, TOKENS),
}


def two(make, trained: str = "") -> nn.Module:
    blocks = nn.Sequential(make(), make())
    return randomize_norms(train_norms_alone(blocks, *filter(None, [trained])))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_blocks_gradients_are_torchs(name: str, training: bool) -> None:
    make, shape = BLOCKS[name]
    blocks = two(make).train(training)
    x = torch.randn(shape)
    expected = gradients(blocks, x)
    for wanted in (True, False):
        x.requires_grad_(wanted)
        exact, again = reduced_copy(blocks), reduced_copy(blocks, "recompute")
        assert error(gradients(blocks, x), gradients(again, x)) <= 1e-6
        assert saved_bytes(again, x) < saved_bytes(exact, x)
    assert error(expected, gradients(again, x)) <= 1e-6


def test_an_inverted_residual_keeps_its_narrow_ends_alone() -> None:
    block = reduced_copy(randomize_norms(train_norms_alone(Inverted())).eval(), "recompute")
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    # of x, which is there before, everything is made again; the last convolution narrows
    assert saved_bytes(block, x) == 4 * 8 * 16 * 16 * 4


def test_a_bottleneck_keeps_its_narrow_inside_and_a_bit_for_each_output() -> None:
    block = reduced_copy(randomize_norms(train_norms_alone(Bottleneck())).eval(), "recompute")
    x = torch.randn(4, 64, 16, 16, requires_grad=True)
    inside = 4 * 16 * 16 * 16 * 4
    assert saved_bytes(block, x) == 2 * inside + x.numel() // 8


def test_an_mlp_keeps_its_norms_input_and_statistics() -> None:
    block = reduced_copy(train_norms_alone(Mlp()), "recompute")
    x = torch.randn(8, 12, 16, requires_grad=True)
    assert saved_bytes(block, x) == 2 * 8 * 12 * 4  # mean and deviation of each row


def count_linear(block: nn.Module, x: torch.Tensor, monkeypatch) -> int:
    """Layers that are computed again in one backward."""
    from efftrain.memory.functions import linear

    calls = []

    def counting(*args):
        calls.append(not torch.is_grad_enabled())
        return F.linear(*args)

    def note(scope, output, input, weight, bias, run, **options):
        return note_product(scope, output, input, weight, bias, counting, **options)

    monkeypatch.setattr(linear, "note_product", note)
    block(x).sum().backward()
    return len(calls)


def test_gate_and_up_are_each_computed_again_once(monkeypatch) -> None:
    block = reduced_copy(train_norms_alone(Gated()), "recompute")
    assert count_linear(block, torch.randn(2, 3, 16, requires_grad=True), monkeypatch) == 2


def test_an_expanding_convolution_is_computed_again_once_for_all_who_need_it(monkeypatch) -> None:
    from efftrain.memory.functions import conv

    calls = []

    def note(scope, output, input, weight, bias, run, **options):
        def counting(*args):
            calls.append(weight.shape)
            return run(*args)

        return note_product(scope, output, input, weight, bias, counting, **options)

    monkeypatch.setattr(conv, "note_product", note)
    block = reduced_copy(randomize_norms(train_norms_alone(Inverted())), "recompute")
    block(torch.randn(2, 8, 6, 6, requires_grad=True)).sum().backward()
    assert sorted(calls) == [(48, 1, 3, 3), (48, 8, 1, 1)]


def test_what_was_computed_again_is_let_go_of() -> None:
    memos: list[weakref.ref[Memo]] = []
    born = Memo.__init__

    def counted(self) -> None:
        born(self)
        memos.append(weakref.ref(self))

    block = reduced_copy(randomize_norms(train_norms_alone(Inverted())), "recompute")
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    Memo.__init__ = counted
    try:
        loss = block(x).sum()
    finally:
        Memo.__init__ = born
    loss.backward()
    assert len(memos) == 2
    assert all(memo() is None or memo().value is None for memo in memos)
    del loss
    gc.collect()
    assert all(memo() is None for memo in memos)


@pytest.mark.parametrize("reentrant", [True, False])
def test_within_gradient_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Inverted(), Inverted()

        def forward(self, x):
            return self.second(checkpoint(self.first, x, use_reentrant=reentrant))

    plain = randomize_norms(train_norms_alone(Checkpointed()))
    x = torch.randn(IMAGE, requires_grad=True)
    assert error(gradients(plain, x), gradients(reduced_copy(plain, "recompute"), x)) <= 1e-6


@pytest.mark.parametrize("name", BLOCKS)
def test_under_autocast_the_same_is_computed_again(name: str) -> None:
    make, shape = BLOCKS[name]

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = two(make)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.blocks(x)

    model = Half()
    x = torch.randn(shape, requires_grad=True)
    exact, again = reduced_copy(model), reduced_copy(model, "recompute")
    assert error(gradients(exact, x), gradients(again, x)) == 0


def test_calling_again_changes_the_mode() -> None:
    block = train_norms_alone(Mlp())
    x = torch.randn(8, 12, 16, requires_grad=True)
    kept = [saved_bytes(reduced_copy(block, mode), x) for mode in ("exact", "recompute")]
    for mode, expected in zip(("recompute", "exact"), reversed(kept), strict=True):
        reduce_memory(block, mode)
        assert saved_bytes(block, x) == expected
