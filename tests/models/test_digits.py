import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from efftrain.data.digits import DigitsData
from efftrain.errors import CheckpointError
from efftrain.models.digits import WEIGHTS, digits_mobilenetv2


def accuracy(model: nn.Module, shift: str) -> float:
    data = DigitsData(shift=shift, batch_size=150)
    data.setup()
    model.eval()
    with torch.no_grad():
        hits = [(model(x).logits.argmax(1) == y).sum().item() for x, y in data.val_dataloader()]
    return sum(hits) / 450


def test_the_weights_in_the_package_are_small_and_complete():
    assert WEIGHTS.stat().st_size < 2_000_000
    weights = load_file(WEIGHTS)
    model = digits_mobilenetv2(pretrained=False)
    assert weights.keys() == model.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == 408_650


def test_they_know_clean_digits_and_not_shifted_ones():
    model = digits_mobilenetv2()
    assert accuracy(model, "none") >= 0.97
    assert accuracy(model, "camera") < 0.4


def test_batchnorms_average_instead_of_taking_the_last_batch():
    model = digits_mobilenetv2(pretrained=False)
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_the_activation_is_relu6():
    model = digits_mobilenetv2(pretrained=False)
    assert any(isinstance(m, nn.ReLU6) for m in model.modules())
    assert model.config.hidden_act == "relu6"


def test_random_weights_are_random():
    torch.manual_seed(0)
    first = digits_mobilenetv2(pretrained=False).classifier.weight
    assert not torch.equal(first, digits_mobilenetv2(pretrained=False).classifier.weight)


def test_another_number_of_classes_needs_random_weights():
    assert digits_mobilenetv2(pretrained=False, num_classes=7).classifier.out_features == 7
    with pytest.raises(CheckpointError, match=r"as \[10, 1280\], the model \[7, "):
        digits_mobilenetv2(num_classes=7)


def test_a_file_of_ones_own_is_loaded(tmp_path):
    weights = load_file(WEIGHTS)
    weights["classifier.bias"] += 1
    save_file(weights, tmp_path / "own.safetensors")
    model = digits_mobilenetv2(pretrained=str(tmp_path / "own.safetensors"))
    assert torch.equal(model.classifier.bias, load_file(WEIGHTS)["classifier.bias"] + 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "damaged"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "damaged"),
        (lambda path: save_file({"other.weight": torch.zeros(1)}, path), "names differ"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, spoil, message):
    path = tmp_path / "weights.safetensors"
    save_file(load_file(WEIGHTS), path)
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        digits_mobilenetv2(pretrained=str(path))
    assert str(caught.value).startswith("model.pretrained: ")
    assert len(str(caught.value).splitlines()) == 1
