import importlib

import pytest

from efftrain.config.allow import ALLOWED, TRUST_VARIABLE, read_trust, resolve, resolved_name
from efftrain.config.build import build
from efftrain.errors import ConfigError

# Spellings that have run code in an app built on Hydra: direct, through an alias, through a
# method, and through a module that another one imported.
PAYLOADS = [
    ("os.system", ["touch {canary}"]),
    ("posix.system", ["touch {canary}"]),
    ("torch.load", ["{pickle}"]),
    ("torch.serialization.load", ["{pickle}"]),
    ("torch.nn.modules.module.torch.load", ["{pickle}"]),
    ("torch.hub.load", ["{folder}", "entry"]),
    ("torch.nn.modules.module.torch.os.system", ["touch {canary}"]),
    ("lightning.pytorch.trainer.trainer.os.system", ["touch {canary}"]),
    ("efftrain.files.os.system", ["touch {canary}"]),
    ("efftrain.files.write_text", ["{canary}", "x"]),
    ("efftrain.config.build.hydra.utils.instantiate", []),
    ("shutil.copy", ["{source}", "{canary}"]),
    ("builtins.open", ["{canary}", "w"]),
    ("builtins.eval", ["open('{canary}', 'w')"]),
    ("subprocess.run", [["touch", "{canary}"]]),
    ("numpy.load", ["{pickle}"]),
    ("pathlib.Path.touch", ["{canary}"]),
]


def fill(value, names):
    if isinstance(value, list):
        return [fill(item, names) for item in value]
    return value.format(**names)


@pytest.mark.parametrize(("target", "arguments"), PAYLOADS)
def test_a_payload_neither_runs_nor_leaves_a_file(target, arguments, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    canary = tmp_path / "canary"
    (folder / "hubconf.py").write_text(f"open({str(canary)!r}, 'w')\n")
    pickle = tmp_path / "evil.pt"
    pickle.write_bytes(f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode())
    names = {"canary": canary, "pickle": pickle, "folder": folder, "source": pickle}
    node = {"_target_": target, "_args_": fill(arguments, names)}
    with pytest.raises(ConfigError, match=r"may not build|no '"):
        build(node, "model")
    assert not canary.exists()


def test_a_payload_inside_an_allowed_node_does_not_run(tmp_path):
    canary = tmp_path / "canary"
    node = {
        "_target_": "torch.nn.CrossEntropyLoss",
        "weight": {"_target_": "os.system", "_args_": [f"touch {canary}"]},
    }
    with pytest.raises(
        ConfigError, match=r"task\.loss\.weight\._target_: may not build 'os.system'"
    ):
        build(node, "task.loss")
    assert not canary.exists()


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_every_allowed_name_is_where_it_says(name):
    module, _, attribute = name.rpartition(".")
    assert resolved_name(getattr(importlib.import_module(module), attribute)) == name


def test_an_alias_of_an_allowed_class_is_that_class():
    import torch

    assert resolve("torch.optim.AdamW") is torch.optim.AdamW


def test_a_users_package_needs_trust_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "mypkg.py").write_text("import os\nclass Net: pass\nsystem = os.system\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="set EFFTRAIN_TRUST=mypkg"):
        resolve("mypkg.Net")
    assert "mypkg" not in __import__("sys").modules, "an untrusted package is not even imported"
    monkeypatch.setenv(TRUST_VARIABLE, "other, mypkg")
    with pytest.raises(ConfigError):
        resolve("mypkg.Net")  # what is set after the start, as hydra.job.env_set can, is too late
    monkeypatch.setattr("efftrain.config.allow._TRUSTED", read_trust())
    assert resolve("mypkg.Net").__name__ == "Net"
    with pytest.raises(ConfigError, match=r"which is (posix|nt)\.system"):
        resolve("mypkg.system")


def test_a_misspelt_class_is_named_with_its_neighbour():
    with pytest.raises(ConfigError, match=r"no 'AdamWW' in torch\.optim; did you mean 'AdamW'"):
        resolve("torch.optim.AdamWW")


@pytest.mark.parametrize("target", ["torch", "torch..load", "torch.optim.AdamW()", "torch.nan"])
def test_what_is_no_class_or_function_is_refused(target):
    with pytest.raises(ConfigError):
        resolve(target)


def test_a_constructors_complaint_becomes_one_line():
    with pytest.raises(ConfigError, match="optim: ValueError: Invalid learning rate: -1") as caught:
        build({"_target_": "torch.optim.SGD", "lr": -1, "params": []}, "optim")
    assert len(str(caught.value).splitlines()) == 1


def test_the_working_folder_is_not_searched_for_an_untrusted_package(tmp_path, monkeypatch):
    (tmp_path / "sneaky.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError):
        resolve("sneaky.Net")
    assert [path.name for path in tmp_path.iterdir()] == ["sneaky.py"]


def test_a_trusted_package_that_is_not_there_or_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("efftrain.config.allow._TRUSTED", frozenset({"absent", "failing"}))
    with pytest.raises(ConfigError, match=r"cannot import absent .* is it on PYTHONPATH"):
        resolve("absent.Net")
    with pytest.raises(ConfigError, match=r"cannot import failing .*ZeroDivisionError"):
        resolve("failing.Net")


def test_an_escaped_interpolation_is_not_resolved_once_more(tmp_path):
    canary = tmp_path / "canary"
    hidden = f"${{oc.create:{{_target_: shutil.copy, src: {__file__}, dst: {canary}}}}}"
    node = {"_target_": "torch.nn.CrossEntropyLoss", "reduction": hidden}
    with pytest.raises(ConfigError, match=r"task\.loss\.reduction: .* is left after"):
        build(node, "task.loss")
    assert not canary.exists()
