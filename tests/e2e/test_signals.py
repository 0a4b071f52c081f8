import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def wait_for(path: Path, text: str, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no '{text}' in {path} after {timeout_s} s")


@pytest.mark.parametrize(
    ("sent", "code", "status"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stopped_run_keeps_what_it_has_learnt(tmp_path, sent, code, status):
    executable = Path(sys.executable).with_name("efftrain")
    process = subprocess.Popen(
        [str(executable), "train", "hydra.run.dir=run", "trainer.max_epochs=500"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(tmp_path / "run" / "train.log", "epoch 1/500")
        process.send_signal(sent)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == status
    assert 0 < summary["metrics"]["after"]["val/acc"] <= 1
    assert (tmp_path / "run" / "delta.safetensors").is_file()
    assert out.strip().splitlines()[-1] == "tensorboard --logdir run/tb"
