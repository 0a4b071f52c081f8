import sys
import types
from collections import Counter

import pytest
import torch

from efftrain.measure.rate_clock import RateClock, Work
from efftrain.measure.timeline import EventTimeline, HostTimeline
from tests.measure.device_queue import FakeClock, FakeDevice


@pytest.fixture
def now():
    return FakeClock()


@pytest.fixture
def clock(now):
    return RateClock(warmup_steps=0, timeline=HostTimeline(now))


def run_batch(clock, now, samples=4, tokens=None, wait_s=0.010, step_s=0.040, stepped=True):
    now.sleep(wait_s)
    clock.begin_batch()
    now.sleep(step_s)
    clock.end_batch(samples, tokens, stepped)


def test_uneven_batches_count_as_what_they_are(clock, now):
    clock.resume()
    for samples in (4, 4, 2):
        run_batch(clock, now, samples)
    work = clock.take()
    assert (work.samples, work.tokens) == (10, None)
    assert (work.seconds, work.step_s) == pytest.approx((0.150, 0.120))
    assert clock.take() == Work()


def test_a_wait_that_began_with_something_else_is_left_out(clock, now):
    run_batch(clock, now, wait_s=9.0)
    clock.pause()
    run_batch(clock, now, wait_s=60.0)
    assert clock.take().seconds == pytest.approx(0.080)


def test_training_that_goes_on_waits_for_its_batch(clock, now):
    clock.pause()
    now.sleep(60.0)
    clock.resume()
    run_batch(clock, now)
    assert clock.take().seconds == pytest.approx(0.050)


def test_a_batch_in_which_something_else_happened_is_left_out(clock, now):
    clock.begin_batch()
    now.sleep(9.0)
    clock.pause()
    clock.end_batch(4, None, stepped=True)
    run_batch(clock, now)
    assert (clock.take().samples, clock.take().seconds) == (4, 0.0)


def test_a_batch_in_which_something_was_compiled_is_left_out(clock, now, monkeypatch):
    counters = {"stats": Counter()}
    fake = types.SimpleNamespace(counters=counters)
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", fake)
    clock.begin_batch()
    counters["stats"]["unique_graphs"] += 1
    clock.end_batch(4, None, stepped=True)
    run_batch(clock, now, samples=3)
    assert clock.take().samples == 3


def test_warmup_is_counted_in_steps_not_batches(now):
    clock = RateClock(warmup_steps=1, timeline=HostTimeline(now))
    for place in range(6):
        run_batch(clock, now, stepped=place % 3 == 2)
    assert clock.take().samples == 3 * 4


def test_tokens_are_added_up_whoever_counts_them(clock, now):
    run_batch(clock, now, tokens=100)
    run_batch(clock, now, tokens=torch.tensor(23))
    assert clock.take().tokens == 123
    run_batch(clock, now)
    assert clock.take().tokens is None


def test_a_device_behind_its_host_is_timed_by_its_own_clock(now):
    device = FakeDevice(now)
    clock = RateClock(warmup_steps=1, timeline=EventTimeline(device.event))
    clock.resume()
    for _ in range(11):
        now.sleep(0.001)
        clock.begin_batch()
        device.launch(0.050)
        clock.end_batch(4, None, stepped=True)
    assert device.waits == 0
    assert clock.take() == Work(), "the device has hardly begun"
    clock.finish()
    work = clock.take()
    assert (work.samples, work.seconds) == pytest.approx((40, 0.500))
