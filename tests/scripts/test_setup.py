"""scripts/setup with a Python and a pip that only pretend: what it does, says and leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.checkout import Checkout

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout on a machine without Python."""
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    """A checkout on a machine with Python 3.12."""
    checkout.python("python3", "3.12.1")
    return checkout


def only_line(done: subprocess.CompletedProcess[str], code: int = 6) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr


# --- what is missing is said in one line, and nothing is left behind -------------------------------


def test_no_python_at_all(checkout: Checkout) -> None:
    line = only_line(checkout.setup())
    assert "no Python: install Python 3.10 to 3.13" in line
    assert not checkout.venv.exists()


@pytest.mark.parametrize("version", ["2.7.18", "3.8.18", "3.9.2"])
def test_a_python_that_is_too_old_is_named_with_its_version(
    checkout: Checkout, version: str
) -> None:
    checkout.python("python3", version)
    line = only_line(checkout.setup())
    assert f"python3 is Python {version}, too old: install Python 3.10 to 3.13" in line
    assert not checkout.venv.exists()


def test_a_python_that_is_too_new_is_named_with_its_version(checkout: Checkout) -> None:
    checkout.python("python3", "3.14.0")
    assert "python3 is Python 3.14.0, too new" in only_line(checkout.setup())
    assert not checkout.venv.exists()


def test_a_python_without_venv_says_which_package_brings_it(checkout: Checkout) -> None:
    checkout.python("python", "3.8.1")
    checkout.python("python3", "3.11.2", lacks_venv=True)
    line = only_line(checkout.setup())
    assert "python3 (3.11) has no venv" in line
    assert "apt install python3-venv" in line
    assert not checkout.venv.exists()


def test_a_full_disk_is_said_before_anything_is_installed(ready: Checkout) -> None:
    ready.disk(free_kib=100 * 1024)
    line = only_line(ready.setup())
    assert "100 MiB free" in line
    assert str(ready.root) in line
    assert not ready.venv.exists()
    assert ready.pip_calls() == []


def test_a_python_that_the_user_names_is_not_replaced_by_another(ready: Checkout) -> None:
    assert "PYTHON=/no/such/python" in only_line(ready.setup(PYTHON="/no/such/python"))
    old = ready.python("old-python", "3.9.1")
    assert f"{old} is Python 3.9.1, too old" in only_line(ready.setup(PYTHON=str(old)))
    assert not ready.venv.exists()


def test_an_extra_that_does_not_exist_is_a_usage_error(ready: Checkout) -> None:
    line = only_line(ready.setup("dev", "develop"), code=2)
    assert "unknown extra 'develop': choose from timm, peft, " in line
    assert not ready.venv.exists()


def test_pips_own_error_is_passed_on_with_the_log(ready: Checkout) -> None:
    said = "Looking\n    ERROR: No matching distribution found for torch\n\n[notice] a new pip"
    done = ready.setup(PIP_SAYS=said, PIP_EXIT="1")
    assert done.returncode == 6
    last = done.stderr.splitlines()[-1]
    assert "pip failed: ERROR: No matching distribution found for torch" in last
    log = ready.venv / "setup.log"
    assert str(log) in last
    assert log.read_text().strip() == said


# --- which Python ---------------------------------------------------------------------------------


def test_the_first_suitable_python_is_taken(checkout: Checkout) -> None:
    checkout.python("python3", "3.14.0")
    checkout.python("python3.13", "3.13.0", lacks_venv=True)
    checkout.python("python3.11", "3.11.5")
    checkout.python("python3.10", "3.10.5")
    assert "making .venv (Python 3.11)" in succeeded(checkout.setup())


def test_the_range_is_the_one_in_the_metadata() -> None:
    assert 'requires-python = ">=3.10,<3.14"' in (ROOT / "pyproject.toml").read_text()
    assert "MIN=10 MAX=13" in (ROOT / "scripts" / "setup").read_text()


def test_another_python_named_by_the_user_makes_a_new_environment(ready: Checkout) -> None:
    succeeded(ready.setup())
    mark = ready.mark()
    succeeded(ready.setup(PYTHON="python3"))
    assert mark.exists()
    ready.python("python3.10", "3.10.4")
    assert "making .venv again (Python 3.10)" in succeeded(ready.setup(PYTHON="python3.10"))
    assert not mark.exists()


def test_what_the_shell_has_active_does_not_get_in_the_way(ready: Checkout) -> None:
    """Neither another project's PYTHONPATH nor the Python of the .venv that is made again."""
    (ready.venv / "bin").mkdir(parents=True)
    shutil.copy(ready.python("old", "3.8.1"), ready.venv / "bin" / "python3")
    path = f"{ready.venv / 'bin'}:{ready.bin}"
    done = ready.setup(PATH=path, VIRTUAL_ENV=str(ready.venv), PYTHONPATH="/other/project")
    assert "(Python 3.12)" in succeeded(done)
    assert ready.pip_calls() == ["constraints.txt -e ."]


# --- once is enough -------------------------------------------------------------------------------


def test_the_second_call_does_nothing_at_once_and_without_a_word(ready: Checkout) -> None:
    assert "minutes the first time" in succeeded(ready.setup())
    ready.disk(free_kib=0)  # nobody needs to know when nothing is installed
    (ready.bin / "python3").unlink()  # nor which Python made it
    start = time.monotonic()
    assert succeeded(ready.setup()) == ""
    assert time.monotonic() - start < 1
    assert ready.pip_calls() == ["constraints.txt -e ."]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_the_requirements_installs_again_with_the_same_extras(
    ready: Checkout, name: str
) -> None:
    succeeded(ready.setup("dev"))
    mark = ready.mark()
    with (ready.root / name).open("a") as file:
        file.write("\n# changed\n")
    succeeded(ready.setup())
    assert ready.pip_calls() == ["constraints.txt -e .[dev]"] * 2
    assert mark.exists()


def test_more_extras_are_added_and_fewer_are_already_there(ready: Checkout) -> None:
    for extras in ([], ["dev"], [], ["quant"], ["dev"], ["quant", "dev"]):
        succeeded(ready.setup(*extras))
    assert ready.pip_calls() == [
        "constraints.txt -e .",
        "constraints.txt -e .[dev]",
        "constraints.txt -e .[dev,quant]",
    ]


def test_the_torchvision_shim_comes_with_the_development_extras_only(ready: Checkout) -> None:
    site = ready.venv / "lib" / "python3.12" / "site-packages"
    succeeded(ready.setup())
    assert list(site.iterdir()) == []
    succeeded(ready.setup("dev"))
    copy = site / "_efftrain_torchvision_shim.py"
    assert copy.read_text() == (ready.root / "scripts" / "torchvision_shim.py").read_text()
    assert copy.with_suffix(".pth").read_text() == "import _efftrain_torchvision_shim\n"


# --- what is half made, moved or made by hand -----------------------------------------------------


def test_an_interrupted_install_is_made_again(ready: Checkout) -> None:
    process = subprocess.Popen(
        ready.command(),
        env=ready.environment(PIP_SECONDS="60"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(ready.pip_calls)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "setup: interrupted: the next call starts over"

    mark = ready.mark()
    assert "did not finish: making .venv again" in succeeded(ready.setup())
    assert not mark.exists()
    assert succeeded(ready.setup()) == ""


def test_an_environment_without_a_python_is_made_again(ready: Checkout) -> None:
    mark = ready.mark()
    assert "making it again" in succeeded(ready.setup())
    assert not mark.exists()


def test_an_environment_made_by_hand_is_added_to(ready: Checkout) -> None:
    (ready.venv / "bin").mkdir(parents=True)
    shutil.copy(ready.bin / "python3", ready.venv / "bin" / "python")
    mark = ready.mark()
    succeeded(ready.setup())
    assert mark.exists()
    assert len(ready.pip_calls()) == 1


def test_a_failed_update_keeps_the_environment_that_worked(ready: Checkout) -> None:
    succeeded(ready.setup())
    mark = ready.mark()
    assert ready.setup("dev", PIP_EXIT="1").returncode == 6
    succeeded(ready.setup("dev"))
    assert mark.exists()
    assert len(ready.pip_calls()) == 3


def test_a_checkout_that_has_moved_makes_its_environment_again(ready: Checkout) -> None:
    """The commands in .venv/bin hold the old path."""
    succeeded(ready.setup("dev"))
    mark = ready.mark()
    ready.root = ready.root.rename(ready.root.with_name("another place"))
    assert "has moved" in succeeded(ready.setup())
    assert not (ready.venv / mark.name).exists()
    assert ready.pip_calls() == ["constraints.txt -e .[dev]"] * 2


def test_two_at_the_same_time_install_once(ready: Checkout) -> None:
    first = subprocess.Popen(
        ready.command(), env=ready.environment(PIP_SECONDS="1"), stderr=subprocess.DEVNULL
    )
    wait_for(ready.pip_calls)
    assert "another setup is at work here" in only_line(ready.setup(), code=0)
    assert first.wait(timeout=30) == 0
    assert len(ready.pip_calls()) == 1


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
