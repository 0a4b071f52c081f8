"""What TensorBoard's own readers find in the event files."""

from __future__ import annotations

import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as NewAccumulator,
)
from tensorboard.plugins.custom_scalar import layout_pb2

from efftrain.callbacks import DescribedTensorBoardLogger
from efftrain.callbacks.tensorboard_layout import CHARTS, layout_of
from efftrain.tags import TAGS, find_tag


@pytest.fixture
def folder(tmp_path):
    logger = DescribedTensorBoardLogger(tmp_path, name="", version="")
    for step in range(3):
        logger.log_metrics({"time/step_p50_ms": 1.5 + step, "mine": torch.tensor(2.0)}, step)
    logger.log_metrics({"val/acc": 0.5}, 3)
    logger.finalize("success")
    return tmp_path


def test_every_value_is_read_back(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("time/step_p50_ms")] == [
        (0, 1.5), (1, 2.5), (2, 3.5)
    ]  # fmt: skip
    assert [e.value for e in events.Scalars("mine")] == [2.0] * 3


@pytest.mark.parametrize("reader", [EventAccumulator, NewAccumulator])
def test_a_figure_says_its_unit_and_meaning(folder, reader):
    events = reader(str(folder))
    events.Reload()
    assert events.SummaryMetadata("time/step_p50_ms").summary_description == (
        "**ms**, measured: median step in the logging window"
    )
    assert events.SummaryMetadata("val/acc").summary_description.startswith("measured: a metric")
    assert events.SummaryMetadata("mine").summary_description == ""


def test_the_layout_holds_the_charts_that_have_something_to_show(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    *_, last = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(last.tensor_proto.string_val[0])
    (category,) = layout.category
    assert category.title == "Efficiency"
    assert [chart.title for chart in category.chart] == [
        "accuracy against steps", "time: a step, ms (median)"
    ]  # fmt: skip


def test_a_prefix_is_kept(tmp_path):
    logger = DescribedTensorBoardLogger(tmp_path, name="", version="", prefix="a")
    for step in range(2):
        logger.log_metrics({"val/acc": 0.5}, step)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars("a-val/acc")] == [0, 1]


def example_of(name: str) -> str:
    return re.sub("<[^>]+>", "x", name)


@pytest.mark.parametrize("title", CHARTS)
def test_every_pattern_of_the_layout_means_a_figure_of_the_table_and_that_whole(title):
    for pattern in CHARTS[title]:
        meant = [tag for tag in TAGS if re.match(pattern, example_of(tag.name))]
        assert meant, pattern
        assert not any(re.match(pattern, f"{example_of(tag.name)}_more") for tag in meant) or (
            pattern.endswith(".*$")
        )


def test_a_loss_is_no_accuracy():
    charts = layout_of(["val/loss", "val_by_gflop/loss"])
    assert charts == {"Efficiency": {}}
    assert find_tag("val_by_gflop/loss") is not None
