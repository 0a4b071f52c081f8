import errno
import urllib.error
from email.message import Message

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError

from efftrain.errors import CheckpointError, ConfigError, MachineError
from efftrain.models.hub import loading, local_path


def test_a_hub_id_is_no_path_and_an_existing_path_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path("resnet50") is None
    assert local_path("timm/resnet50.a1_in1k") is None
    (tmp_path / "timm").mkdir()
    assert local_path("timm").is_dir()


@pytest.mark.parametrize("source", ["./x", "../x", "~/no/such", "/no/such", "a/b/c", "x.pth"])
def test_what_can_only_be_a_path_is_not_looked_for_on_a_hub(source):
    with pytest.raises(CheckpointError, match=r"model\.name: no file or folder"):
        local_path(source, "model.name")


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (LocalEntryNotFoundError("no"), MachineError, "cannot reach the hub for 'x'"),
        (OfflineModeIsEnabled("no"), MachineError, "model.pretrained=<path>"),
        (caused(OSError("We"), LocalEntryNotFoundError("no")), MachineError, "cannot reach"),
        (urllib.error.URLError("no name"), MachineError, "cannot reach the hub"),
        (ConnectionRefusedError(), MachineError, "cannot reach the hub"),
        (OSError(errno.ENOSPC, "No space left"), MachineError, "disk is full"),
        (ModuleNotFoundError("No module", name="sentencepiece"), MachineError, "pip install sente"),
        (
            urllib.error.HTTPError("u", 404, "Not Found", Message(), None),
            CheckpointError,
            "does not give 'x'",
        ),
        (SafetensorError("header too small"), CheckpointError, "header too small"),
        (RuntimeError("a\nb"), CheckpointError, "cannot load 'x': a b"),
    ],
)
def test_a_librarys_error_becomes_one_line_of_the_right_kind(error, kind, words):
    with pytest.raises(kind, match=r"^model\.pretrained: ") as caught, loading("x"):
        raise error
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_our_own_errors_pass_and_so_does_an_interrupt():
    with pytest.raises(ConfigError, match="mine"), loading("x"):
        raise ConfigError("mine")
    with pytest.raises(KeyboardInterrupt), loading("x"):
        raise KeyboardInterrupt
