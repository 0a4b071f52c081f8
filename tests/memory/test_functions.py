"""Each function against plain autograd, for every combination of what requires a gradient."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from efftrain.memory import kernels
from tests.memory.steps import error, gradients, reduced_copy, saved_bytes

# name, layer, shape of its input
LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 11, 10)),
    "conv2d_1x1": (lambda: nn.Conv2d(4, 6, 1), (3, 4, 7, 7)),
    "conv2d_1x1_strided": (lambda: nn.Conv2d(4, 6, 1, stride=2, bias=False), (3, 4, 8, 7)),
    "conv2d_groups": (lambda: nn.Conv2d(4, 8, (3, 5), groups=2, dilation=2), (3, 4, 15, 14)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=4), (3, 4, 10, 10)),
    "conv2d_same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 9, 9)),
    "conv2d_same_even": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same"), (3, 4, 9, 9)),
    "conv2d_valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (3, 4, 9, 9)),
    "conv2d_reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (3, 4, 9, 9)),
    "conv2d_circular": (
        lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"),
        (3, 4, 9, 9),
    ),
    "conv2d_one_sample": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 2, 5, 6, 7)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 9)),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (3, 4, 6, 6),
    ),
    "transposed2d_dilated": (
        lambda: nn.ConvTranspose2d(4, 6, 3, dilation=3, output_padding=2),
        (3, 4, 6, 6),
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 4, 5)),
    "linear": (lambda: nn.Linear(6, 5), (3, 4, 6)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(5), (7, 5)),
    "batch_norm1d_line": (lambda: nn.BatchNorm1d(5), (3, 5, 8)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(5), (3, 5, 6, 7)),
    "batch_norm2d_cumulative": (lambda: nn.BatchNorm2d(5, momentum=None), (3, 5, 6, 7)),
    "batch_norm2d_no_affine": (lambda: nn.BatchNorm2d(5, affine=False), (3, 5, 6, 7)),
    "batch_norm2d_untracked": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (3, 5, 6, 7)),
    "batch_norm3d": (lambda: nn.BatchNorm3d(5), (3, 5, 2, 3, 4)),
    "layer_norm": (lambda: nn.LayerNorm(6), (3, 4, 6)),
    "layer_norm_two": (lambda: nn.LayerNorm((4, 6), bias=False), (3, 4, 6)),
    "group_norm": (lambda: nn.GroupNorm(2, 6), (3, 6, 5, 4)),
    "rms_norm": (lambda: nn.RMSNorm(6, eps=1e-5), (3, 4, 6)),
    "rms_norm_default_eps": (lambda: nn.RMSNorm(6), (3, 4, 6)),
    "rms_norm_two": (lambda: nn.RMSNorm((4, 6)), (3, 4, 6)),
    "instance_norm": (lambda: nn.InstanceNorm2d(5, affine=True), (3, 5, 6, 7)),
}


def nudge(module: nn.Module) -> nn.Module:
    """Parameters and statistics that are not 1 and 0."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return module


def combinations(module: nn.Module):
    names = [name for name, _ in module.named_parameters()]
    for chosen in itertools.product((False, True), repeat=len(names) + 1):
        if any(chosen):
            yield dict(zip([*names, "input"], chosen, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_gradients_are_torchs_whatever_requires_one(name: str, training: bool) -> None:
    make, shape = LAYERS[name]
    layer = nudge(make()).train(training)
    x = torch.randn(shape)
    for chosen in combinations(layer):
        for key, parameter in layer.named_parameters():
            parameter.requires_grad_(chosen[key])
        x.requires_grad_(chosen["input"])
        reduced = reduced_copy(layer)
        assert error(gradients(layer, x), gradients(reduced, x)) <= 1e-6, chosen
        for (key, mine), theirs in zip(reduced.named_buffers(), layer.buffers(), strict=True):
            assert torch.equal(mine, theirs), key  # running statistics move alike
        assert saved_bytes(reduced, x) <= saved_bytes(layer, x), chosen


ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda **k: nn.Hardtanh(-0.5, 0.7, **k),
    "leaky_relu": lambda **k: nn.LeakyReLU(0.1, **k),
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "gelu": lambda **k: nn.GELU(),
    "gelu_tanh": lambda **k: nn.GELU(approximate="tanh"),
    "sigmoid": lambda **k: nn.Sigmoid(),
    "tanh": lambda **k: nn.Tanh(),
}
BEFORE = {
    "batch_norm": lambda: nn.BatchNorm2d(6),
    "batch_norm_bare": lambda: nn.BatchNorm2d(6, affine=False),
    "group_norm": lambda: nn.GroupNorm(2, 6),
    "layer_norm": lambda: nn.LayerNorm(8),
    "rms_norm": lambda: nn.RMSNorm(8),
    "conv": lambda: nn.Conv2d(6, 6, 1).requires_grad_(False),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_after_a_layer_has_torchs_gradients(
    name: str, before: str, inplace: bool
) -> None:
    x = torch.randn(4, 6, 9, 8).requires_grad_()
    for training in (True, False):
        pair = nn.Sequential(nudge(BEFORE[before]()), ACTIVATIONS[name](inplace=inplace))
        pair.train(training)
        reduced = reduced_copy(pair)
        assert error(gradients(pair, x), gradients(reduced, x)) <= 1e-6
        assert saved_bytes(reduced, x) <= saved_bytes(pair, x)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
@pytest.mark.parametrize("training", [True, False])
def test_an_activation_after_a_norm_that_is_partly_frozen(frozen: str, training: bool) -> None:
    pair = nn.Sequential(nudge(nn.BatchNorm2d(6)), nn.ReLU6(inplace=True)).train(training)
    if frozen != "bias":
        pair[0].weight.requires_grad_(False)
    if frozen != "weight":
        pair[0].bias.requires_grad_(False)
    x = torch.randn(4, 6, 9, 8)
    for wanted in (True, False):
        x.requires_grad_(wanted)
        if frozen == "both" and not wanted:
            continue
        reduced = reduced_copy(pair)
        assert error(gradients(pair, x), gradients(reduced, x)) <= 1e-6
        assert saved_bytes(reduced, x) <= saved_bytes(pair, x)


POOLS = {
    "max": nn.MaxPool2d(2),
    "max_overlapping": nn.MaxPool2d(3, stride=2, padding=1),
    "max_dilated": nn.MaxPool2d((2, 3), stride=1, dilation=2),
    "max_ceil": nn.MaxPool2d(3, stride=2, ceil_mode=True),
    "max_wide": nn.MaxPool2d(5, stride=1, padding=2),
    "max_with_indices": nn.MaxPool2d(2, return_indices=True),
    "average": nn.AvgPool2d(3, stride=2, padding=1),
    "average_ceil": nn.AvgPool2d(3, stride=2, ceil_mode=True, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d((3, None)),
    "adaptive_one": nn.AdaptiveAvgPool2d(1),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", POOLS)
def test_pooling_has_torchs_gradients(name: str, layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 13, 12).contiguous(memory_format=layout).requires_grad_()
    reduced = reduced_copy(POOLS[name])
    assert error(gradients(POOLS[name], x), gradients(reduced, x)) <= 1e-6
    assert saved_bytes(reduced, x) <= saved_bytes(POOLS[name], x)


def test_a_residual_relu_keeps_one_bit_of_32() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x, y):
            out = x * 1.0
            out += y
            return self.relu(out)

    x, y = (torch.randn(4, 16, 32, 32).requires_grad_() for _ in range(2))
    plain = Residual()
    reduced = reduced_copy(plain)
    assert error(gradients(plain, (x, y)), gradients(reduced, (x, y))) <= 1e-6
    assert saved_bytes(reduced, (x, y)) == x.numel() // 8


class Gate(nn.Module):
    """SwiGLU and its relatives, with plain products around."""

    def __init__(self, act) -> None:
        super().__init__()
        self.act = act

    def forward(self, gate, up):
        return self.act(gate) * up


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.ReLU(), F.silu, torch.sigmoid])
def test_a_gated_product_has_torchs_gradients(act) -> None:
    gate, up = torch.randn(2, 3, 40).requires_grad_(), torch.randn(2, 3, 40).requires_grad_()
    plain = Gate(act)
    reduced = reduced_copy(plain)
    assert error(gradients(plain, (gate, up)), gradients(reduced, (gate, up))) <= 1e-6


def test_swiglu_keeps_nothing_but_its_two_inputs() -> None:
    gate, up = torch.randn(8, 512).requires_grad_(), torch.randn(8, 512).requires_grad_()
    plain = Gate(F.silu)
    # both inputs are there before; plain torch keeps silu(gate) as well
    assert saved_bytes(plain, (gate, up)) == 8 * 512 * 4
    assert saved_bytes(reduced_copy(plain), (gate, up)) == 0


def test_squeeze_and_excitation_keeps_no_activation_of_a_norm() -> None:
    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(8), nn.SiLU(inplace=True)

        def forward(self, x, scale):
            return self.act(self.norm(x)) * scale

    plain = nudge(Excite())
    x = torch.randn(4, 8, 16, 16).requires_grad_()
    scale = torch.rand(4, 8, 1, 1).requires_grad_()
    reduced = reduced_copy(plain)
    assert error(gradients(plain, (x, scale)), gradients(reduced, (x, scale))) <= 1e-6
    kept = saved_bytes(reduced, (x, scale))
    assert kept <= 8 * 4 * 2  # the batch's mean and deviation


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("functional", [False, True])
def test_dropout_drops_the_same_elements_forward_and_backward_as_torch(
    p: float, functional: bool
) -> None:
    class Drop(nn.Module):
        def forward(self, x):
            return F.dropout(x, p, self.training)

    plain = Drop() if functional else nn.Dropout(p)
    reduced = reduced_copy(plain)
    x = torch.rand(64, 128).add(1).requires_grad_()
    assert error(gradients(plain, x), gradients(reduced, x)) <= 1e-6
    torch.manual_seed(3)
    y = reduced(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx != 0, y != 0)
    assert 0.5 * p < (y == 0).float().mean() < 1.5 * p
    assert saved_bytes(reduced, x) == x.numel() // 8
    assert torch.equal(reduced.eval()(x), x)


@pytest.mark.parametrize("way", ["aten", "cpp"])
def test_a_block_is_the_same_by_every_kernel(way: str) -> None:
    block = nn.Sequential(
        nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32), nn.ReLU6(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.SiLU(inplace=True),
    )  # fmt: skip
    nudge(block).eval()
    for index in (0, 3):
        block[index].requires_grad_(False)
    x = torch.randn(4, 8, 28, 28).requires_grad_()
    with kernels.using(way):
        assert error(gradients(block, x), gradients(reduced_copy(block), x)) <= 1e-6
