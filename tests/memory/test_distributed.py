"""A reduced model in two processes has plain torch's gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_have_torchs_gradients(way: str, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-W", "error::UserWarning", "-m", "tests.memory.two_processes"),
                *(way, str(rank), str(tmp_path / "meeting")),
            ],
            cwd=CHECKOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert "6 gradients are equal" in output
