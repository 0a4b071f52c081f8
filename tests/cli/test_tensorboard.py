import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from efftrain.cli.tensorboard import find_curves
from efftrain.errors import CheckpointError


def write_run(folder: Path) -> Path:
    with SummaryWriter(str(folder / "tb")) as writer:
        writer.add_scalar("val/acc", 0.5, 0)
    return folder


def test_a_runs_curves_lie_in_its_own_folder_and_several_runs_are_shown_together(tmp_path):
    write_run(tmp_path / "many" / "a")
    write_run(tmp_path / "many" / "b")
    assert find_curves(str(tmp_path / "many" / "a")) == tmp_path / "many" / "a" / "tb"
    assert find_curves(str(tmp_path / "many")) == tmp_path / "many"


def test_latest_is_the_run_that_was_written_to_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, written_at in (("b", 1000), ("a", 2000), ("c", 1500)):
        folder = write_run(tmp_path / "outputs" / "train" / name)
        for file in (folder / "tb").iterdir():
            os.utime(file, (written_at, written_at))
    assert find_curves("latest") == Path("outputs/train/a/tb")


def test_without_any_run_there_is_no_latest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"run=latest: no run below .*outputs"):
        find_curves("latest")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["run=nowhere"], 4, "efftrain: run: no folder nowhere"),
        (["run=."], 4, "efftrain: run: no TensorBoard curves in .; was it run with logger=none?"),
        ([], 4, "efftrain: run=latest: no run below "),
        (["runn=x"], 2, "efftrain: runn: unknown key; did you mean 'run'?"),
        (["nowhere"], 2, "efftrain: cannot read 'nowhere'; write run=nowhere"),
        (["run=x", "port=http"], 2, "efftrain: port=http: expected a number from 1 to 65535"),
    ],
)
def test_what_cannot_be_shown_is_one_line_with_its_exit_code(verb, tmp_path, words, code, line):
    if "port=http" in words:
        write_run(tmp_path / "cwd" / "x")
    got, out, err = verb("tensorboard", *words)
    assert got == code
    assert err.startswith(line)
    assert len(err.splitlines()) == 1
    assert out == ""


def test_curves_are_served_on_localhost_until_ctrl_c(tmp_path):
    write_run(tmp_path / "one")
    executable = Path(sys.executable).with_name("efftrain")
    process = subprocess.Popen(
        [str(executable), "tensorboard", "run=one"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("one/tb at http://localhost:")
        url = line.split()[2]
        assert wait_for_tags(url) == {".": ["val/acc"]}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def wait_for_tags(url: str) -> dict[str, list[str]]:
    """TensorBoard reads its files some time after it has begun to answer."""
    found: dict[str, list[str]] = {}
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}data/plugin/scalars/tags", timeout=30) as answer:
            found = {run: list(tags) for run, tags in json.load(answer).items()}
        time.sleep(0.2)
    return found


def test_a_port_that_is_taken_is_the_machines_fault(command):
    write_run(command.folder / "one")
    with HTTPServer(("localhost", 0), BaseHTTPRequestHandler) as other:
        port = other.server_address[1]
        result = command("tensorboard", "run=one", f"port={port}")
    assert result.returncode == 6
    *_, line = result.stderr.strip().splitlines()
    assert line.startswith(f"efftrain: port={port}: ")
    assert "already in use" in line
