import pytest


def error_lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (["modle=x"], 2, ["modle: unknown key; did you mean 'model'?"]),
        (["peft=nrom"], 2, ["peft: no option 'nrom'; did you mean 'norm'?"]),
        (["trainer.max_epochs=many"], 2, ["trainer.max_epochs: expected int or null, got 'many'"]),
        (["optim.lr=-1"], 2, ["optim.lr: must be > 0"]),
        (["optim.lr=nan", "+foo=1"], 2, ["foo: unknown key", "optim.lr: must be > 0"]),
        (["seed"], 2, ["cannot read 'seed'; write key=value"]),
        (["peft=norm,head"], 2, ["several values need -m"]),
        (["model._target_=os.system"], 2, ["model._target_: may not build 'os.system'"]),
        (["+hydra.callbacks.e._target_=torch.hub.load"], 2, ["hydra.callbacks.e._target_"]),
        (["--config-dir", "nowhere"], 2, ["--config-dir: no folder nowhere"]),
        (["--config-name", "nowhere"], 2, ["Cannot find primary config 'nowhere'"]),
        (["--experimental-rerun", "x"], 2, ["--experimental-rerun loads a pickle"]),
        (["model.pretrained=no.safetensors", "debug=fast"], 4, ["model.pretrained: no file no"]),
        (["model.num_classes=7", "debug=fast"], 4, ["check model.num_classes"]),
        (["+task.metrics.acc.averagee=x", "debug=fast"], 2, ["task: "]),
        (["peft.include=[no_such]", "debug=fast"], 2, ["peft.include"]),
        (["trainer.accelerator=nonsense", "debug=fast"], 2, ["trainer: "]),
        (["peft.method=nrom", "debug=fast"], 2, ["peft.method"]),
        (["peft.head=no.such", "peft=head", "debug=fast"], 2, ["peft.head"]),
    ],
)
def test_bad_input_is_one_line_each_with_its_exit_code(verb, overrides, code, expected):
    got, out, err = verb("train", *overrides)
    assert got == code, err
    lines = error_lines(err)
    assert len(lines) == len(expected), err
    for line in expected:
        assert any(line in found for found in lines), err
    assert "Traceback" not in err + out


def test_a_misspelt_key_in_a_yaml_file_is_found(verb, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\noptim:\n  lrr: 0.1\n")
    code, _, err = verb("train", "--config-dir", str(tmp_path / "mine"), "experiment=typo")
    assert code == 2
    (line,) = error_lines(err)
    assert "optim.lrr: unknown key; did you mean 'lr'?" in line
    assert "typo.yaml:3" in line


def test_every_job_of_a_sweep_is_checked_before_the_first_starts(verb, tmp_path):
    code, _, err = verb("train", "-m", "seed=0,1", "optim.lr=0.1,-1", "debug=fast")
    assert code == 2
    assert error_lines(err) == [
        "efftrain: optim.lr: must be > 0 and <= 1e+06, got -1 (command line)"
    ]
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_finished_runs_folder_is_not_written_into(verb, tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text("{}")
    code, _, err = verb("train", "debug=fast", f"hydra.run.dir={tmp_path / 'done'}")
    assert code == 6
    assert "holds a run already" in err
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_made_is_one_line(verb, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = verb("train", "debug=fast", f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert code == 6
    assert len(error_lines(err)) == 1


def test_an_unknown_verb_names_its_neighbour(command):
    result = command("trian")
    assert result.returncode == 2
    assert result.stderr == "efftrain: unknown verb 'trian'; did you mean 'train'?\n"


def test_the_traceback_is_shown_when_asked_for(verb, monkeypatch):
    monkeypatch.setenv("EFFTRAIN_TRACEBACK", "1")
    code, _, err = verb("train", "seed")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("efftrain: cannot read 'seed'")


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_run_that_is_not_there_is_a_checkpoint_error(verb, path):
    code, _, err = verb("eval", f"run={path}")
    assert code == 4
    assert err.startswith("efftrain: run: ")
    assert len(error_lines(err)) == 1


def test_a_gpu_that_is_not_there_is_the_machines_fault(verb, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    code, _, err = verb("train", "trainer=gpu", "debug=fast")
    assert code == 6
    (line,) = error_lines(err)
    assert line == "efftrain: trainer.accelerator=gpu: no GPU found; use trainer=cpu"
