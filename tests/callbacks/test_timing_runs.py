"""StepTimer and Throughput in runs that are not plain: compiled, resumed, in two processes."""

import json
import os
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from efftrain.callbacks import StepTimer, Throughput
from tests.callbacks import two_process_run
from tests.callbacks.conftest import ListLogger, SleepyModule, loader


def fit(module, batches, callbacks, ckpt_path=None, **options):
    logger = ListLogger()
    pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        **{"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False, **options},
    ).fit(module, batches, ckpt_path=ckpt_path)  # fmt: skip
    return logger


class Compiled(SleepyModule):
    """Its layer is compiled by something that takes 0.3 s for each graph."""

    def __init__(self):
        super().__init__()
        self.graphs = 0
        self.compiled = torch.compile(self.layer, backend=self.compile_slowly)

    def compile_slowly(self, graph, inputs):
        self.graphs += 1
        time.sleep(0.3)
        return graph.forward

    def training_step(self, batch, batch_idx):
        return self.compiled(batch[0]).square().mean()


class Plain(SleepyModule):
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()


def test_steps_in_which_something_is_compiled_are_left_out():
    """The first batch, and the last one, which is shorter."""
    torch.compiler.reset()
    timer, meter, module = StepTimer(warmup_steps=0), Throughput(warmup_steps=0), Compiled()
    fit(module, loader(18, 4), [timer, meter])
    assert module.graphs == 2
    assert timer.times.steps == 5 - 2
    assert timer.times.step_p99_ms < 200
    assert meter.samples == 18 - 4 - 2
    assert meter.seconds < 0.2


def test_a_module_that_is_compiled_as_a_whole_keeps_its_hooks():
    torch.compiler.reset()
    timer, meter = StepTimer(warmup_steps=1), Throughput(warmup_steps=1)
    module = torch.compile(Plain(), backend="aot_eager")
    logger = fit(module, loader(24, 4), [timer, meter])
    assert timer.times.steps == 5
    assert meter.samples == 5 * 4
    for part in ("forward", "backward", "optimizer"):
        assert len(logger.values(f"time/{part}_ms")) == 5, part


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("stop_at", [6, 8], ids=["within an epoch", "after an epoch"])
def test_a_resumed_run_goes_on_where_it_was(tmp_path, stop_at):
    """Epochs of 8 steps; each run leaves out its own two steps of warm-up."""
    module, batches = SleepyModule(0.02), loader(32, 4)
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    options = {"max_epochs": -1, "log_every_n_steps": 4, "enable_checkpointing": True}
    first = fit(
        module, batches, [StepTimer(2), Throughput(2), saving], max_steps=stop_at, **options
    )  # fmt: skip
    assert first.steps("time/step_ms") == list(range(4, stop_at + 1, 4))

    timer, meter = StepTimer(warmup_steps=2), Throughput(warmup_steps=2)
    resumed = fit(
        module, batches, [timer, meter, saving], tmp_path / "last.ckpt", max_steps=16, **options,
    )  # fmt: skip
    windows = [12, 16]  # of the steps before 8, all were warm-up
    assert resumed.steps("time/step_ms") == windows
    assert resumed.steps("throughput/samples_per_s") == windows
    assert timer.times.steps == 16 - stop_at - 2
    assert meter.samples == 4 * (16 - stop_at - 2)
    for step_ms in resumed.values("time/step_ms"):
        assert 20 <= step_ms < 200
    for rate in resumed.values("throughput/samples_per_s"):
        assert 4 / 0.2 < rate <= 4 / 0.02
    assert all(value >= 0 for _, row in resumed.rows for value in row.values())


@pytest.mark.slow
def test_of_two_processes_samples_are_summed_and_the_slower_one_counts(tmp_path):
    result = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, two_process_run.__file__, str(result)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    run = json.loads(result.read_text())
    counted, waits_ms = 8 - 2, [1000 * wait for wait in two_process_run.WAIT_S]
    assert run["samples"] == counted * (4 + 2)
    assert run["tokens"] == counted * (4 * 5 + 2 * 7)
    assert [step for step, _ in run["rows"]] == [4, 4, 8, 8]
    last = run["rows"][-2][1] | run["rows"][-1][1]
    assert waits_ms[1] <= last["time/data_ms"] < 2 * waits_ms[1]
    assert waits_ms[0] <= run["own_data_ms"] < last["time/data_ms"] / 2, "the first one is fast"
    # It has its batch early, and waits for the other one's gradients
    assert last["time/backward_ms"] > (waits_ms[1] - waits_ms[0]) / 2
    per_s = last["throughput/samples_per_s"]
    assert 0.5 < per_s / (6 / two_process_run.WAIT_S[1]) <= 1
    assert last["throughput/tokens_per_s"] / per_s == pytest.approx(34 / 6)
    # 6 MFLOP a step, of which each of the two devices did half
    step_s = last["time/step_ms"] / 1000
    assert last["throughput/achieved_gflops"] == pytest.approx(3e6 / step_s / 1e9, rel=0.1)
