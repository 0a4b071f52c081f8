"""Activations as the course counts them, against hand counts, published figures and fvcore."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from efftrain.profiling.activations import Alive, count_activations
from efftrain.profiling.second_opinion import ask_fvcore
from tests.profiling import zoo


def alexnet(inplace: bool) -> nn.Module:
    """Krizhevsky et al. 2012 with its two groups, on 224 x 224 as the lecture counts it."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4, padding=2),
        nn.ReLU(inplace),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(inplace),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(inplace),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(inplace),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace),
        nn.Dropout(),
        nn.Linear(4096, 1000),
    )


ALEXNET = {
    "input": 150_528, "0": 290_400, "2": 69_984, "3": 186_624, "5": 43_264, "6": 64_896,
    "8": 64_896, "10": 43_264, "12": 9_216, "14": 4_096, "17": 4_096, "20": 1_000,
}  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
def test_alexnets_hand_count_to_the_last_digit(inplace: bool) -> None:
    from efftrain.profiling.count import count_forward

    with torch.device("meta"):
        model = alexnet(inplace)
    found = count_activations(model, zoo.image(4))
    assert found.by_module == ALEXNET
    assert found.total == sum(ALEXNET.values()) == 932_264
    assert (found.peak, found.peak_layer) == (440_928, "0")
    assert found.alive_at_peak == (Alive("input", "", 150_528), Alive("0", "convolution", 290_400))
    assert count_forward(model.eval(), zoo.image()).macs() == 724_406_816


def test_activation_functions_count_where_they_are_not_fused() -> None:
    with torch.device("meta"):
        model = alexnet(inplace=False)
    found = count_activations(model, zoo.image())
    functions = 290_400 + 186_624 + 64_896 + 64_896 + 43_264 + 4_096 + 4_096
    assert found.unfused_total == 932_264 + functions
    assert found.unfused_peak == 2 * 290_400
    with torch.device("meta"):
        model = alexnet(inplace=True)
    assert count_activations(model, zoo.image()).unfused_total == 932_264


# resnet50: the first block's input, its third convolution and the one beside it.
# mobilenet_v2: 96 channels at 112 x 112 and the depthwise result at 56 x 56.
@pytest.mark.parametrize(
    ("name", "peak", "layer", "unfused"),
    [
        ("resnet50", 64 * 56**2 + 2 * 256 * 56**2, "layer1.0.downsample.0", 3 * 256 * 56**2),
        ("mobilenet_v2", 96 * 112**2 + 96 * 56**2, "features.2.conv.1.0", 2 * 96 * 112**2),
    ],
)
def test_peaks_of_well_known_models(name: str, peak: int, layer: str, unfused: int) -> None:
    known = zoo.build(name)
    found = count_activations(known.model, known.batch)
    assert (found.peak, found.peak_layer) == (peak, layer)
    assert found.peak == {"resnet50": 1_806_336, "mobilenet_v2": 1_505_280}[name]
    assert found.unfused_peak == unfused


def test_the_peak_of_a_microcontrollers_model_is_near_the_published_one() -> None:
    """MobileNetV2-0.35 at 144: 308 kB at one byte each (TinyEngine), runtime buffers included."""
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2(width_mult=0.35)
    peak = count_activations(model, torch.zeros(1, 3, 144, 144, device="meta")).peak
    # expanding 8 to 48 channels at 72 x 72 and the depthwise result at 36 x 36
    assert peak == 48 * 72**2 + 48 * 36**2
    assert peak / 1024 == pytest.approx(308, rel=0.02)


FVCORE = [
    "resnet50",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]


@pytest.mark.parametrize("name", FVCORE)
def test_outputs_of_convolutions_and_linear_layers_are_what_fvcore_counts(name: str) -> None:
    known = zoo.build(name)
    model = copy.deepcopy(known.model).to_empty(device="cpu").train()
    for tensor in model.state_dict().values():
        tensor.zero_()  # fvcore runs the model
    image = torch.zeros(2, 3, 224, 224)
    opinion = ask_fvcore(model, image)
    assert opinion is not None
    assert count_activations(model, image).conv_linear == opinion.conv_linear
    assert all(module.training for module in model.modules())


def test_fvcore_says_nothing_where_it_cannot_count() -> None:
    with torch.device("meta"):
        assert ask_fvcore(nn.Linear(4, 4), torch.zeros(1, 4)) is None
    assert ask_fvcore(nn.Linear(4, 4), {"input": torch.zeros(1, 4)}) is None
    opinion = ask_fvcore(nn.Linear(4, 3), torch.zeros(2, 4))
    assert opinion is not None
    assert opinion.to_dict() == {"flops": 12, "conv_linear": 3, "unsupported": {}}


class Residual(nn.Module):
    """y = x + linear(norm(x)): the norm's input is needed again."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x + self.linear(self.norm(x))


class Rms(nn.Module):
    """Root mean square, in steps, as Hugging Face writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), Rms()])
def test_a_norm_before_a_branch_needs_a_tensor_of_its_own(norm: nn.Module) -> None:
    found = count_activations(Residual(norm), torch.zeros(1, 4, 8))
    # the input (ReLU is written over it), the norm, the linear layer, the sum
    assert found.total == 4 * 32
    # at the linear layer: x for the sum, the norm, the result
    assert (found.peak, found.peak_layer) == (3 * 32, "linear")


def test_a_concatenation_is_a_tensor_and_its_parts_are_alive_beside_it() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv(x)], 1)

    found = count_activations(Dense(), torch.zeros(1, 2, 4, 4))
    assert found.total == (2 + 3 + 5) * 16
    assert found.peak == (2 + 3 + 5) * 16


def test_a_view_keeps_its_base_alive() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 16)
            self.out = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            value, gate = self.linear(x).chunk(2, -1)
            return self.out(value) + gate[:, :4]

    found = count_activations(Gate(), torch.zeros(1, 4))
    assert found.total == 4 + 16 + 4 + 4
    assert found.peak == 4 + 16  # at the first layer, and again at the second


def test_a_squeeze_and_excitation_keeps_what_it_scales() -> None:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 1)
            self.one, self.two = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            scale = x.mean((2, 3), keepdim=True)
            return x * self.two(self.one(scale).relu()).sigmoid()

    found = count_activations(Squeeze(), torch.zeros(1, 2, 4, 4))
    assert found.total == 32 + 128 + 8 + 4 + 8  # the product is written over what it scales
    assert found.peak == 32 + 128
    assert found.to_dict().keys() == {
        "total", "peak", "peak_layer", "unfused_total", "unfused_peak", "conv_linear",
    }  # fmt: skip
