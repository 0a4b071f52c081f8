import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from efftrain.errors import CheckpointError
from efftrain.models.weights import load_weights, read_weights


def test_both_formats_are_read(tmp_path):
    weights = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        model = nn.Linear(3, 2)
        load_weights(model, tmp_path / name)
        assert torch.equal(model.weight, torch.ones(2, 3))


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_the_weights_beside_an_optimizers_state_are_found(tmp_path, wrapper):
    content = {wrapper: {"bias": torch.zeros(2)}, "optimizer": {"step": 3}, "epoch": 1}
    torch.save(content, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == ["bias"]


class Payload:
    def __reduce__(self):
        import os

        return os.system, ("touch canary",)


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, "evil.pth")
    with pytest.raises(CheckpointError, match="more than tensors") as caught:
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "a.pth")


def test_a_truncated_file_is_refused(tmp_path):
    torch.save({"bias": torch.zeros(2000)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.pretrained: .* is damaged"):
        read_weights(tmp_path / "a.pth")
