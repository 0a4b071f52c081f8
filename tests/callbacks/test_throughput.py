import pytest

from efftrain.callbacks import Throughput
from tests.callbacks.conftest import SleepyModule, SleepyValidation, loader


def test_the_rate_is_samples_over_time(train):
    meter = Throughput(warmup_batches=0)
    logger = train(meter, SleepyModule(0.05), loader(40, 4))
    for value in logger.values("throughput/samples_per_s")[:-1]:
        assert 4 / 0.065 < value <= 4 / 0.05
    assert meter.samples == 40


def test_a_short_last_batch_counts_as_what_it_is(train):
    meter = Throughput(warmup_batches=0)
    train(meter, batches=loader(10, 4))
    assert meter.samples == 4 + 4 + 2


def test_waiting_for_data_lowers_the_rate(train):
    meter = Throughput(warmup_batches=2)
    train(meter, SleepyModule(0.02), loader(40, 4, wait_s=0.06))
    assert meter.samples_per_s == pytest.approx(4 / 0.08, rel=0.25)


def test_validation_does_not_lower_the_rate(train):
    meter = Throughput(warmup_batches=0)
    module = SleepyValidation(0.05, validation_s=0.5)
    train(meter, module, loader(8, 4), loader(4, 4), val_check_interval=1, max_epochs=2)
    assert meter.samples == 16
    assert meter.samples_per_s == pytest.approx(4 / 0.05, rel=0.25)


def test_nothing_measured_is_none():
    assert Throughput().samples_per_s is None
