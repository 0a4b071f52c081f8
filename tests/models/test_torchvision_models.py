import logging
import urllib.error

import pytest
import torch
from torchvision import models

from efftrain.errors import CheckpointError, ConfigError, MachineError
from efftrain.models.interface import interface_of
from efftrain.models.torchvision_models import torchvision_model
from efftrain.peft import select


@pytest.mark.parametrize(
    ("name", "norms", "channels"),
    [
        # stem 64; per stage blocks x (2 width + 4 width) and one shortcut of 4 width:
        # 64 + (3 x 384 + 256) + (4 x 768 + 512) + (6 x 1536 + 1024) + (3 x 3072 + 2048) = 26,560
        ("resnet50", 53, 26_560),
        ("mobilenet_v2", 52, 17_056),
        ("vit_b_16", 25, 25 * 768),  # two in each of 12 blocks, and a last one
    ],
)
def test_norms_have_the_known_number_of_parameters(name, norms, channels):
    with torch.device("meta"):
        model = torchvision_model(name, num_classes=1000)
    selection = select(model, "norm")
    assert selection.trainable == 2 * channels
    assert len(selection.names) == 2 * norms
    reference = models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in model.parameters()) == reference


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("mobilenet_v3_small", {}, (True, 1, (224, 224))),
        ("vgg11", {}, (True, 32, (224, 224))),
        ("vit_b_32", {}, (False, 224, (224, 224))),
        ("vit_b_32", {"image_size": 64}, (False, 224, (64, 64))),
        ("swin_t", {}, (False, 224, (224, 224))),
    ],
)
def test_it_is_known_which_images_a_model_takes(name, kwargs, expected):
    with torch.device("meta"):
        found = interface_of(torchvision_model(name, kwargs=kwargs))
    assert (found.any_image_size, found.min_image_size, found.image_size) == expected
    assert (found.channels, found.num_classes) == (3, 10)


def test_a_state_dict_of_ones_own_is_loaded_with_its_head(tmp_path):
    source = models.squeezenet1_1(num_classes=4)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    for classes in (4, None):
        model = torchvision_model("squeezenet1_1", str(tmp_path / "own.pth"), classes)
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True)
        )


def test_another_number_of_classes_gets_a_new_head_and_a_line_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = models.squeezenet1_1(num_classes=4)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    model = torchvision_model("squeezenet1_1", str(tmp_path / "own.pth"), 3)
    assert model.classifier[1].out_channels == 3
    assert interface_of(model).num_classes == 3
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "new head classifier.1 for 3 classes, with random weights: peft=norm_head"
    )


def test_torchvisions_own_weights_are_taken_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = models.squeezenet1_1()
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(source.state_dict(), cache / weights.url.rpartition("/")[2])
    for pretrained in (True, "IMAGENET1K_V1"):
        model = torchvision_model("squeezenet1_1", pretrained, num_classes=1000)
        assert torch.equal(model.classifier[1].weight, source.classifier[1].weight)
        assert torchvision_model("squeezenet1_1", pretrained, 2).classifier[1].out_channels == 2


def test_a_hub_that_is_out_of_reach_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(MachineError, match="cannot reach the hub for 'resnet18 IMAGENET1K_V1'"):
        torchvision_model("resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model.name: needs a value"),
        ({"name": "resnt50"}, "no classifier 'resnt50'; did you mean resnet50"),
        ({"name": "fcn_resnet50"}, "no classifier 'fcn_resnet50'"),
        ({"name": "resnet18", "pretrained": "IMAGENET1K_V7"}, "there are DEFAULT, IMAGENET1K_V1"),
        (
            {"name": "resnet18", "kwargs": {"weights": "DEFAULT"}},
            "model.kwargs.weights: write model",
        ),
    ],
)
def test_a_wrong_name_is_one_line_with_what_there_is(arguments, message):
    with pytest.raises(ConfigError) as caught:
        torchvision_model(**arguments)
    assert message in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="names differ"):
        torchvision_model("squeezenet1_1", str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointError, match="no file or folder"):
        torchvision_model("squeezenet1_1", "missing.pth")


def test_a_second_classifier_is_left_out_unless_asked_for():
    with torch.device("meta"):
        assert torchvision_model("googlenet").aux1 is None
        assert torchvision_model("googlenet", kwargs={"aux_logits": True}).aux1 is not None
