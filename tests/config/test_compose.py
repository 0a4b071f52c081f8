from pathlib import Path

import pytest

from efftrain.config.compose import compose, expand_sweep
from efftrain.errors import ConfigError
from efftrain.paths import conf_dir


def problems_of(*overrides: str) -> list[str]:
    return [str(problem) for problem in compose("train", overrides, [conf_dir()]).problems]


def test_overrides_that_apply_leave_no_problem():
    composition = compose("train", ["peft=head", "optim.lr=0.5", "seed=3"], [conf_dir()])
    assert composition.problems == []
    assert composition.config.peft.method == "head"
    assert composition.config.optim.lr == 0.5


def test_every_bad_override_is_reported_and_the_good_ones_apply():
    overrides = ["modle=x", "peft=nrom", "optim.lrr=1", "seed=3", "optm.lr=2"]
    composition = compose("train", overrides, [conf_dir()])
    lines = [str(problem) for problem in composition.problems]
    assert lines == [
        "peft: no option 'nrom'; did you mean 'norm'? (command line)",
        "modle: unknown key; did you mean 'model'? (command line)",
        "optim.lrr: unknown key; did you mean 'lr'? (command line)",
        "optm.lr: unknown key 'optm'; did you mean 'optim'? (command line)",
    ]
    assert composition.config.seed == 3


def test_a_group_cannot_be_null_where_it_is_needed():
    (line,) = problems_of("model=null")
    assert line == "model: cannot be null (command line)"
    (line,) = problems_of("callbacks=null")
    assert line == "callbacks: cannot be null; callbacks=none switches it off (command line)"


def test_a_key_that_can_be_added_says_how():
    (line,) = problems_of("trainer.max_steps=5")
    assert line.startswith("trainer.max_steps: unknown key; to add it, write +trainer.max_steps=")


def test_an_override_that_depends_on_a_group_choice_applies():
    assert problems_of("optim.momentum=0.8", "optim=sgd") == []


def test_what_cannot_be_parsed_is_one_line_each():
    with pytest.raises(ConfigError) as caught:
        compose("train", ["seed", "optim.lr={"], [conf_dir()])
    assert len(caught.value.problems) == 2
    assert "cannot read 'seed'; write key=value" in caught.value.problems[0]


def test_broken_yaml_is_reported_with_its_line(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text("# @package _global_\nseed: 1\noptim: {lr: \n")
    (problem,) = compose("train", ["experiment=x"], [tmp_path, conf_dir()]).problems
    assert "x.yaml:4" in str(problem)


def test_a_folder_of_ones_own_wins_over_the_shipped_one(tmp_path: Path):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "norm.yaml").write_text("method: norm_scale\n")
    composition = compose("train", [], [tmp_path, conf_dir()])
    assert composition.config.peft.method == "norm_scale"


def test_sources_name_the_file_and_line_that_won(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "x.yaml"
    file.write_text("# @package _global_\noptim:\n  lr: 0.5\nseed: 4\n")
    composition = compose("train", ["experiment=x", "seed=7"], [tmp_path, conf_dir()])
    assert composition.sources.find("optim.lr").endswith("x.yaml:3")
    assert composition.sources.find("seed") == "command line"
    assert composition.sources.find("optim.weight_decay").endswith("conf/optim/adamw.yaml:6")
    assert composition.sources.find("no.such.key") == ""


def test_a_sweep_is_expanded_to_its_jobs():
    jobs = expand_sweep(["peft=norm,head", "seed=range(0,2)", "optim.lr=1e-2"])
    assert len(jobs) == 4
    assert ["peft=norm", "seed=0", "optim.lr=1e-2"] in jobs


def test_an_interval_is_left_to_its_sweeper():
    assert expand_sweep(["seed=1", "optim.lr=interval(0,1)"]) == [["seed=1"]]
