"""What a change gains or loses, on layers whose cost is known by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from efftrain.profiling import Profile, profile
from efftrain.profiling.diff import Change
from efftrain.profiling.roofline import Ceilings

# 1 FLOP takes as long as 1 / 10 byte: the ridge point is at 10 FLOP for each byte
MACHINE = Ceilings("a machine", 1, {"float32": 1e9}, 1e8, "made up")
CHANNELS, SIDE = 64, 16
POINTS = CHANNELS * SIDE * SIDE


def report(model: nn.Module) -> Profile:
    batch = torch.zeros(2, CHANNELS, SIDE, SIDE)
    return profile(model, batch, ceilings=MACHINE)


def convolution(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=groups, bias=False), nn.ReLU()
    )


def test_depthwise_for_dense_divides_operations_by_the_channels_and_time_by_less() -> None:
    dense, depthwise = report(convolution(1)), report(convolution(CHANNELS))
    change = dense.diff(depthwise)
    assert change.total("macs.forward").before == POINTS * CHANNELS * 9
    assert change.total("macs.forward").ratio == 1 / CHANNELS
    assert change.total("params.total") == Change("params.total", 9 * CHANNELS**2, 9 * CHANNELS)
    assert change.total("activations.total").ratio == 1
    (layer,) = change.layers
    assert (layer.path, layer.bound) == ("0", ("compute", "memory"))
    # dense: 2 FLOP for each MAC; depthwise: input, output and weight have to be moved all the same
    before_ms = 1e3 * 2 * POINTS * CHANNELS * 9 / 1e9
    after_ms = 1e3 * 4 * (2 * POINTS + 9 * CHANNELS) / 1e8
    assert layer.change("predicted_ms") == pytest.approx(after_ms - before_ms)
    assert layer.change("params") == 9 * CHANNELS - 9 * CHANNELS**2
    assert layer.change("activations") == 0
    assert any("bound by memory" in reason for reason in change.reasons)
    assert json.loads(json.dumps(change.to_dict())) == change.to_dict()


def test_freezing_the_weights_saves_their_gradients_and_no_layer_of_inference_changes() -> None:
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.LayerNorm(16))

    def of(frozen: bool) -> Profile:
        model[0].requires_grad_(not frozen)
        return profile(model, torch.zeros(4, 8))

    change = of(frozen=False).diff(of(frozen=True))
    assert change.total("macs.forward").difference == 0
    assert change.total("params.trainable").difference == -8 * 16
    linear, norm = change.layers
    assert linear.change("step_flops") == -2 * 4 * 8 * 16  # the first layer has no other gradient
    assert (
        norm.change("step_flops") == -11 * 4 * 16
    )  # nobody asks for its input's gradient any more
    assert linear.change("macs") == norm.change("macs") == 0
    assert "gradients of weights" in change.reasons[0]
    with pytest.raises(KeyError, match="predicted_ms"):
        change.total("latency.predicted_ms")  # no machine was given


def test_layers_that_come_and_go_are_named() -> None:
    before = nn.Sequential(nn.Linear(4, 4))
    after = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    change = profile(before, torch.zeros(1, 4)).diff(profile(after, torch.zeros(1, 4)))
    found = {layer.path: (layer.before, layer.after) for layer in change.layers}
    assert found["1"] == (None, "GELU")
    assert found["2"] == (None, "Linear")
    back = profile(after, torch.zeros(1, 4)).diff(profile(before, torch.zeros(1, 4)))
    assert {layer.path: layer.after for layer in back.layers}["2"] is None
    assert [layer.path for layer in change.largest("macs", 1)] == ["2"]


def test_a_model_does_not_differ_from_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    change = profile(model, torch.zeros(1, 4)).diff(profile(model, torch.zeros(1, 4)))
    assert change.layers == ()
    assert change.reasons == ()
    assert all(total.difference == 0 for total in change.totals)


def test_measured_times_stand_beside_the_predicted_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    one = profile(model, torch.zeros(1, 4))
    assert one.diff(one, measured_step_ms=(8.0, 2.0)).total("time.step_p50_ms").ratio == 0.25
