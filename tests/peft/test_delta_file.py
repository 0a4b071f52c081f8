"""A file that is not whole, or not a delta, is refused in one line; no bit may flip unseen."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open, save_file

from efftrain.errors import CheckpointError, MachineError
from efftrain.peft import Delta, read_delta, write_delta


@pytest.fixture
def delta() -> Delta:
    return Delta(
        tensors={"n.weight": torch.tensor([1.5, -2.0]), "n.running_var": torch.ones(1)},
        method="norm",
        groups={"norm": ("n.weight",)},
        bn_stats="update",
        base="ab" * 32,
        base_parts={"n": "cd" * 8},
        user={"task": "flöße"},
    )


def test_what_is_written_is_read(delta: Delta, tmp_path: Path) -> None:
    info = write_delta(delta, tmp_path / "new" / "task.safetensors")
    back = read_delta(info.path)
    assert back.entries() == delta.entries()
    assert all(torch.equal(back.tensors[name], value) for name, value in delta.tensors.items())
    assert (info.tensors, info.elements, info.method) == (2, 3, "norm")
    assert info.bytes == Path(info.path).stat().st_size
    assert info.sha256 == delta.sha256 == back.sha256
    assert json.loads(json.dumps(info.to_dict()))["bytes"] == info.bytes


def test_any_program_that_knows_safetensors_can_read_it(delta: Delta, tmp_path: Path) -> None:
    path = write_delta(delta, tmp_path / "task.safetensors").path
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"n.weight", "n.running_var"}
        entries = file.metadata()
    assert entries["method"] == "norm"
    assert entries["torch"] == torch.__version__
    assert entries["sha256"] == delta.sha256


def test_others_may_read_it_as_any_file_of_the_user(delta: Delta, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    path = Path(write_delta(delta, tmp_path / "task.safetensors").path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_every_flipped_bit_is_seen(delta: Delta, tmp_path: Path) -> None:
    path = tmp_path / "task.safetensors"
    write_delta(delta, path)
    content = path.read_bytes()
    for at in range(len(content)):
        broken = bytearray(content)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError) as caught:
            read_delta(path)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_a_truncated_file_is_refused(delta: Delta, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "task.safetensors"
    write_delta(delta, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"is damaged or not a safetensors file.*copy it again"
    ):
        read_delta(path)


def test_a_missing_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; check the path"):
        read_delta(tmp_path / "nowhere.safetensors")


def test_another_safetensors_file_is_no_delta(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"is no efftrain delta: its header has no method, gr"
    ):
        read_delta(tmp_path / "model.safetensors")


def test_a_format_of_the_future_is_refused(delta: Delta, tmp_path: Path) -> None:
    entries = {**delta.entries(), "format": "efftrain-delta-9", "sha256": delta.sha256}
    save_file(delta.tensors, tmp_path / "task.safetensors", entries)
    with pytest.raises(CheckpointError, match=r"has format 'efftrain-delta-9'.*upgrade efftrain"):
        read_delta(tmp_path / "task.safetensors")


def test_a_header_that_is_not_json_is_refused(delta: Delta, tmp_path: Path) -> None:
    entries = {**delta.entries(), "groups": "{", "sha256": delta.sha256}
    save_file(delta.tensors, tmp_path / "task.safetensors", entries)
    with pytest.raises(CheckpointError, match="its header cannot be read"):
        read_delta(tmp_path / "task.safetensors")


def test_a_folder_that_cannot_be_written_is_a_machine_error(delta: Delta, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        write_delta(delta, tmp_path / "file" / "task.safetensors")


def test_a_failed_write_leaves_the_old_file(delta: Delta, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "task.safetensors"
    write_delta(delta, path)
    before = path.read_bytes()

    def full(*_args, **_options) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("No space left on device")

    monkeypatch.setattr("efftrain.peft.delta_file.save_file", full)
    with pytest.raises(MachineError, match="No space left on device"):
        write_delta(delta, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
