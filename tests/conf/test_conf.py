import json
import subprocess
import sys
from pathlib import Path

import pytest

from efftrain.cli.configs import check_option, list_groups, summarise
from efftrain.config.compose import compose
from efftrain.paths import conf_dir

GROUPS = list_groups([conf_dir()])
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_validates(group, option):
    assert check_option(group, option, [conf_dir()]) == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_what_it_is_for(group, option):
    assert summarise(GROUPS[group][option]).endswith((".", ":", "?"))


def test_no_yaml_is_out_of_reach():
    reachable = {path for options in GROUPS.values() for path in options.values()}
    primaries = set(conf_dir().glob("*.yaml"))
    hydras_own = set(conf_dir().glob("hydra/*/*.yaml"))
    assert set(conf_dir().rglob("*.yaml")) == reachable | primaries | hydras_own
    assert {path.name for path in primaries} == {
        "job.yaml", "train.yaml", "eval.yaml", "export.yaml", "profile.yaml"
    }  # fmt: skip


def test_the_listing_shows_every_option(command):
    result = command("configs", "ls")
    assert result.returncode == 0
    for _, option in OPTIONS:
        assert f"  {option} " in result.stdout


def test_checking_finds_a_broken_file_of_ones_own(command, tmp_path: Path):
    (tmp_path / "mine" / "optim").mkdir(parents=True)
    (tmp_path / "mine" / "optim" / "bad.yaml").write_text("_target_: torch.optim.SGD\nlrr: 1\n")
    result = command("configs", "check", "optim", "--config-dir", str(tmp_path / "mine"))
    assert result.returncode == 2
    assert "bad.yaml" in result.stderr
    assert "optim.lrr: unknown key; did you mean 'lr'?" in result.stderr
    shipped = len(GROUPS["optim"])
    assert f"{shipped} of {shipped + 1} configs compose and validate" in result.stdout


def test_an_unknown_group_is_named(command):
    result = command("configs", "ls", "pfet")
    assert result.returncode == 2
    assert "no group 'pfet'" in result.stderr


def test_the_norms_of_a_model_are_listed_with_their_coverage(verb):
    code, out, err = verb("configs", "norms")
    assert code == 0, err
    assert "mobilenet_v2.conv_stem.first_conv.normalization" in out
    assert out.strip().splitlines()[-1] == (
        "norm layers: 52 || norm params: 14,080 || coverage%: 100.00"
    )


def test_the_norms_are_listed_for_programs(verb):
    code, out, err = verb("configs", "norms", "--format", "json")
    assert code == 0, err
    listed = json.loads(out)
    assert sum(site["channels"] for site in listed["sites"]) == 7_040
    assert listed["pct"] == 100.0


def test_a_wrong_override_of_the_listing_is_one_line(verb):
    code, _, err = verb("configs", "norms", "modle=x")
    assert code == 2
    assert err == "efftrain: modle: unknown key; did you mean 'model'? (command line)\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{Path(sys.executable).with_name('efftrain')} configs ls | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout == "callbacks=\n"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [([], 2e-2), (["optim=adamw"], 1e-3), (["model=timm"], 1e-3), (["optim=sgd"], 0.05)],
)
def test_a_model_may_choose_its_optimizer_and_the_command_line_has_the_last_word(overrides, lr):
    assert compose("train", overrides, [conf_dir()]).config.optim.lr == lr
