"""Metrics against what training has computed so far."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efftrain.callbacks import CostCurve, DescribedTensorBoardLogger, ModelCost
from tests.callbacks.small_job import Net, Plain, batches, fit

SAMPLES = 22


class Known(ModelCost):
    """Half a GFLOP for each sample, and no rehearsal."""

    flops_per_sample = 0.5e9

    def on_train_batch_start(self, *_):
        pass


def test_the_axis_counts_gflop_of_the_samples_so_far(tmp_path):
    logger = DescribedTensorBoardLogger(tmp_path, name="", version="")
    curve = CostCurve()
    fit(Plain(Net()), [Known(), curve], batches(SAMPLES), logger=logger, max_epochs=2)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars("val_by_gflop/acc")] == [11, 22]
    accuracy = [e.value for e in events.Scalars("val/acc")]
    assert [e.value for e in events.Scalars("val_by_gflop/acc")] == accuracy
    assert [(e.step, e.value) for e in events.Scalars("flops/total_gflop")] == [(6, 11), (12, 22)]
    assert curve.total_flops == SAMPLES * 2 * 0.5e9


def test_other_loggers_get_the_cost_and_their_own_axis():
    logger, _ = fit(Plain(), [Known(), CostCurve()], batches(SAMPLES))
    assert logger.values("flops/total_gflop") == [11]
    assert logger.steps("flops/total_gflop") == [6]
    assert logger.values("val_by_gflop/acc") == []


def test_a_cost_that_is_not_known_is_no_axis():
    logger, _ = fit(Plain(), [CostCurve()])
    assert logger.values("flops/total_gflop") == []


def test_a_resumed_run_goes_on_counting():
    first, second = CostCurve(), CostCurve()
    fit(Plain(), [Known(), first], batches(SAMPLES))
    second.load_state_dict(first.state_dict())
    fit(Plain(), [Known(), second], batches(SAMPLES))
    assert second.total_flops == pytest.approx(2 * SAMPLES * 0.5e9)
