"""What single kernels take inside, against the allocator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efftrain.graph.observer import Call, describe
from efftrain.profiling.lstm_memory import lstm_workspace_bytes
from efftrain.profiling.scratch import scratch_bytes
from tests.profiling.allocator import allocated, needs_avx512

aten = torch.ops.aten


def assert_predicted(operator, args: tuple, rel: float = 0.02) -> None:
    """Results and scratch together are what the allocator hands out; only shapes are looked at."""
    operator(*args)
    found = allocated(lambda: operator(*args))
    call = Call(describe(operator), args, {}, found.result)
    results = sum(tensor.numel() * tensor.element_size() for tensor in call.outputs)
    assert results + scratch_bytes(call) == pytest.approx(found.highest, rel=rel, abs=2048)


def convolution(image: tuple, weight: tuple, step: int = 1, pad: int = 0, groups: int = 1) -> tuple:
    n = len(weight) - 2
    settings = ([step] * n, [pad] * n, [1] * n, False, [0] * n, groups)
    return (torch.zeros(image), torch.zeros(weight), None, *settings)


CONVOLUTIONS = {
    "3x3": convolution((8, 64, 16, 16), (128, 64, 3, 3), pad=1),
    "with steps": convolution((8, 64, 16, 16), (128, 64, 3, 3), step=2, pad=1),
    "1x1": convolution((16, 64, 16, 16), (40, 64, 1, 1)),
    "1x1 with steps": convolution((8, 64, 16, 16), (128, 64, 1, 1), step=2),
    "of a picture": convolution((8, 3, 64, 64), (32, 3, 3, 3), step=2, pad=1),
    "padded channels": convolution((8, 20, 28, 28), (72, 20, 3, 3), pad=1),
    "depthwise": convolution((8, 72, 24, 24), (72, 1, 3, 3), pad=1, groups=72),
    "wide depthwise": convolution((8, 40, 16, 16), (40, 1, 7, 7), pad=3, groups=40),
    "grouped": convolution((8, 256, 8, 8), (256, 8, 3, 3), pad=1, groups=32),
    "patches": convolution((4, 3, 64, 64), (192, 3, 16, 16), step=16),
    "one dimension": convolution((8, 64, 100), (128, 64, 3), pad=1),
    "three dimensions": convolution((2, 16, 8, 16, 16), (32, 16, 3, 3, 3), pad=1),
    "torch's own": convolution((1, 16, 16, 16), (32, 16, 3, 3), pad=1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution(name: str) -> None:
    assert_predicted(aten.convolution.default, CONVOLUTIONS[name])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_avx512 if name == "three dimensions" else ())
        for name in CONVOLUTIONS
    ],
)
def test_a_convolutions_gradients(name: str) -> None:
    x, weight, _, *settings = CONVOLUTIONS[name]
    gradient = torch.zeros_like(aten.convolution.default(*CONVOLUTIONS[name]))
    picture = name in ("of a picture", "patches")  # needs no gradient
    args = (gradient, x, weight, [0], *settings, [not picture, True, False])
    # the buffers of brgemm, which computes the gradient where there are steps, are left out
    assert_predicted(aten.convolution_backward.default, args, rel=0.05)


@needs_avx512
@pytest.mark.parametrize("groups", [1, 40])
def test_a_convolution_with_channels_last(groups: int) -> None:
    x = torch.zeros(8, 40, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(40, 40 // groups, 7, 7)
    settings = ([1, 1], [3, 3], [1, 1], False, [0, 0], groups)
    assert_predicted(aten.convolution.default, (x, weight, None, *settings), rel=0.05)
    backward = (torch.zeros_like(x), x, weight, [0], *settings, [True, True, False])
    assert_predicted(aten.convolution_backward.default, backward, rel=0.05)


def test_a_transposed_convolution() -> None:
    x, weight = torch.zeros(8, 64, 16, 16), torch.zeros(64, 32, 2, 2)
    settings = ([2, 2], [0, 0], [1, 1], True, [0, 0], 1)
    assert_predicted(aten.convolution.default, (x, weight, None, *settings), rel=0.05)
    gradient = torch.zeros(8, 32, 32, 32)
    args = (gradient, x, weight, [0], *settings, [True, True, False])
    assert_predicted(aten.convolution_backward.default, args, rel=0.05)


@pytest.mark.parametrize("dense", [True, False])
def test_norms_read_in_order(dense: bool) -> None:
    x = torch.zeros(8, 16, 16, 64)
    x = x if dense else x.transpose(1, 3)
    size = [x.shape[-1]]
    weight = torch.ones(size)
    assert_predicted(aten.native_layer_norm.default, (x, size, weight, weight, 1e-5))
    _, mean, rstd = aten.native_layer_norm.default(x, size, weight, weight, 1e-5)
    gradients = [True, True, True]
    backward = (x, x, size, mean, rstd, weight, weight, gradients)
    assert_predicted(aten.native_layer_norm_backward.default, backward)
    channels = torch.ones(x.shape[1])
    per_channel = (channels, channels, channels, channels, channels)
    args = (x, x, *per_channel, True, 1e-5, gradients)
    assert_predicted(aten.native_batch_norm_backward.default, args)


@pytest.mark.parametrize("tokens", [64, 197, 1024])
def test_fused_attention(tokens: int) -> None:
    q = torch.zeros(2, 4, tokens, 32)
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert_predicted(forward, (q, q, q))
    output, sums = forward(q, q, q)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    for gradient in (torch.zeros_like(q), torch.zeros(2, tokens, 4, 32).transpose(1, 2)):
        assert_predicted(backward, (gradient, q, q, q, output, sums, 0.0, False))


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (aten.roll.default, (torch.zeros(8, 21, 21, 96), [3, 3], [1, 2])),
        (aten.native_dropout.default, (torch.zeros(8, 64, 16, 16), 0.1, True)),
        (aten._safe_softmax.default, (torch.zeros(8, 4, 64, 64), -1)),
        (aten._softmax.default, (torch.zeros(8, 4, 64, 64).transpose(1, 2), -1, False)),
        (aten.upsample_bilinear2d.default, (torch.zeros(8, 64, 16, 16), [32, 32], False)),
    ],
    ids=lambda value: str(value) if not isinstance(value, tuple) else "",
)
def test_other_kernels(operator, args: tuple) -> None:
    assert_predicted(operator, args)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_avx512)])
@pytest.mark.parametrize(("inputs", "hidden"), [(64, 128), (300, 128), (256, 256), (20, 30)])
def test_the_lstms_workspace_is_as_large_as_onednn_makes_it(
    inputs: int, hidden: int, dtype: torch.dtype
) -> None:
    def layer(steps: int, batch: int) -> tuple:
        x, state = torch.zeros(steps, batch, inputs), torch.zeros(batch, hidden)
        weights = torch.nn.LSTM(inputs, hidden)._flat_weights
        x, state, *weights = (t.detach().to(dtype) for t in (x, state, *weights))
        return (x, *weights, state, state, False, [], 2, hidden, 1, True, False, False, True)

    operator = aten.mkldnn_rnn_layer.default
    for steps, batch in ((10, 3), (64, 8)):
        args = layer(steps, batch)
        results = operator(*args)
        call = Call(describe(operator), args, {}, results)
        workspace: Tensor = results[3]
        assert lstm_workspace_bytes(call) == workspace.numel()
    assert_predicted(operator, layer(64, 8), rel=0.03)


def test_other_devices_have_their_own_kernels() -> None:
    args = CONVOLUTIONS["3x3"]
    meta = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    operator = aten.convolution.default
    assert scratch_bytes(Call(describe(operator), meta, {}, operator(*meta))) == 0
