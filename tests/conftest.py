"""What several test folders share: running a verb, in this process or in one of its own."""

import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parent.parent

# Small tensors gain nothing from a second thread, and lose much where the cores are shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Random weights and inputs are the same in every run, whichever tests run before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def measured_once(tmp_path_factory):
    """This machine's ceilings are measured once in a run of the tests, and not kept after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def verb(monkeypatch, tmp_path, capsys):
    """Run `efftrain <verb> …` in this process, from an empty folder.

    Returns exit code, standard output and standard error.
    """
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(name: str, *overrides: str) -> tuple[int, str, str]:
        from importlib import import_module

        monkeypatch.setattr(sys, "argv", [f"efftrain-{name}", *overrides])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            import_module(f"efftrain.cli.{name}").main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    with kept_logging():
        yield run


@contextmanager
def kept_logging():
    """Take back what Hydra sets up for a job: its handlers write to streams of that test."""
    loggers = [logging.getLogger(name) for name in ("", "efftrain.failure", "lightning.pytorch")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture
def command(tmp_path):
    """Run the installed `efftrain` command in a process of its own, from an empty folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    executable = Path(sys.executable).with_name("efftrain")

    def run(*arguments: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(executable), *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    run.folder = folder
    return run
