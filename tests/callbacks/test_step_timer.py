import pytest

from efftrain.callbacks import StepTimer
from tests.callbacks.conftest import SleepyModule, SleepyValidation, loader

STEP_S, WAIT_S = 0.05, 0.03
OVERHEAD_MS = 15
"""What a busy machine may add to a sleep of 50 ms."""


def test_sleeps_land_in_their_own_tags(train):
    timer = StepTimer(warmup_steps=1)
    logger = train(timer, SleepyModule(STEP_S), loader(40, 4, WAIT_S))
    for value in logger.values("time/step_ms"):
        assert 1000 * STEP_S <= value < 1000 * STEP_S + OVERHEAD_MS
    # Lightning fetches one batch ahead, so the last step waits for nothing
    for value in logger.values("time/data_ms")[:-1]:
        assert 1000 * WAIT_S <= value < 1000 * WAIT_S + OVERHEAD_MS
    assert timer.times.steps == 9


def test_validation_counts_neither_as_step_nor_as_wait(train):
    timer = StepTimer(warmup_steps=0)
    module = SleepyValidation(STEP_S, validation_s=0.3)
    train(timer, module, loader(8, 4), loader(4, 4), max_epochs=3, val_check_interval=1)
    assert timer.times.steps == 6
    assert timer.times.p99_ms < 1000 * STEP_S + OVERHEAD_MS
    assert timer.times.data_ms < OVERHEAD_MS


def test_accumulated_batches_are_one_step(train):
    timer = StepTimer(warmup_steps=0)
    logger = train(timer, SleepyModule(STEP_S), loader(24, 4), accumulate_grad_batches=3)
    assert timer.times.steps == 2
    for value in logger.values("time/step_ms"):
        assert 3000 * STEP_S <= value < 3000 * STEP_S + 3 * OVERHEAD_MS


def test_a_window_is_logged_at_the_trainers_interval(train):
    logger = train(StepTimer(warmup_steps=0), batches=loader(40, 4), log_every_n_steps=4)
    assert logger.steps("time/step_ms") == [4, 8]


def test_a_run_shorter_than_the_warmup_logs_nothing(train):
    timer = StepTimer(warmup_steps=100)
    assert train(timer).values("time/step_ms") == []
    assert timer.times is None


def test_percentiles_are_in_order(train):
    logger = train(StepTimer(warmup_steps=0), batches=loader(80, 4), log_every_n_steps=10)
    tags = ("time/step_p50_ms", "time/step_p90_ms", "time/step_p99_ms")
    for p50, p90, p99 in zip(*(logger.values(tag) for tag in tags), strict=True):
        assert 0 < p50 <= p90 <= p99
    assert len(logger.values(tags[0])) == pytest.approx(2)
