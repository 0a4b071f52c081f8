"""Receptive fields against published ones, hand counts and a run of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.profiling.nan_probe import verify_receptive_field
from efftrain.profiling.receptive_field import ReceptiveField, find_receptive_field
from tests.profiling import zoo


def found(model: nn.Module, size: int = 64) -> ReceptiveField:
    return find_receptive_field(model, torch.zeros(2, 3, size, size))


# Measured three ways (this arithmetic on torch.export's graph, NaN probe, gradients): audit figures
# of torchvision's models; ResNet-50's is that of v1.5, whose stride stands in the 3 x 3.
@pytest.mark.parametrize(
    ("name", "size", "mixes"),
    [
        ("resnet50", 427, False),
        ("mobilenet_v2", 491, False),
        ("mobilenet_v3_large", 595, True),  # squeeze and excitation
        ("convnext_tiny", 1688, False),
    ],
)
def test_fields_of_well_known_models(name: str, size: int, mixes: bool) -> None:
    known = zoo.build(name)
    field = find_receptive_field(known.model, known.batch)
    assert (field.size, field.stride, field.mixes_globally) == (size, 32, mixes)
    assert field.status == "complete"
    assert field.to_dict()["size"] == size


# Araujo et al. (Distill, 2019), table of well-known networks
@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [("alexnet", 195, 32), ("vgg16", 212, 32), ("inception_v3", 1311, 32)],
)
def test_published_fields(name: str, size: int, stride: int) -> None:
    extra = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **extra)
    field = find_receptive_field(model, zoo.image())
    assert (field.size, field.stride) == (size, stride)


def test_the_stride_grows_layer_by_layer() -> None:
    known = zoo.build("resnet50")
    field = find_receptive_field(known.model, known.batch)
    assert field.stride_schedule == (
        ("conv1", 2), ("maxpool", 4), ("layer2.0.conv2", 8), ("layer3.0.conv2", 16),
        ("layer4.0.conv2", 32),
    )  # fmt: skip
    assert (field.layers[0].size, field.layers[1].size) == (7, 11)


def test_stages_of_a_residual_network_are_its_resolutions() -> None:
    """He et al. 2016, table 1: 112, 56, 28, 14 and 7 positions a side; 3, 4, 6 and 3 blocks."""
    known = zoo.build("resnet50")
    found = find_receptive_field(known.model, known.batch)
    stages = found.stages
    assert [(s.stride, s.shape) for s in stages] == [
        (2, (64, 112, 112)), (4, (256, 56, 56)), (8, (512, 28, 28)), (16, (1024, 14, 14)),
        (32, (2048, 7, 7)),
    ]  # fmt: skip
    # a block has three layers and the first of each stage one beside them; the first layer of a stage
    # still works at the resolution before, and the pool begins the second
    beside = 1
    assert [s.layers for s in stages] == [
        1, 1 + 3 * 3 + beside + 1, 3 * 4 - 1 + beside + 1, 3 * 6 - 1 + beside + 1,
        3 * 3 - 1 + beside,
    ]  # fmt: skip
    assert [(s.first, s.last) for s in stages[:2]] == [
        ("conv1", "conv1"), ("maxpool", "layer2.0.conv1"),
    ]  # fmt: skip
    # stem 7, pool 11; each 3 x 3 adds twice its input's stride
    sizes = [7, 11 + 3 * 2 * 4]
    sizes.append(sizes[-1] + 2 * 4 + 3 * 2 * 8)
    sizes.append(sizes[-1] + 2 * 8 + 5 * 2 * 16)
    sizes.append(sizes[-1] + 2 * 16 + 2 * 2 * 32)
    assert [s.size for s in stages] == sizes
    assert sizes[-1] == 427
    report = found.to_dict()
    assert report["stages"][0] == {
        "stride": 2, "first": "conv1", "last": "conv1", "layers": 1, "shape": [64, 112, 112], "size": 7,
    }  # fmt: skip
    assert report["layers"][1] == {
        "path": "maxpool", "operator": "max_pool2d_with_indices", "size": 11, "stride": 4,
        "shape": [64, 56, 56],
    }  # fmt: skip
    assert sum(s.layers for s in stages) == len(report["layers"]) == 54


@pytest.mark.parametrize("name", ["vit_b_16", "timm_vit"])
def test_attention_mixes_all_positions(name: str) -> None:
    known = zoo.build(name)
    field = find_receptive_field(known.model, known.batch)
    assert field.size is None
    assert field.to_dict()["size"] == "global"
    assert field.stride == 16


def test_windows_of_attention_are_not_understood_and_that_is_said() -> None:
    known = zoo.build("swin_t")
    field = find_receptive_field(known.model, known.batch)
    assert field.status == "partial"
    assert {"bmm", "roll"} <= set(field.unknown)
    assert "size" not in field.to_dict()


def test_a_model_without_images_has_no_field() -> None:
    field = find_receptive_field(nn.Linear(3, 3), torch.zeros(1, 3))
    assert field.to_dict() == {"status": "unavailable"}
    assert verify_receptive_field(nn.Linear(3, 3), field) is field


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Summed(nn.Module):
    """Two branches of different size: the larger one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 7, padding=3), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.narrow(x)


class ChannelsLast(nn.Module):
    """As ConvNeXt: norm and linear layer over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, padding=2)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 6)
        self.last = nn.Conv2d(6, 2, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.norm(self.conv(x).permute(0, 2, 3, 1)))
        return self.last(x.permute(0, 3, 1, 2))


MODELS = {
    # 3, then (3 - 1) x 1 more, pooled by 2: +1; then (3 - 1) x 2
    "stack": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)),
        3 + 2 + 1 + 4, 2,
    ),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=4, padding=4), 9, 1),
    "strided": (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU6(), nn.Conv2d(4, 4, 5, 2, 2)), 11, 4),
    "padded": (nn.Sequential(nn.ZeroPad2d((2, 1, 2, 1)), nn.Conv2d(3, 4, 4, stride=4)), 4, 4),
    "unshuffle": (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3, padding=1)), 6, 2),
    "summed": (Summed(), 7, 1),
    "squeeze": (Squeeze(), 3, 1),
    "channels_last": (ChannelsLast(), 7, 2),
    "classifier": (
        nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        5, 4,
    ),
    # as VGG: nothing at the size that the model is made for, something at every other
    "pooled_to_size": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(32), nn.Flatten(), nn.Linear(4 * 32**2, 2)
        ),
        3, 2,
    ),
    "average": (nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(16)), 5, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_field_is_the_count_by_hand_and_a_run_confirms_it(name: str) -> None:
    model, size, stride = MODELS[name]
    field = found(model)
    assert (field.size, field.stride) == (size, stride)
    assert field.mixes_globally == (name == "squeeze")
    if name != "average":  # its last pool has a fixed size, so a wide strip is another model
        assert verify_receptive_field(model, field).verified


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "mobilenet_v3_large"])
def test_running_the_model_confirms_the_field(name: str) -> None:
    known = zoo.build(name)
    model = copy.deepcopy(known.model).to_empty(device="cpu").train()
    for tensor in model.state_dict().values():
        tensor.zero_()
    field = find_receptive_field(model, torch.zeros(1, 3, 224, 224))
    assert verify_receptive_field(model, field).verified
    assert model.training


def hugging_face(name: str) -> nn.Module:
    import transformers

    options = {"downsample_in_bottleneck": True} if name == "ResNet" else {}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


# Every convolutional network of the audit figures and their like in the three libraries.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: lambda name=name: torchvision.models.get_model(name, weights=None)
        for name in ("resnext50_32x4d", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0",
                     "vgg11", "convnext_tiny")
    },
    **{
        f"timm_{name}": lambda name=name: timm.create_model(name)
        for name in ("resnet50", "mobilenetv2_100", "mobilenetv3_large_100", "ghostnet_100")
    },
    **{
        f"transformers_{name}": lambda name=name: hugging_face(name)
        for name in ("ResNet", "MobileNetV2", "ConvNext")
    },
}  # fmt: skip
KNOWN = {"transformers_ResNet": 483, "convnext_tiny": 1688, "transformers_ConvNext": 1688}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_and_probe_agree_on_thirteen_networks(name: str) -> None:
    model = NETWORKS[name]()
    field = find_receptive_field(model, torch.zeros(1, 3, 224, 224))
    assert field.status == "complete"
    assert field.size == KNOWN.get(name, field.size)
    assert verify_receptive_field(model, field).verified


@pytest.mark.parametrize("wrong", [{"size": 10}, {"size": 12}, {"start": -6}, {"start": -4}])
def test_running_the_model_refutes_a_wrong_field(wrong: dict[str, int]) -> None:
    model = MODELS["strided"][0]
    field = found(model)
    assert (field.start, field.size) == (-5, 11)
    assert verify_receptive_field(model, field).verified
    assert not verify_receptive_field(model, replace(field, **wrong)).verified


def test_bisection_finds_what_the_graph_could_not() -> None:
    """Attention inside windows of four columns: the middle one sees its own window."""

    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            windows = x.view(batch, channels * height, width // 4, 4).permute(0, 2, 3, 1)
            mixed = (windows @ windows.mT).softmax(-1) @ windows
            return mixed.permute(0, 3, 1, 2).reshape(batch, channels, height, width) * 1

    field = find_receptive_field(Windows(), torch.zeros(1, 3, 64, 64))
    assert field.size is None
    assert field.status == "partial"
    checked = verify_receptive_field(Windows(), field)
    assert (checked.size, checked.verified) == (4, True)


def test_bisection_says_where_every_column_counts() -> None:
    class Everything(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - torch.cumsum(x.flip(-1), -1).flip(-1) - torch.cumsum(x, -1)

    field = replace(found(nn.Conv2d(3, 3, 1)), size=None, operation=5)
    checked = verify_receptive_field(Everything(), field)
    assert checked.size is None
    assert checked.to_dict()["size"] == "global"


def test_probing_needs_weights() -> None:
    known = zoo.build("resnet50")
    field = find_receptive_field(known.model, known.batch)
    with pytest.raises(ConfigError, match="meta device"):
        verify_receptive_field(known.model, field)
