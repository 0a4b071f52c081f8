"""Energy of steps by a counter of known power; nothing without one."""

from __future__ import annotations

import logging
import time

import pytest

from efftrain.callbacks import EnergyMeter
from efftrain.errors import MachineError
from tests.callbacks.conftest import SleepyModule, SleepyValidation, loader

WATTS = 50.0


class Battery:
    """Gives so many watts all the time, by the real clock."""

    def __init__(self, watts=WATTS, source="a battery"):
        self.watts, self.source, self.reads, self.lasts = watts, source, 0, 1_000_000

    def read_j(self):
        self.reads += 1
        if self.reads > self.lasts:
            raise MachineError("the battery is empty")
        return self.watts * time.perf_counter()


def test_a_steps_energy_is_power_times_time(train):
    meter = EnergyMeter(window_s=0.2, counters=[Battery(), Battery()])
    began = time.perf_counter()
    logger = train(meter, SleepyModule(0.05), loader(40, 4))
    took_s = time.perf_counter() - began
    per_step = logger.values("energy/step_j")
    assert 1 <= len(per_step) <= 3, "10 steps of 50 ms, in windows of 200 ms"
    assert all(2 * WATTS * 0.05 <= joules < 2 * WATTS * 0.1 for joules in per_step)
    totals = logger.values("energy/total_j")
    assert totals == sorted(totals)
    assert 2 * WATTS * 0.5 <= meter.total_j <= 2 * WATTS * took_s
    assert meter.step_j == pytest.approx(meter.total_j / 10, rel=0.05)
    assert logger.steps("energy/total_j")[-1] == 10


def test_a_window_that_is_too_short_goes_on(train):
    logger = train(EnergyMeter(window_s=60.0, counters=[Battery()]), SleepyModule(0.01))
    assert logger.values("energy/step_j") == []


def test_validation_is_in_the_total_and_in_no_step(train):
    meter = EnergyMeter(window_s=0.05, counters=[Battery()])
    module = SleepyValidation(step_s=0.03, validation_s=0.3)
    train(meter, module, loader(16, 4), loader(4, 4), max_epochs=2)
    assert meter.step_j < WATTS * 0.1
    assert meter.total_j > WATTS * (8 * 0.03 + 0.3)


def test_without_a_counter_nothing_is_logged_and_that_is_said_once(train, monkeypatch, caplog):
    monkeypatch.setattr("efftrain.callbacks.energy_meter.find_counters", lambda device: [])
    with caplog.at_level(logging.INFO, logger="efftrain.callbacks.energy_meter"):
        logger = train(EnergyMeter())
    said = [r.message for r in caplog.records if r.name.startswith("efftrain.")]
    assert said == ["energy/* is left out: the cpu has no energy counter that can be read here"]
    assert not any(tag.startswith("energy/") for _, row in logger.rows for tag in row)


def test_a_missing_package_is_named(train, monkeypatch, caplog):
    def refuse(device):
        raise MachineError("pynvml is not installed; run: pip install 'efftrain[energy]'")

    monkeypatch.setattr("efftrain.callbacks.energy_meter.find_counters", refuse)
    with caplog.at_level(logging.INFO, logger="efftrain.callbacks.energy_meter"):
        train(EnergyMeter())
    assert "pip install 'efftrain[energy]'" in caplog.text


def test_a_counter_that_goes_missing_ends_the_figures_and_not_the_run(train, caplog):
    battery = Battery()
    battery.lasts = 4
    with caplog.at_level(logging.WARNING, logger="efftrain.callbacks.energy_meter"):
        logger = train(EnergyMeter(window_s=0.0, counters=[battery]), batches=loader(40, 4))
    said = [r.message for r in caplog.records if r.name.startswith("efftrain.")]
    assert said == ["energy/* ends here: the battery is empty"]
    assert len(logger.values("energy/total_j")) < 10
