"""Figures of a run hold the numbers that they were given."""

from __future__ import annotations

import pytest
import torch

from efftrain.profiling.saved import Saved, SavedTensor
from efftrain.render.run_figure import draw_saved, draw_time

KIB = 1024


def saved(*parts: tuple[str, str, int]) -> Saved:
    return Saved(
        tuple(
            SavedTensor(path, cause, (cause,), "", (1,), torch.float32, size)
            for path, cause, size in parts
        )
    )


def test_each_layer_has_a_bar_as_high_as_what_it_keeps():
    measured = saved(
        ("a.norm", "norm", 4 * KIB), ("a.act", "activation", 2 * KIB), ("a.norm", "conv", KIB)
    )
    figure = draw_saved(measured, None)
    (axes,) = figure.axes
    heights = sorted(
        patch.get_height() for container in axes.containers for patch in container if patch.get_height()
    )  # fmt: skip
    assert heights == [1, 2, 4]
    tops = [p.get_y() + p.get_height() for c in axes.containers for p in c if p.get_x() < 0.5]
    assert max(tops) == 5, "what one layer keeps for two reasons is stacked"
    assert axes.get_ylabel() == "kept for backward (KiB)"
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ["norm 4.0 KiB", "activation 2.0 KiB", "conv 1.0 KiB"]


def test_the_prediction_is_a_mark_on_each_bar():
    measured = saved(("a", "norm", 4 * KIB))
    predicted = saved(("a", "norm", 3 * KIB), ("b", "norm", KIB))
    (axes,) = draw_saved(measured, predicted).axes
    (marks,) = axes.collections
    assert marks.get_offsets().tolist() == [[0, 3], [1, 1]]


def test_a_loss_keeps_something_outside_of_all_layers():
    (axes,) = draw_saved(saved(("a", "norm", 5), ("", "other", 7)), None).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "loss"]


def test_the_parts_of_a_step_fill_the_bar():
    times = {
        "step_ms": 10.0, "data_ms": 2.0, "forward_ms": 3.0, "backward_ms": 5.0, "optimizer_ms": 1.0,
        "step_p50_ms": 9.0,
    }  # fmt: skip
    figure = draw_time(times)
    (axes,) = figure.axes
    widths = [patch.get_width() for container in axes.containers for patch in container]
    assert widths == pytest.approx([2, 3, 5, 1, 1]), "the last is the rest of the step"
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels[0] == "wait for data 2.0 ms (17 %)"
    assert labels[-1] == "the rest of the step 1.0 ms (8 %)"


def test_a_step_whose_parts_are_not_known_is_one_part():
    (axes,) = draw_time({"step_ms": 10.0}).axes
    assert [patch.get_width() for c in axes.containers for patch in c] == [10.0]
