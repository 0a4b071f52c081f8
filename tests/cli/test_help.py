import subprocess
import sys
import time
from pathlib import Path

from efftrain import __version__
from efftrain.cli import VERBS


def test_help_names_every_verb_and_imports_nothing_heavy(command):
    began = time.perf_counter()
    result = command("--help")
    seconds = time.perf_counter() - began
    assert result.returncode == 0
    assert all(f"  {name} " in result.stdout for name in VERBS)
    # The promise is 0.4 s; a busy machine may take a multiple of that, torch alone takes seconds.
    assert seconds < 2
    code = "import sys, efftrain.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "hydra", "lightning", "omegaconf"} & set(loaded.stdout.split())


def test_every_verb_is_a_module_of_its_own():
    folder = Path(sys.modules["efftrain.cli"].__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {*VERBS, "__init__", "launch"}


def test_python_m_behaves_like_the_command(command):
    module = subprocess.run(
        [sys.executable, "-m", "efftrain", "--help"], capture_output=True, text=True, check=True
    )
    assert module.stdout == command("--help").stdout


def test_the_version_is_printed(command):
    assert command("--version").stdout == f"efftrain {__version__}\n"


def test_the_config_can_be_shown_without_running_it(command):
    result = command("train", "--cfg", "job", "--resolve", "run_dir=x", "optim.lr=0.5")
    assert result.returncode == 0, result.stderr
    assert "lr: 0.5" in result.stdout
    assert list(command.folder.iterdir()) == []


def test_a_verbs_help_lists_groups_and_keys(command):
    result = command("train", "--help")
    assert result.returncode == 0
    assert "peft: bias, full, head, " in result.stdout
    assert "max_epochs: 12" in result.stdout


def test_completion_is_offered(command):
    result = command("train", "--shell-completion", "install=bash")
    assert result.returncode == 0
    assert "complete" in result.stdout
