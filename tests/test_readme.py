"""The README's commands and code run as they stand there."""

import os
import re
import shlex
import subprocess

import pytest

from tests.conftest import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


EFFTRAIN = [words for words in commands() if words[0] == "efftrain"]
SCRIPTS = [words for words in commands() if words[0] != "efftrain"]


def test_the_two_commands_for_a_fresh_clone_come_first():
    assert SCRIPTS == commands()[:2] == [["./scripts/quickstart"], ["./scripts/test"]]
    assert "exec ./scripts/test" in (CHECKOUT / ".ci" / "run").read_text()


def test_quickstart_runs_from_any_folder(tmp_path):
    run = tmp_path / "run"
    result = subprocess.run(
        [str(CHECKOUT / "scripts" / "quickstart"), "debug=fast", f"hydra.run.dir={run}"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == f"tensorboard --logdir {run}/tb"
    assert (run / "summary.json").is_file()


@pytest.mark.parametrize("words", EFFTRAIN, ids=" ".join)
def test_a_command_runs(verb, tmp_path, words):
    _, name, *rest = words
    if name == "train" and "--cfg" not in rest:
        place = "hydra.sweep.dir" if "-m" in rest else "hydra.run.dir"
        rest += ["debug=fast", f"{place}={tmp_path / 'run'}"]
    code, out, err = verb(name, *rest)
    assert code == 0, err
    assert out.strip()


@pytest.mark.parametrize("source", blocks("python"), ids=["train", "profile"])
def test_a_python_example_runs(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(source, "README.md", "exec"), names)
    if "report" in names:
        assert names["report"].params.trainable == 14_080
    else:
        assert (tmp_path / "task.safetensors").stat().st_size < 100_000


def test_the_error_example_prints_what_it_says(verb):
    (example,) = [block for block in blocks("console") if block.startswith("$ ")]
    first, *expected = example.splitlines()
    _, _, name, *rest = shlex.split(first)
    code, _, err = verb(name, *rest)
    assert code == 2
    assert err.splitlines() == expected


def test_every_file_that_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (CHECKOUT / target).exists(), target
