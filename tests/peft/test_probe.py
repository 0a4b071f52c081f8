"""What normalises is told from what only looks like it, by running it."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from efftrain.peft.probe import probe


class RMS(nn.Module):
    def __init__(self, width: int = 8, plus_one: bool = False, cut: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if plus_one else torch.ones(width))
        self.plus_one = plus_one

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.weight if self.plus_one else self.weight
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * scale


class Renamed(nn.Module):
    """Annotated-transformer style: the roles cannot be told by the usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Parameter(torch.zeros(8))
        self.first = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.first * x / x.std(-1, keepdim=True) + self.second


class Gated(RMS):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * torch.nn.functional.silu(gate)


class ChannelsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x / x.pow(2).mean(1, keepdim=True).sqrt()


class OwnBatchNorm(nn.Module):
    """Stored statistics in eval, the batch's in training, under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(8))
        self.register_buffer("seen_var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.g * x / x.std((0, 1))
        return self.g * x / self.seen_var.sqrt()


class ResponseNorm(nn.Module):
    """ConvNeXt V2's GRN, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, 8))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.norm(dim=(1, 2), keepdim=True)
        return self.weight * x * energy / energy.mean(-1, keepdim=True) + self.bias + x


class PerHead(nn.Module):
    """Normalises queries and keys, and scales the keys by head."""

    def __init__(self) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.zeros(2))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
        return 3 * q, 3 * k * self.temp[:, None]


@pytest.mark.parametrize(
    ("module", "scale", "bias", "offset"),
    [
        (RMS(), "weight", None, False),
        (RMS(plus_one=True), "weight", None, True),
        (Renamed(), "first", "second", False),
        (Gated(), "weight", None, False),
        (ChannelsFirst(), "gamma", None, False),
        (OwnBatchNorm(), "g", None, False),
        (ResponseNorm(), "weight", "bias", True),
        (PerHead(), "temp", None, False),
        (nn.LayerNorm(8), "weight", "bias", False),
        (nn.GroupNorm(2, 8), "weight", "bias", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_norm_is_recognised_and_its_parameters_roles_are_seen(
    module: nn.Module, scale: str, bias: str | None, offset: bool
) -> None:
    found = probe(module)
    assert found is not None
    assert (found.normalises, found.scale, found.bias, found.offset) == (True, scale, bias, offset)


class Times(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.weight, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: w * x,  # a layer scale
        lambda w, x: w * torch.tanh(x),  # a dynamic tanh
        lambda w, x: x + w,  # a bias
        lambda w, x: x + w * x,  # a residual layer scale
        lambda w, x: torch.where(x > 0, x, w * x),  # a PReLU
        lambda w, x: x * torch.sigmoid(w * x),  # a gate
        lambda w, x: w * torch.sign(x),  # ignores the scale of x, and everything else of it
        lambda w, x: w * torch.ones_like(x),  # ignores x
        lambda w, x: x + torch.sin(w * 7 * x),  # a snake activation
    ],
)
def test_what_does_not_normalise_is_refuted(function) -> None:
    found = probe(Times(function))
    assert found is not None
    assert not found.normalises


def test_a_module_that_cannot_be_run_alone_gives_no_answer() -> None:
    def refuse(w: Tensor, x: Tensor) -> Tensor:
        raise RuntimeError("needs a cache")

    assert probe(Times(refuse)) is None


def test_the_module_and_the_random_state_are_left_alone() -> None:
    module = RMS()
    module.weight.data.uniform_()
    before, state = module.weight.clone(), torch.get_rng_state()
    probe(module)
    assert torch.equal(module.weight, before)
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_answer_is_the_same_without_weights_and_in_low_precision() -> None:
    with torch.device("meta"):
        meta = RMS()
    assert probe(meta) == probe(RMS()) == probe(RMS().to(torch.bfloat16))


def test_a_size_that_the_module_mentions_does_not_make_a_huge_input() -> None:
    module = Times(lambda w, x: w * x)
    module.image = (4096, 4096, 64)  # 8.6e9 elements if it were taken for a layout
    found = probe(module)
    assert found is not None
    assert not found.normalises


class Warns(RMS):
    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("slow path", stacklevel=2)
        return super().forward(x)


def test_the_answer_does_not_depend_on_where_it_is_asked() -> None:
    expected = probe(RMS())
    with torch.device("meta"):
        assert probe(RMS()) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert probe(RMS()) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert probe(RMS()) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert probe(Warns()) == expected  # here warnings are errors
