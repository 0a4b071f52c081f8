"""The package as a user installs it: built, put into another environment, run from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIM = "_efftrain_torchvision_shim"

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    """What a command prints; its failure shows all that it said."""
    # A development shell must not lend its paths to the new environment.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def built(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    return built(folder, "efftrain-*.whl")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return built(folder, "efftrain-*.tar.gz")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's folder of commands; in it the wheel, and this one's packages behind it."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel),
        cwd=venv.parent,
    )
    # Python reads no .pth files in a folder that a .pth file names: the editable checkout stays out
    # of sight, and the shim, where there is one, has to be started from here.
    lines = [sysconfig.get_path("purelib"), *([f"import {SHIM}"] if find_spec(SHIM) else [])]
    built(venv, "lib/python3.*/site-packages").joinpath("dependencies.pth").write_text(
        "\n".join(lines) + "\n"
    )
    return venv / "bin"


def package_files(folder: Path, *patterns: str) -> set[str]:
    return {
        file.relative_to(ROOT).as_posix()
        for pattern in patterns
        for file in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in file.parts
    }


def expected_content() -> set[str]:
    """Every module and asset of the checkout, and its configs inside the package."""
    configs = package_files(ROOT / "conf", "*.yaml")
    assert "conf/train.yaml" in configs
    return (
        package_files(ROOT / "efftrain", "*.py", "*.safetensors", "*.cpp", "*.h", "py.typed")
        | {f"efftrain/{name}" for name in configs}
        | {"efftrain/py.typed"}
    )


def content(wheel: Path) -> set[str]:
    """A wheel's files, without its metadata."""
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_package_configs_and_weights_and_nothing_else(wheel: Path) -> None:
    assert content(wheel) == expected_content()


def test_the_wheel_holds_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith("licenses/LICENSE")]
        assert b"Apache License" in file.read(name)


def test_a_wheel_from_the_source_distribution_holds_the_same(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
        *("--no-index", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist),
        cwd=tmp_path,
    )
    assert content(built(tmp_path, "efftrain-*.whl")) == content(wheel)


def test_the_source_distribution_brings_what_its_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts/test"} <= names
    assert {"tests/e2e/test_wheel.py", ".ci/run"} <= names


def test_the_installed_package_is_the_one_that_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import efftrain, efftrain.paths as p; print(efftrain.__file__); print(p.conf_dir())"
    package, conf = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(package).is_relative_to(installed.parent)
    assert Path(conf) == Path(package).parent / "conf"


def test_the_command_and_the_module_print_the_same_help(installed: Path, tmp_path: Path) -> None:
    command = run(installed / "efftrain", "--help", cwd=tmp_path)
    assert "efftrain train" in command
    assert run(installed / "python", "-m", "efftrain", "--help", cwd=tmp_path) == command


def test_the_default_job_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    here, folder = tmp_path / "empty", tmp_path / "a run"
    here.mkdir()
    run(installed / "efftrain", "train", "debug=fast", f"hydra.run.dir={folder}", cwd=here)

    assert (folder / "summary.json").stat().st_size > 0
    assert (folder / "delta.safetensors").stat().st_size > 0
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert list((folder / "tb").rglob("events.out.tfevents.*"))
    assert list(here.iterdir()) == []  # what a run leaves lies in its folder
