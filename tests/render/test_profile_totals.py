from dataclasses import replace

import pytest
import torch
from torch import nn

from efftrain.profiling import profile
from efftrain.profiling.roofline import Ceilings
from efftrain.profiling.second_opinion import SecondOpinion
from efftrain.render.profile_totals import find_totals
from efftrain.render.quantity import percent_text
from tests.render.conftest import SAMPLES, Small, profile_of


def total(found, name):
    (one,) = [each for each in find_totals(found) if each.name == name]
    return one


def test_parameters_and_sizes(small):
    assert total(small, "parameters").value == "74"
    assert total(small, "parameters").details == ("trainable 74 (100 %)", "buffers 0")
    assert total(small, "size").value == "296 B"
    assert total(small, "size").details == ("fp32 296 B, fp16 148 B, int8 74 B, int4 37 B",)


def test_the_peak_is_named_with_what_is_alive_there(small):
    peak = total(small, "peak activations")
    # a block's input, which its sum still needs, its product's result and, at the sum, no more
    assert peak.value == "8"
    assert peak.details[0].startswith("at body.blocks.0")
    assert "4 of stem" in peak.details[1]


def test_the_parts_of_the_step_peak_add_up_to_it():
    found = profile(Small(), torch.zeros(2, 3), optimizer=torch.optim.AdamW)
    peak = found.memory.peak
    parameters, batch = 4 * 74, 4 * 2 * 3
    state = 2 * parameters + 4 * 7  # two moments, and a step count for each of 7 tensors
    details = total(found, "step peak").details
    assert details[0] == f"parameters 296 B, buffers 0 B, batch 24 B, optimizer state {state} B"
    made = peak.step_peak_bytes - parameters - batch - state
    assert details[1].endswith(f"at that moment {made} B")
    assert details[2] == "gradients after backward 296 B"
    assert "(no optimizer given)" in total(profile_of(Small(), 3), "step peak").details[0]


def test_what_kernels_take_inside_is_named_as_a_part_of_the_peak(small):
    peak = replace(small.memory.peak, scratch_bytes=2048)
    found = replace(small, memory=replace(small.memory, peak=peak))
    assert total(found, "step peak").details[1].endswith(", 2.0 KiB of it in kernels")


def test_saved_bytes_are_split_by_cause(small):
    # 4 products keep their inputs (stem's is the batch, which is there anyway), 3 ReLUs their results
    assert total(small, "saved").value == "224 B"
    assert total(small, "saved").details == ("linear 128 B, activation 96 B",)
    assert total(small, "saved").section == f"training step, batch {SAMPLES}"


def test_an_operator_without_a_formula_is_named():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    coverage = total(profile_of(nn.Sequential(nn.Linear(4, 4), Odd()), 4), "coverage")
    assert coverage.value != "100 %"
    assert any("svd" in line for line in coverage.details)


def test_fvcores_figure_stands_with_its_distance_and_its_gaps(small):
    opinion = SecondOpinion(flops=85, conv_linear=18, unsupported={"aten::add": 3})
    found = total(replace(small, second_opinion=opinion), "fvcore's MACs")
    assert found.value == "85"
    assert found.details == (
        "+25.00 % beside ours",  # 85 / 68
        "conv and linear outputs 18",
        "no formula for aten::add (3 x)",
    )


def test_a_figure_that_is_not_known_is_left_out(small, timed):
    names = [each.name for each in find_totals(small)]
    assert not {"receptive field", "predicted latency", "fvcore's MACs"} & set(names)
    assert total(timed, "predicted latency").value == "184 ms"
    assert total(timed, "predicted latency").details == ("on a machine, 2 threads",)
    assert "predicted step" in [each.name for each in find_totals(timed)]


def test_a_time_that_is_not_known_as_a_whole_is_left_out(small):
    other = small.on(Ceilings("a machine", None, {"int8": 1e3}, 5e3, "made up"))
    assert "predicted latency" not in [each.name for each in find_totals(other)]


def test_the_file_that_a_task_adds_stands_with_the_sizes(small):
    found = replace(small, size=replace(small.size, delta_bytes=2048))
    assert total(found, "size").details[1] == "delta 2.0 KiB"


def test_the_receptive_field_of_an_image_model():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Conv2d(2, 2, 3))
    field = total(profile_of(model, 1, 16, 16), "receptive field")
    assert (field.value, field.details) == ("7 px", ("stride 2 px",))


def test_every_figure_says_where_it_comes_from_and_what_it_means(timed):
    for each in find_totals(timed):
        assert each.how in ("predicted", "measured", "estimated")
        assert len(each.meaning.split()) > 3


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (100, "100 %"), (0.0001, "< 0.01 %"), (99.9999, "> 99.99 %"), (0.2089, "0.21 %")],
)
def test_a_percentage_is_0_or_100_only_where_it_is(share, text):
    assert percent_text(share) == text
