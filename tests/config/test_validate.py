from pathlib import Path

import pytest
from omegaconf import OmegaConf

from efftrain.config.compose import compose
from efftrain.config.schema import RANGES, EvalConfig, Range, TrainConfig
from efftrain.config.validate import validate
from efftrain.paths import conf_dir

TOKEN_DATA = ("marked_tokens", "token_chain", "text_files")


def lines(*overrides: str, folders: tuple[Path, ...] = ()) -> list[str]:
    composition = compose("train", overrides, [*folders, conf_dir()])
    config = composition.config.copy()
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return [str(problem) for problem in validate(config, TrainConfig, composition.sources)]


def test_the_default_config_is_valid():
    assert lines() == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.max_epochs=many", "trainer.max_epochs: expected int or null, got 'many'"),
        ("optim.lr=-1", "optim.lr: must be > 0 and <= 1e+06, got -1"),
        ("optim.lr=nan", "optim.lr: must be > 0 and <= 1e+06, got nan"),
        ("optim.lr=abc", "optim.lr: expected float or Tensor, got 'abc'"),
        ("trainer.max_epochs=-5", "trainer.max_epochs: must be >= -1, got -5"),
        ("data.batch_size=0", "data.batch_size: must be >= 1, got 0"),
        ("data.shift=moon", "data.shift: expected one of none, camera, got 'moon'"),
        ("peft.bn_stats=frozen", "peft.bn_stats: expected one of running, batch, update"),
        ("seed=-1", "seed: must be >= 0 and <= 4.29497e+09, got -1"),
        ("+foo=1", "foo: unknown key"),
        ("++trainer.max_epoch=1", "trainer.max_epoch: unknown key; did you mean 'max_epochs'?"),
        ("+peft.mehtod=x", "peft.mehtod: unknown key; did you mean 'method'?"),
        ("~task.loss", "task.loss: missing"),
        ("~seed", "seed: missing"),
        ("optim._target_=os.system", "optim._target_: may not build 'os.system'"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("seed=???", "seed: needs a value: set it on the command line"),
        ("~optim", "optim: missing"),
        ("callbacks.progress=7", "callbacks.progress: expected _target_ and its arguments, got 7"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_key(override, expected):
    found = lines(override)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_all_problems_are_reported_together_with_file_and_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(
        "# @package _global_\noptm:\n  lr: 1\ntrainer:\n  max_epoch: 3\n  max_steps: few\n"
    )
    found = lines("experiment=typo", "optim.lr=-1", folders=(tmp_path,))
    assert len(found) == 4
    assert any(
        "optm: unknown key; did you mean 'optim'?" in x and "typo.yaml:2" in x for x in found
    )
    assert any("trainer.max_epoch: unknown key" in x and "typo.yaml:5" in x for x in found)
    assert any("trainer.max_steps: expected int" in x and "typo.yaml:6" in x for x in found)
    assert any("optim.lr: must be > 0" in x and "command line" in x for x in found)


def test_a_null_switches_an_optional_entry_off():
    assert lines("callbacks.progress=null", "scheduler=null", "logger=null") == []


def test_an_evaluation_needs_a_run():
    config = compose("eval", [], [conf_dir()]).config.copy()
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    assert [p.key for p in validate(config, EvalConfig)] == ["run"]


def test_ranges_leave_out_what_is_no_number():
    assert float("nan") not in Range(0)
    assert 0 not in Range(0, low_open=True)
    assert 0 in Range(0)
    assert 2 not in Range(0, 1)


def test_every_range_is_of_a_key_that_some_config_has():
    keys = set()
    for overrides in ([], ["optim=sgd"], *([f"data={name}"] for name in TOKEN_DATA)):
        config = compose("train", overrides, [conf_dir()]).config
        keys |= {key for key in RANGES if OmegaConf.select(config, key, default="?") != "?"}
    profile = compose("profile", [], [conf_dir()]).config
    keys |= {key for key in RANGES if OmegaConf.select(profile, key, default="?") != "?"}
    assert keys | {"trainer.max_steps"} == set(RANGES)
