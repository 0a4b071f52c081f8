"""What the callbacks know, in one table at the end; and every figure in any logger."""

from __future__ import annotations

import csv
import math

import pytest
from lightning.pytorch.loggers import CSVLogger

from efftrain.callbacks import (
    ActivationMemory,
    CostCurve,
    DescribedTensorBoardLogger,
    EfficiencySummary,
    EnergyMeter,
    LearningRate,
    ModelCost,
    ParameterCount,
    StepTimer,
    Throughput,
)
from efftrain.callbacks.cards import figures_markdown
from efftrain.callbacks.self_timed import SelfTimed
from efftrain.profiling.roofline import Ceilings
from efftrain.run import Figure
from efftrain.tags import find_tag
from tests.callbacks.small_job import batches, fit, make_task
from tests.callbacks.test_energy_meter import Battery


@pytest.fixture(autouse=True)
def no_ceilings(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFTRAIN_CACHE", str(tmp_path / "cache"))


def everything(summary):
    return [
        ParameterCount(), ModelCost(), ActivationMemory(warmup_steps=1), CostCurve(),
        StepTimer(warmup_steps=1), Throughput(warmup_steps=1),
        EnergyMeter(window_s=0.0, counters=[Battery()]), LearningRate(), summary,
    ]  # fmt: skip


def by_name(summary):
    return {figure.name: figure for figure in summary.figures}


def test_prediction_and_measurement_stand_in_one_table():
    summary = EfficiencySummary()
    callbacks = everything(summary)
    fit(make_task("norm"), callbacks, batches(40))
    found = by_name(summary)
    saved = found["memory/saved_measured_mib"]
    assert saved.measured == callbacks[2].saved.saved_bytes / 1024**2
    assert abs(saved.difference_pct) < 2
    assert found["time/step_p50_ms"].measured == callbacks[4].times.step_p50_ms
    assert found["time/step_p50_ms"].predicted is None, "no ceilings are known"
    assert found["throughput/samples_per_s"].measured == callbacks[5].samples_per_s
    rate = callbacks[1].step_flops / (callbacks[4].times.step_p50_ms / 1e3) / 1e9
    assert found["throughput/achieved_gflops"].measured == pytest.approx(rate)
    assert found["size/delta_kib"].predicted == callbacks[0].delta_bytes / 1024
    assert found["energy/step_j"].measured > 0
    cost_s = sum(callback.cost_s for callback in callbacks if isinstance(callback, SelfTimed))
    assert found["efficiency/callbacks_s"].measured == cost_s > callbacks[1].cost_s > 0
    for figure in found.values():
        assert figure.unit == find_tag(figure.name).unit


def test_times_are_predicted_by_the_machines_ceilings(monkeypatch):
    known = Ceilings("a machine", 1, {"float32": 1e9}, 1e9, "made up")
    monkeypatch.setattr("efftrain.callbacks.model_cost.kept_ceilings", lambda device: known)
    summary, cost = EfficiencySummary(), ModelCost()
    fit(make_task("norm"), [cost, summary], accumulate_grad_batches=2)
    found = by_name(summary)
    step_ms = 2 * cost.profile.step_latency.predicted_ms
    assert found["time/step_p50_ms"].predicted == pytest.approx(step_ms)
    rate = found["throughput/samples_per_s"].predicted
    assert rate == pytest.approx(2 * 4 / step_ms * 1e3)


def test_what_is_not_there_is_left_out():
    summary = EfficiencySummary()
    assert summary.figures == ()
    fit(make_task("norm"), [StepTimer(warmup_steps=0), summary])
    assert set(by_name(summary)) == {"time/step_p50_ms", "efficiency/callbacks_s"}


def test_the_table_is_a_text_card(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = EfficiencySummary()
    logger = DescribedTensorBoardLogger(tmp_path, name="", version="")
    fit(make_task("norm"), everything(summary), batches(40), logger=logger)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (card,) = events.Tensors("efficiency/text_summary")
    assert card.tensor_proto.string_val[0].decode() == figures_markdown(summary.figures)
    cards = set(events.Tags()["tensors"])
    assert {"activation_memory/text_summary", "energy/text_summary"} <= cards


def test_every_figure_reaches_a_logger_that_has_no_cards(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1)
    fit(make_task("norm"), everything(EfficiencySummary()), batches(40), logger=logger)
    logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {tag: [float(row[tag]) for row in rows if row[tag]] for tag in rows[0]}
    expected = (
        "params/trainable/norm", "size/delta_kib", "macs/forward", "flops/step_gflop",
        "activations/peak", "memory/saved_mib", "memory/saved_measured_mib", "memory/saved/norm_mib",
        "memory/saved_difference_pct", "memory/step_peak_mib", "time/step_ms", "time/step_p90_ms",
        "throughput/samples_per_s", "throughput/achieved_gflops", "energy/step_j",
        "energy/estimated_mj", "efficiency/callback_overhead_pct", "efficiency/callbacks_s",
        "lr/norm", "val/acc",
    )  # fmt: skip
    for tag in expected:
        assert logged[tag], tag
        assert all(map(math.isfinite, logged[tag])), tag


def test_numbers_have_four_digits_and_no_exponent():
    figures = [
        Figure("a", "", 0.02, 0.03), Figure("b", "ms", 0.0, 1.23456), Figure("c", "", None, 1e9)
    ]  # fmt: skip
    assert figures_markdown(figures).splitlines()[2:] == [
        "| a | 0.0200 | 0.0300 | +50.0 % |",
        "| b (ms) | 0 | 1.235 |  |",
        "| c |  | 1,000,000,000 |  |",
    ]
