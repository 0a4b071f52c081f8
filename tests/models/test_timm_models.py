import json
import logging

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from efftrain.errors import CheckpointError, ConfigError, MachineError
from efftrain.models.interface import interface_of
from efftrain.models.timm_models import timm_model
from efftrain.peft import select

SMALL = "test_resnet"


@pytest.fixture
def source() -> torch.nn.Module:
    return timm.create_model(SMALL, num_classes=5)


@pytest.fixture
def folder(tmp_path, source):
    save_for_hf(source, tmp_path / "hub", safe_serialization=True)
    return tmp_path / "hub"


def same(a: torch.nn.Module, b: torch.nn.Module, but: str = " ") -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs if but not in name)


def test_random_weights_of_the_right_size():
    with torch.device("meta"):
        model = timm_model("resnet50", num_classes=1000)
    assert select(model, "norm").trainable == 53_120
    assert sum(p.numel() for p in model.parameters()) == 25_557_032  # as torchvision publishes it


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        (SMALL, {}, (True, 3)),
        (SMALL, {"in_chans": 1}, (True, 1)),
        ("vit_tiny_patch16_224", {}, (False, 3, (224, 224))),
        ("vit_tiny_patch16_224", {"img_size": 64}, (False, 3, (64, 64))),
    ],
)
def test_it_is_known_which_images_a_model_takes(name, kwargs, expected):
    with torch.device("meta"):
        found = interface_of(timm_model(name, kwargs=kwargs))
    assert (found.any_image_size, found.channels, found.image_size)[: len(expected)] == expected
    assert found.num_classes == 10
    assert (found.mean is None) == (found.channels == 1), "statistics are of three channels"


def test_a_folder_as_on_the_hub_is_loaded_and_says_its_name(folder, source):
    for name in (None, SMALL, f"{SMALL}.r160_in1k"):
        assert same(timm_model(name, str(folder), 5), source)
    assert same(timm_model(None, str(folder), None), source)


def test_another_number_of_classes_gets_a_new_head_and_a_line_says_so(folder, source, caplog):
    caplog.set_level(logging.INFO)
    model = timm_model(None, str(folder), 3)
    assert model.fc.out_features == 3
    assert same(model, source, but="fc.")
    (line,) = [record.getMessage() for record in caplog.records if "efftrain" in record.name]
    assert line.startswith("new head fc for 3 classes")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_loaded_with_as_many_classes_as_it_has(tmp_path, source, suffix):
    path = tmp_path / f"own{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write(source.state_dict(), path)
    assert same(timm_model(SMALL, str(path), 5), source)
    assert same(timm_model(SMALL, str(path), None), source)
    model = timm_model(SMALL, str(path), 2)
    assert model.fc.out_features == 2
    assert same(model, source, but="fc.")


def test_another_architecture_than_the_folders_is_refused(folder):
    with pytest.raises(ConfigError, match="holds a test_resnet, not a resnet18"):
        timm_model("resnet18", str(folder))


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def drop_a_tensor(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    del weights["layer1.0.bn1.weight"]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        drop_a_tensor,
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
)
def test_a_damaged_folder_is_one_line(folder, spoil):
    spoil(folder)
    with pytest.raises(CheckpointError, match=r"^model\.pretrained: ") as caught:
        timm_model(None, str(folder), num_classes=7)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_an_unknown_architecture_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "nonet"}))
    with pytest.raises(CheckpointError, match="nonet"):
        timm_model(None, str(folder))


def test_weights_of_another_model_are_refused(tmp_path, source):
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="cannot load") as caught:
        timm_model("test_vit", str(tmp_path / "own.safetensors"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("arguments", [("resnet18", True), (None, "timm/resnet18.a1_in1k")])
def test_a_hub_that_is_out_of_reach_is_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MachineError, match="cannot reach the hub for") as caught:
        timm_model(*arguments)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model.name: needs a value"),
        ({"name": "resnt50"}, "no model 'resnt50'; did you mean"),
        ({"name": "resnet50.nope"}, "no weights 'nope' of resnet50; there are a1_in1k"),
        ({"name": "resnet200", "pretrained": True}, "timm has no weights of resnet200"),
        (
            {"name": SMALL, "kwargs": {"checkpoint_path": "x"}},
            "model.kwargs.checkpoint_path: write",
        ),
        ({"name": SMALL, "kwargs": {"num_classes": 3}}, "model.kwargs.num_classes: write"),
    ],
)
def test_a_wrong_name_is_one_line_with_what_there_is(arguments, message):
    with pytest.raises(ConfigError) as caught:
        timm_model(**arguments)
    assert message in str(caught.value)
