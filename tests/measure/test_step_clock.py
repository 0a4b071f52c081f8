import pytest

from efftrain.measure.step_clock import StepClock


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def run_batch(clock, now, wait_s, step_s, stepped=True):
    now.sleep(wait_s)
    clock.begin_batch()
    now.sleep(step_s)
    clock.end_batch(stepped)


def test_step_and_wait_are_told_apart():
    now = FakeClock()
    clock = StepClock(warmup_steps=0, clock=now)
    for _ in range(3):
        run_batch(clock, now, wait_s=0.003, step_s=0.010)
    times = clock.times()
    assert times.steps == 3
    assert times.step_ms == pytest.approx(10.0)
    # the first batch has no batch before it, so nothing is known of its wait
    assert times.data_ms == pytest.approx(3.0 * 2 / 3)


def test_warmup_steps_are_left_out():
    now = FakeClock()
    clock = StepClock(warmup_steps=2, clock=now)
    for step_s in (9.0, 9.0, 0.010):
        run_batch(clock, now, wait_s=0.0, step_s=step_s)
    assert clock.times().p99_ms == pytest.approx(10.0)


def test_nothing_timed_is_none():
    assert StepClock().times() is None


def test_accumulated_batches_are_one_step():
    now = FakeClock()
    clock = StepClock(warmup_steps=0, clock=now)
    for stepped in (False, False, True):
        run_batch(clock, now, wait_s=0.002, step_s=0.010, stepped=stepped)
    times = clock.times()
    assert times.steps == 1
    assert times.step_ms == pytest.approx(30.0)
    assert times.data_ms == pytest.approx(4.0)


def test_validation_is_no_wait_for_data():
    now = FakeClock()
    clock = StepClock(warmup_steps=0, clock=now)
    run_batch(clock, now, wait_s=0.0, step_s=0.010)
    clock.pause()
    run_batch(clock, now, wait_s=60.0, step_s=0.010)
    assert clock.times().data_ms == 0.0


def test_percentiles_of_a_known_series():
    now = FakeClock()
    clock = StepClock(warmup_steps=0, clock=now)
    for milliseconds in range(101):
        run_batch(clock, now, wait_s=0.0, step_s=milliseconds / 1000)
    times = clock.times()
    assert (times.p50_ms, times.p90_ms, times.p99_ms) == pytest.approx((50, 90, 99))


def test_a_window_holds_the_last_steps_only():
    now = FakeClock()
    clock = StepClock(warmup_steps=0, clock=now)
    for step_s in (5.0, 0.020, 0.040):
        run_batch(clock, now, wait_s=0.0, step_s=step_s)
    assert clock.times(last=2).step_ms == pytest.approx(30.0)


def test_what_a_device_still_had_to_do_is_charged_to_the_last_step():
    now = FakeClock()
    clock = StepClock(warmup_steps=0, clock=now)
    run_batch(clock, now, wait_s=0.0, step_s=0.001)
    now.sleep(0.019)
    clock.drain()
    run_batch(clock, now, wait_s=0.003, step_s=0.020)
    times = clock.times()
    assert times.step_ms == pytest.approx(20.0)
    assert times.data_ms == pytest.approx(1.5)
