import sys
import types
from collections import Counter

import pytest
import torch

from efftrain.measure.compiles import graphs_compiled
from efftrain.measure.step_clock import Part, StepClock
from efftrain.measure.timeline import EventTimeline, HostTimeline
from tests.measure.device_queue import FakeClock, FakeDevice


@pytest.fixture
def now():
    return FakeClock()


@pytest.fixture
def clock(now):
    return StepClock(warmup_steps=0, timeline=HostTimeline(now))


def run_batch(clock, sleep, data=0.0, h2d=0.0, forward=0.0, backward=0.0, optimizer=None):
    """One batch whose parts take so many seconds; the optimizer steps where it has a time."""
    sleep(data)
    clock.begin_transfer()
    sleep(h2d)
    clock.end_transfer()
    clock.begin_batch()
    sleep(forward)
    clock.begin(Part.BACKWARD)
    sleep(backward)
    clock.begin(Part.OPTIMIZER)
    sleep(optimizer or 0.0)
    clock.end_batch(stepped=optimizer is not None)


PARTS = {"data": 0.003, "h2d": 0.002, "forward": 0.010, "backward": 0.020, "optimizer": 0.005}


def test_each_part_gets_its_own_time(clock, now):
    for _ in range(3):
        run_batch(clock, now.sleep, **PARTS)
    assert clock.times().to_figures() == pytest.approx(
        {
            "step_ms": 35, "data_ms": 3, "h2d_ms": 2, "forward_ms": 10, "backward_ms": 20,
            "optimizer_ms": 5, "step_p50_ms": 35, "step_p90_ms": 35, "step_p99_ms": 35,
        }
    )  # fmt: skip


def test_the_first_batch_has_a_wait_that_nobody_saw(clock, now):
    run_batch(clock, now.sleep, **PARTS)
    assert clock.times().data_ms is None
    run_batch(clock, now.sleep, **PARTS)
    assert clock.times().data_ms == pytest.approx(3.0), "a mean over the waits that were seen"


def test_without_a_transfer_the_wait_lasts_until_the_batch_begins(clock, now):
    for _ in range(2):
        now.sleep(0.004)
        clock.begin_batch()
        clock.end_batch(stepped=True)
    assert clock.times().data_ms == pytest.approx(4.0)
    assert clock.times().h2d_ms is None


def test_warmup_steps_are_left_out(now):
    clock = StepClock(warmup_steps=2, timeline=HostTimeline(now))
    for forward in (9.0, 9.0, 0.010):
        run_batch(clock, now.sleep, forward=forward, optimizer=0.0)
    assert clock.times().steps == 1
    assert clock.times().step_p99_ms == pytest.approx(10.0)


def test_nothing_timed_is_none():
    assert StepClock().times() is None
    assert StepClock().take_window() is None


def test_accumulated_batches_are_one_step(clock, now):
    for _ in range(2):
        for optimizer in (None, None, 0.006):
            run_batch(clock, now.sleep, 0.002, 0.001, 0.010, 0.020, optimizer)
    times = clock.times()
    assert times.steps == 2
    assert times.step_ms == pytest.approx(3 * 30 + 6)
    assert times.forward_ms == pytest.approx(30)
    assert times.backward_ms == pytest.approx(60)
    assert times.optimizer_ms == pytest.approx(6)
    assert times.h2d_ms == pytest.approx(3)
    assert times.data_ms == pytest.approx(6)
    assert times.micro_step_ms == pytest.approx(30)


def test_a_batch_that_is_a_step_is_no_micro_step(clock, now):
    run_batch(clock, now.sleep, **PARTS)
    assert clock.times().micro_step_ms is None


def test_validation_is_no_wait_for_data(clock, now):
    run_batch(clock, now.sleep, **PARTS)
    clock.pause()
    clock.begin_transfer()  # of a validation batch
    now.sleep(60.0)
    clock.end_transfer()
    clock.pause()
    run_batch(clock, now.sleep, **PARTS)
    times = clock.times()
    assert times.data_ms is None
    assert times.h2d_ms == pytest.approx(2.0)


def test_a_step_in_which_something_else_happened_is_left_out(clock, now):
    run_batch(clock, now.sleep, **PARTS)
    clock.begin_batch()
    now.sleep(60.0)
    clock.pause()
    clock.end_batch(stepped=False)
    run_batch(clock, now.sleep, **PARTS)
    run_batch(clock, now.sleep, **PARTS)
    assert clock.times().steps == 2
    assert clock.times().step_p99_ms == pytest.approx(35.0)


def test_a_step_in_which_something_was_compiled_is_left_out(clock, now, monkeypatch):
    # a test before this one may have compiled something, which the clock knows
    counters = {"stats": Counter(unique_graphs=graphs_compiled())}
    fake = types.SimpleNamespace(counters=counters)
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", fake)
    run_batch(clock, now.sleep, **PARTS)
    clock.begin_batch()
    counters["stats"]["unique_graphs"] += 1
    now.sleep(30.0)
    clock.end_batch(stepped=True)
    run_batch(clock, now.sleep, **PARTS)
    assert clock.times().steps == 2
    assert clock.times().step_p99_ms == pytest.approx(35.0)


def test_percentiles_of_a_known_series(clock, now):
    for milliseconds in range(101):
        run_batch(clock, now.sleep, forward=milliseconds / 1000, optimizer=0.0)
    times = clock.times()
    percentiles = (times.step_p50_ms, times.step_p90_ms, times.step_p99_ms)
    assert percentiles == pytest.approx((50, 90, 99))


def test_percentiles_are_those_of_pytorch(clock, now):
    seconds = torch.rand(37, dtype=torch.float64)
    for forward in seconds.tolist():
        run_batch(clock, now.sleep, forward=forward, optimizer=0.0)
    times = clock.times()
    percentiles = [times.step_p50_ms, times.step_p90_ms, times.step_p99_ms]
    shares = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    assert percentiles == pytest.approx((1000 * seconds).quantile(shares).tolist())


def test_the_only_step_is_each_of_its_percentiles(clock, now):
    run_batch(clock, now.sleep, forward=0.010, optimizer=0.0)
    times = clock.times()
    assert (times.step_p50_ms, times.step_p90_ms, times.step_p99_ms) == pytest.approx((10, 10, 10))


def test_a_window_holds_the_steps_since_the_last_one(clock, now):
    run_batch(clock, now.sleep, forward=5.0, optimizer=0.0)
    assert clock.take_window().step_ms == pytest.approx(5000.0)
    assert clock.take_window() is None
    for forward in (0.020, 0.040):
        run_batch(clock, now.sleep, data=0.001, forward=forward, optimizer=0.0)
    assert clock.window_s == pytest.approx(0.062)
    window = clock.take_window()
    assert (window.steps, window.step_ms, window.data_ms) == pytest.approx((2, 30.0, 1.0))
    assert clock.times().steps == 3


@pytest.fixture
def device(now):
    return FakeDevice(now)


@pytest.fixture
def queued(device):
    return StepClock(warmup_steps=1, timeline=EventTimeline(device.event))


def test_a_device_behind_its_host_is_timed_by_its_own_clock(queued, device, now):
    """The host is done with a batch in 1 ms, the device needs 35: it never waits for data."""
    for _ in range(20):
        now.sleep(0.001)
        run_batch(queued, device.launch, h2d=0.002, forward=0.01, backward=0.02, optimizer=0.005)
    assert device.waits == 0
    assert queued.steps == 0, "the device has hardly begun"
    queued.finish()
    assert device.waits == 1
    times = queued.times()
    assert times.steps == 19
    assert (times.step_p50_ms, times.step_p99_ms) == pytest.approx((35, 35))
    parts = (times.h2d_ms, times.forward_ms, times.backward_ms, times.optimizer_ms)
    assert parts == pytest.approx((2, 10, 20, 5))
    assert times.data_ms == pytest.approx(0.0, abs=1e-6)


def test_a_device_ahead_of_its_host_waits_for_its_data(queued, device, now):
    for _ in range(5):
        now.sleep(0.100)
        run_batch(queued, device.launch, h2d=0.002, forward=0.01, backward=0.02, optimizer=0.005)
    queued.finish()
    assert queued.times().data_ms == pytest.approx(100 - 37)
    assert queued.times().step_ms == pytest.approx(35)


def test_batches_are_read_in_their_order_once_the_device_has_done_them(queued, device, now):
    for place in range(6):
        run_batch(queued, device.launch, forward=0.010 * (place + 1), optimizer=0.0)
        now.sleep(0.020)
    # Asked at 0, 20, 40, … it is done at 10, 40, 70, 110, 160, 220; now it is 120
    assert queued.take_window().step_ms == pytest.approx((20 + 30 + 40) / 3)
    queued.finish()
    assert queued.take_window().step_ms == pytest.approx((50 + 60) / 2)
    assert device.waits == 1


def test_a_warmup_that_is_still_queued_is_not_charged_to_the_steps_after_it(queued, device, now):
    run_batch(queued, device.launch, forward=30.0, optimizer=0.0)
    run_batch(queued, device.launch, forward=0.010, optimizer=0.0)
    queued.finish()
    assert queued.times().step_p99_ms == pytest.approx(10.0, rel=1e-4)
