"""scripts/quickstart, scripts/test and .ci/run, with tools that only note that they were called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.calls = folder / "calls"
        for name in ("scripts/quickstart", "scripts/test", ".ci/run"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.tool("scripts/setup")
        for name in ("efftrain", "ruff", "pyright", "pytest"):
            self.tool(f".venv/bin/{name}")

    def tool(self, name: str, code: int = 0) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "#!/usr/bin/env bash\n"
            f'echo "$PWD: {name} $*${{PYTHONPATH:+ with PYTHONPATH}}" >>"{self.calls}"\n'
            f"echo {file.name} has spoken\n"
            f"exit {code}\n"
        )
        file.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / command[0]), *command[1:]],
            cwd=self.calls.parent,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "/other"},
            text=True,
            capture_output=True,
            timeout=60,
        )

    def called(self) -> list[str]:
        """What was called after setup, in the root of the checkout."""
        setup, *rest = self.calls.read_text().splitlines()
        assert setup.startswith(f"{self.root}: scripts/setup ")
        return [line.removeprefix(f"{self.root}: .venv/bin/") for line in rest]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


CHECKS = ["ruff check .", "ruff format --check .", "pyright "]


def test_quickstart_runs_the_default_job_from_any_folder(checkout: Checkout) -> None:
    assert checkout.run("scripts/quickstart", "debug=fast", "a=b c").returncode == 0
    assert checkout.called() == ["efftrain train debug=fast a=b c"]


@pytest.mark.parametrize("script", ["scripts/quickstart", "scripts/test"])
def test_nothing_runs_where_setup_fails(checkout: Checkout, script: str) -> None:
    checkout.tool("scripts/setup", code=6)
    assert checkout.run(script).returncode == 6
    assert checkout.called() == []


def test_quickstart_ends_as_the_job_does(checkout: Checkout) -> None:
    checkout.tool(".venv/bin/efftrain", code=5)
    assert checkout.run("scripts/quickstart").returncode == 5


def test_arguments_go_to_pytest_alone_and_its_summary_comes_last(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "-k", "a or b")
    assert done.returncode == 0
    assert checkout.called() == [*CHECKS, "pytest -k a or b"]
    assert done.stdout.splitlines()[-1] == "pytest has spoken"
    assert done.stderr.splitlines()[-1] == "==> pytest"  # nothing after it


def test_all_four_run_whatever_fails_and_the_last_line_says_what(checkout: Checkout) -> None:
    checkout.tool(".venv/bin/ruff", code=1)
    checkout.tool(".venv/bin/pytest", code=2)
    done = checkout.run("scripts/test")
    assert done.returncode == 1
    assert checkout.called() == [*CHECKS, "pytest "]
    assert done.stderr.splitlines()[-1] == "test: failed: ruff check, ruff format, pytest"


def test_one_failure_is_enough(checkout: Checkout) -> None:
    checkout.tool(".venv/bin/pyright", code=1)
    done = checkout.run("scripts/test")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "test: failed: pyright"


def test_ci_runs_what_a_person_runs(checkout: Checkout) -> None:
    assert checkout.run(".ci/run").returncode == 0
    assert checkout.called() == [*CHECKS, "pytest "]
