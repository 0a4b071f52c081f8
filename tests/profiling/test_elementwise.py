"""Operations that are no multiply-accumulates, by the textbook form of each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftrain.profiling.count import count_forward, count_step

IMAGE = torch.zeros(2, 8, 6, 6)
ELEMENTS = 2 * 8 * 6 * 6


class Apply(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("model", "operations"),
    [
        (Apply(lambda x: x + x), ELEMENTS),
        (Apply(lambda x: x * 2 + 1), 2 * ELEMENTS),
        (nn.ReLU(), ELEMENTS),
        (nn.ReLU(inplace=True), ELEMENTS),
        (nn.ReLU6(), 2 * ELEMENTS),
        (nn.Hardswish(), 5 * ELEMENTS),
        (nn.SiLU(), 4 * ELEMENTS),
        (nn.GELU(), 5 * ELEMENTS),
        (nn.Softmax(-1), 5 * ELEMENTS),
        (nn.BatchNorm2d(8).eval(), 2 * ELEMENTS),
        (nn.BatchNorm2d(8).train(), 6 * ELEMENTS + 1),  # and the counter of batches
        (nn.LayerNorm(6), 8 * ELEMENTS),
        (nn.LayerNorm(6, bias=False), 7 * ELEMENTS),
        (nn.LayerNorm(6, elementwise_affine=False), 6 * ELEMENTS),
        (nn.GroupNorm(2, 8), 8 * ELEMENTS),
        (nn.MaxPool2d(3), 9 * 2 * 8 * 2 * 2),
        (nn.MaxPool2d((3, 2)), 6 * 2 * 8 * 2 * 3),
        (nn.AvgPool2d(2), 4 * 2 * 8 * 3 * 3),
        (nn.AdaptiveAvgPool2d(1), ELEMENTS),
        (nn.AdaptiveAvgPool2d(2), ELEMENTS),
        (Apply(lambda x: x.mean((2, 3))), ELEMENTS),
        (Apply(lambda x: x.permute(0, 2, 3, 1).contiguous().view(2, -1).clone()), 0),
        (Apply(lambda x: torch.cat([x, F.pad(x, (1, 1))], -1)), 0),
        (nn.Upsample(scale_factor=2), 0),
    ],
)
def test_each_layer_costs_what_its_definition_needs(model: nn.Module, operations: int) -> None:
    count = count_forward(model, IMAGE)
    assert count.macs() == 0
    assert count.elementwise() + count.integer_ops() == operations
    assert count.uncounted == {}


def test_flops_are_twice_the_macs_and_everything_else() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    count = count_forward(model, IMAGE)
    assert count.macs() == 2 * 8 * 6 * 6 * 4
    assert count.flops() == 2 * 2 * 8 * 6 * 6 * 4 + 2 * 8 * 6 * 4


def test_a_frozen_norm_still_carries_the_gradient_of_its_input() -> None:
    norm = nn.BatchNorm2d(8).eval()
    batch = IMAGE.clone().requires_grad_()

    def backward(phase: str) -> int:
        entries = count_step(norm, batch).entries
        return sum(
            e.elementwise for e in entries if e.phase == phase and "batch_norm" in e.operator
        )

    assert (backward("backward_inputs"), backward("backward_weights")) == (ELEMENTS, 4 * ELEMENTS)
    norm.requires_grad_(False)
    assert (backward("backward_inputs"), backward("backward_weights")) == (ELEMENTS, 0)
    norm.train()  # batch statistics depend on the input, so their two sums are needed too
    assert (backward("backward_inputs"), backward("backward_weights")) == (9 * ELEMENTS, 0)


def test_a_bias_gradient_adds_up_the_gradient_that_arrives() -> None:
    conv = nn.Conv2d(8, 4, 1)
    count = count_step(conv, IMAGE)
    assert count.elementwise("backward_weights") == 2 * 4 * 6 * 6
