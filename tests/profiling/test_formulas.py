"""Each formula against a count by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efftrain.graph.observer import Observer
from efftrain.profiling.attention import ATTENTION, attention_macs
from efftrain.profiling.count import count_forward, count_step
from efftrain.profiling.recurrent import cudnn_layers, cudnn_layers_backward
from efftrain.profiling.step_counter import MACS
from tests.profiling.formula_cases import FORWARD, HEADS, SEQUENCE, Functional


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("name", FORWARD)
def test_forward_is_the_count_by_hand(name: str, values: bool) -> None:
    model, batch, macs = FORWARD[name]
    count = count_forward(model.eval(), batch, values=values)
    assert count.macs() == macs
    assert count.uncounted == {}


@pytest.mark.parametrize("name", ["conv", "strided", "grouped", "depthwise", "conv1d", "linear"])
@pytest.mark.parametrize("needs_input", [False, True])
@pytest.mark.parametrize("needs_weight", [False, True])
def test_backward_costs_forward_once_for_each_gradient(
    name: str, needs_input: bool, needs_weight: bool
) -> None:
    model, batch, macs = FORWARD[name]
    model.requires_grad_(needs_weight)
    count = count_step(model, batch.clone().requires_grad_(needs_input))
    model.requires_grad_(True)
    assert count.macs("backward_inputs") == macs * needs_input
    assert count.macs("backward_weights") == macs * needs_weight


def test_backward_of_a_transposed_grouped_convolution() -> None:
    model, batch, macs = FORWARD["transposed"]
    count = count_step(model, batch.clone().requires_grad_())
    assert count.macs("backward_inputs") == count.macs("backward_weights") == macs


@pytest.mark.parametrize("name", ["sdpa", "grouped_query"])
def test_backward_of_attention_is_four_products_and_one_computed_again(name: str) -> None:
    model, batch, macs = FORWARD[name]
    count = count_step(model, batch.clone().requires_grad_())
    assert count.macs("backward_inputs") == 2 * macs
    assert count.macs("backward_weights") == 0
    assert count.macs("recompute") in (0, macs // 2)  # the plain form keeps the scores


def test_backward_of_attention_written_out_is_four_products() -> None:
    def attention(x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x

    count = count_step(Functional(attention), HEADS.clone().requires_grad_())
    assert count.macs("backward_inputs") == 2 * count.macs("forward") == 4 * 2 * 2 * 4 * 64 * 64 * 4


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_backward_of_a_recurrent_layer_costs_forward_for_inputs_and_for_weights(name: str) -> None:
    model, batch, macs = FORWARD[name]
    count = count_step(model, batch.clone().requires_grad_(), lambda output: output[0].sum())
    assert count.macs("backward_weights") == macs
    # written out in steps, the GRU leaves out the gradient for its first state, which is zeros
    assert count.macs("backward_inputs") == macs - {"lstm": 0, "gru": 2 * 3 * 40 * 40}[name]


def test_a_product_of_two_weights_has_gradients_for_weights_alone() -> None:
    class Merged(nn.Module):
        """An adapter that is added to its frozen weight before the layer runs."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 5), requires_grad=False)
            self.down, self.up = (nn.Parameter(torch.zeros(s)) for s in ((2, 5), (6, 2)))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight + self.up @ self.down).T

    count = count_step(Merged(), torch.zeros(3, 5, requires_grad=True))
    assert count.macs("forward") == 6 * 2 * 5 + 3 * 5 * 6
    assert count.macs("backward_inputs") == 3 * 5 * 6
    assert count.macs("backward_weights") == 3 * 5 * 6 + 2 * 6 * 2 * 5


def test_a_cast_weight_is_a_weight() -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(x)

    count = count_step(Autocast(), torch.zeros(3, 5, requires_grad=True))
    assert count.macs("backward_inputs") == count.macs("backward_weights") == 90


def _fused(layer: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """MACs by operator, as the layer runs by itself: its fused path on."""
    found: dict[str, int] = {}

    def listen(call: Any) -> None:
        if call.operator.name in MACS:
            found[call.operator.name] = MACS[call.operator.name](call)

    with torch.no_grad(), Observer(listen):
        layer.eval()(*inputs)
    return found


def test_fused_transformer_layers_are_their_parts() -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    parts = 4 * 2 * 64 * 32 * 32 + 2 * 2 * 64 * 64 * 32
    fused = _fused(attention, SEQUENCE, SEQUENCE, SEQUENCE)
    assert fused == {"_native_multi_head_attention": parts}
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    assert _fused(layer, SEQUENCE) == {
        "_transformer_encoder_layer_fwd": parts + 2 * 2 * 64 * 32 * 64
    }


def test_attention_of_unequal_lengths_and_widths() -> None:
    query, key, value = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 7, 8), torch.zeros(2, 2, 7, 3)
    assert attention_macs(query, key, value) == 2 * 4 * 5 * 7 * (8 + 3)


def test_every_fused_attention_of_torch_has_a_formula() -> None:
    kernels = {n for n in dir(torch.ops.aten) if n.startswith("_scaled_dot_product")}
    known = {n for n in ATTENTION if n.startswith("_scaled_dot_product")}
    listed = {
        str(schema.name).removeprefix("aten::")
        for schema in torch._C._jit_get_all_schemas()
        if str(schema.name).startswith("aten::_scaled_dot_product")
    }
    missing = {n for n in listed | kernels if "backward" not in n} - known
    # this one only runs eagerly, as products of its own
    assert missing <= {"_scaled_dot_product_attention_math_for_mps"}


def test_cudnn_recurrent_layers_without_a_gpu() -> None:
    """Two layers in both directions, from the operator's arguments alone."""
    sequence = torch.empty(50, 3, 32, device="meta")
    sizes = [(256, 32), (256, 64), (256, 128), (256, 64)]
    weights = [torch.empty(s, device="meta") for size in sizes for s in (size, size, size[:1])]

    class Given:
        args = (sequence, weights, 6, None, [True, True, True, False])

    macs = 50 * 3 * 2 * 256 * ((32 + 64) + (128 + 64))
    assert cudnn_layers(Given) == macs
    assert cudnn_layers_backward(Given) == (macs, 0)
