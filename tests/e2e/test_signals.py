import json
import os
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


SLOW_VALIDATION = """
import time
import lightning.pytorch as pl

class Slow(pl.Callback):
    def on_validation_batch_start(self, trainer, *args):
        if trainer.state.fn == "validate" and trainer.global_step:
            print("last evaluation", flush=True)
            time.sleep(60)
"""


def test_a_signal_in_the_last_evaluation_loses_no_training(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_VALIDATION)
    executable = Path(sys.executable).with_name("efftrain")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [str(executable), "train", "debug=fast", "hydra.run.dir=run",
             "+callbacks.slow._target_=slow.Slow"],
            cwd=tmp_path,
            env={**os.environ, "EFFTRAIN_TRUST": "slow", "PYTHONPATH": str(tmp_path)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(tmp_path / "out", "last evaluation")
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, (tmp_path / "out").read_text()
    assert (tmp_path / "run" / "delta.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
