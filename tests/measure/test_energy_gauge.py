"""Joules between pauses, by counters and a clock that go as they are told."""

from __future__ import annotations

import math

import pytest

from efftrain.errors import MachineError
from efftrain.measure.energy_gauge import EnergyGauge


class Watts:
    """A part of a machine that draws the same power all the time; counts from somewhere."""

    source = "made up"

    def __init__(self, watts: float, clock: Clock) -> None:
        self.watts, self.clock, self.is_broken = watts, clock, False

    def read_j(self) -> float:
        if self.is_broken:
            raise MachineError("the counter is gone")
        return 1e6 + self.watts * self.clock.now_s


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gauge(clock: Clock) -> EnergyGauge:
    return EnergyGauge([Watts(30, clock), Watts(5, clock)], clock)


def test_counters_are_added_up_and_pauses_left_out(gauge: EnergyGauge, clock: Clock):
    clock.now_s = 2.0
    assert gauge.spent() == pytest.approx((70, 2))
    gauge.pause()
    clock.now_s = 10.0
    gauge.resume()
    clock.now_s = 11.0
    assert gauge.spent() == pytest.approx((105, 3))
    assert gauge.total_j() == pytest.approx(35 * 11), "a total has no pauses"


def test_a_new_stretch_begins_where_the_last_was_taken(gauge: EnergyGauge, clock: Clock):
    clock.now_s = 1.0
    gauge.spent()
    gauge.take()
    clock.now_s = 1.5
    assert gauge.spent() == pytest.approx((17.5, 0.5))


def test_a_second_pause_changes_nothing(gauge: EnergyGauge, clock: Clock):
    clock.now_s = 1.0
    gauge.pause()
    clock.now_s = 5.0
    gauge.pause()
    assert gauge.spent() == pytest.approx((35, 1))


def test_a_counter_that_goes_missing_leaves_nothing_known(clock: Clock):
    counter = Watts(1, clock)
    gauge = EnergyGauge([counter], clock)
    counter.is_broken = True
    assert math.isnan(gauge.spent().joules)
    assert gauge.failure == "the counter is gone"
