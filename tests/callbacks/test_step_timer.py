import time
from statistics import median

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from efftrain.callbacks import StepTimer
from efftrain.callbacks.self_timed import SelfTimed, timed
from tests.callbacks.conftest import ListLogger, SleepyModule, loader
from tests.callbacks.sleepy_parts import PARTS_S, SleepyParts, agree, sleepy_loader


def fit(callbacks, module, batches, validation=None, **options):
    """Returns the logger."""
    logger = ListLogger()
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, enable_checkpointing=checkpointing,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        **{"max_epochs": 1, "log_every_n_steps": 1, **options},
    )  # fmt: skip
    trainer.fit(module, batches, validation)
    return logger


def test_sleeps_land_in_their_own_tags():
    timer, module = StepTimer(warmup_steps=1), SleepyParts()
    logger = fit([timer], module, sleepy_loader(module, 8))
    slept = {part: module.naps.steps_ms(part)[1:] for part in PARTS_S}
    for part in PARTS_S:
        assert agree(logger.values(f"time/{part}_ms"), slept[part]), part
    in_step = zip(*(slept[part] for part in ("forward", "backward", "optimizer")), strict=True)
    steps_ms = [sum(parts) for parts in in_step]
    assert agree(logger.values("time/step_ms"), steps_ms)
    assert timer.times.steps == 7
    assert timer.times.step_p99_ms >= max(steps_ms[:-1])
    assert logger.values("time/micro_step_ms") == []


def test_accumulated_batches_are_one_step():
    timer, module = StepTimer(warmup_steps=1), SleepyParts()
    logger = fit([timer], module, sleepy_loader(module, 12), accumulate_grad_batches=3)
    assert timer.times.steps == 3
    slept = {
        part: module.naps.steps_ms(part, 1 if part == "optimizer" else 3)[1:] for part in PARTS_S
    }
    for part in PARTS_S:
        assert agree(logger.values(f"time/{part}_ms"), slept[part]), part
    micro = [sum(both) for both in zip(slept["forward"], slept["backward"], strict=True)]
    steps = [sum(both) for both in zip(micro, slept["optimizer"], strict=True)]
    assert agree(logger.values("time/micro_step_ms"), [three / 3 for three in micro])
    assert agree(logger.values("time/step_ms"), steps)


class Validated(SleepyParts):
    def validation_step(self, batch, batch_idx):
        self.naps.take("validation")


def test_validation_counts_neither_as_step_nor_as_wait():
    timer = StepTimer(warmup_steps=0)
    module = Validated({"forward": 0.02, "validation": 0.3, "h2d": 0.01})
    batches, validation = sleepy_loader(module, 4), sleepy_loader(module, 1)
    fit([timer], module, batches, validation, max_epochs=2, val_check_interval=2)
    assert timer.times.steps == 8
    assert timer.times.step_p99_ms < 100
    assert timer.times.data_ms < 100
    assert timer.times.h2d_ms < 20, "validation's batches go to the device, too"


class SlowlySaved(SleepyModule):
    """Its checkpoints take long to write."""

    def on_save_checkpoint(self, checkpoint):
        time.sleep(0.3)


def test_a_checkpoint_is_no_wait_for_data(tmp_path):
    timer = StepTimer(warmup_steps=0)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    fit([timer, saving], SlowlySaved(), loader(24, 4))
    assert timer.times.steps == 6
    assert timer.times.data_ms < 100


class SavingMidStep(Callback):
    """Saves where it should not: inside a step."""

    def __init__(self, folder):
        self.folder = folder

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.folder / "x.ckpt")


def test_a_step_with_a_checkpoint_in_it_is_left_out(tmp_path):
    timer = StepTimer(warmup_steps=0)
    fit([timer, SavingMidStep(tmp_path)], SlowlySaved(), loader(24, 4))
    assert timer.times.steps == 5
    assert timer.times.step_p99_ms < 200


def test_a_window_is_logged_at_the_trainers_interval(train):
    logger = train(StepTimer(warmup_steps=0), batches=loader(40, 4), log_every_n_steps=4)
    assert logger.steps("time/step_ms") == [4, 8]


def test_a_trainer_that_logs_nothing_is_left_in_peace(train):
    timer = StepTimer(warmup_steps=0)
    logger = train(timer, batches=loader(12, 4), log_every_n_steps=0)
    assert logger.rows == []
    assert timer.times.steps == 3


def test_a_run_shorter_than_the_warmup_logs_nothing(train):
    timer = StepTimer(warmup_steps=100)
    assert train(timer).rows == []
    assert timer.times is None


def test_percentiles_are_in_order(train):
    logger = train(StepTimer(warmup_steps=0), batches=loader(80, 4), log_every_n_steps=10)
    tags = ("time/step_p50_ms", "time/step_p90_ms", "time/step_p99_ms")
    rows = list(zip(*(logger.values(tag) for tag in tags), strict=True))
    assert len(rows) == 2
    assert all(0 < p50 <= p90 <= p99 for p50, p90, p99 in rows)


def test_each_training_is_timed_by_itself(train):
    timer = StepTimer(warmup_steps=1)
    for _ in range(2):
        train(timer, batches=loader(12, 4))
        assert timer.times.steps == 2


class Adversaries(SleepyParts):
    """Two optimizers, by hand: nobody tells where a forward begins."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.naps.take("forward")
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        sgd = torch.optim.SGD
        return [sgd([self.layer.weight], 0.1), sgd([self.layer.bias], 0.1)]


def test_by_hand_only_the_whole_step_is_known():
    timer, module = StepTimer(warmup_steps=0), Adversaries({"forward": 0.04})
    logger = fit([timer], module, sleepy_loader(module, 4), log_every_n_steps=1)
    assert timer.times.steps == 4
    assert agree(logger.values("time/step_ms"), module.naps.steps_ms("forward", 2))
    assert timer.times.forward_ms is timer.times.backward_ms is timer.times.optimizer_ms is None
    assert logger.steps("time/step_ms") == [2, 4, 6, 8]


def test_steps_that_jump_over_the_end_of_a_window_close_it():
    module = Adversaries({})
    logger = fit([StepTimer(0)], module, sleepy_loader(module, 4), log_every_n_steps=3)
    assert logger.steps("time/step_ms") == [4, 6], "two optimizer steps a batch"


class Look(Callback):
    def on_train_batch_start(self, trainer, *_):
        self.strategy = trainer.strategy
        self.during = "batch_to_device" in vars(self.strategy)


class Fails(SleepyModule):
    def training_step(self, batch, batch_idx):
        raise ZeroDivisionError


def test_the_strategy_is_left_as_it_was():
    look = Look()
    fit([StepTimer(), look], SleepyModule(), loader(8, 4))
    assert look.during
    assert "batch_to_device" not in vars(look.strategy)
    with pytest.raises(ZeroDivisionError):
        fit([StepTimer(), look], Fails(), loader(8, 4))
    assert look.during
    assert "batch_to_device" not in vars(look.strategy)


class Expensive(SelfTimed):
    """Costs 20 ms each step, and says so."""

    @timed
    def on_train_batch_end(self, *_):
        time.sleep(0.02)


def test_what_the_callbacks_cost_is_logged_with_what_others_cost():
    logger = fit(
        [StepTimer(warmup_steps=1), Expensive()], SleepyModule(0.08), loader(36, 4),
        log_every_n_steps=2,
    )  # fmt: skip
    values = logger.values("efficiency/callback_overhead_pct")
    # 20 ms behind each step of 80 ms, in what lies between two batches
    assert median(values) == pytest.approx(20, abs=5)


def test_what_they_cost_before_the_first_counted_step_is_not_in_it(train):
    class Prepares(SelfTimed):
        @timed
        def on_train_start(self, *_):
            time.sleep(1.0)

    logger = fit([StepTimer(warmup_steps=1), Prepares()], SleepyModule(0.02), loader(24, 4))
    assert max(logger.values("efficiency/callback_overhead_pct")) < 25
