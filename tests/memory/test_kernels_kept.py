"""What kernels keep for backward: bits, 4-bit places, 8-bit codes, and the norms over last dimensions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.errors import EfftrainError
from efftrain.memory import kernels
from efftrain.memory.kernels.cpp.build import library
from efftrain.memory.kernels.derivative_grid import LOW, STEP

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(params=["aten", "cpp"])
def way(request):
    """Every test runs both ways."""
    if request.param == "cpp":
        assert library() is not None, "the C++ kernels do not build here"
    with kernels.using(request.param):
        yield request.param


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def test_eight_elements_share_a_byte_the_first_in_the_lowest_bit():
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    bits = kernels.pack_bits(mask)
    assert bits.tolist() == [1 + 128, 2]
    assert torch.equal(kernels.unpack_bits(bits, (2, 5)), mask.view(2, 5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_comes_back_in_its_memory_format(layout):
    mask = (torch.randn(2, 3, 5, 7) > 0).contiguous(memory_format=layout)
    bits = kernels.pack_bits(mask, layout)
    back = kernels.unpack_bits(bits, (2, 3, 5, 7), layout)
    assert bits.numel() == math.ceil(2 * 3 * 5 * 7 / 8)
    assert torch.equal(back, mask)
    assert back.stride() == mask.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 8, 4, 4), (1, 1, 1, 3)])
def test_add_relu_equals_torch_bit_for_bit_and_so_does_its_gradient(way, shape, layout):
    a, b, grad = (torch.randn(shape).contiguous(memory_format=layout) for _ in range(3))
    a[0, 0, 0, 0], b[0, 0, 0, 0] = 1.5, -1.5
    inputs = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    expected = F.relu(inputs[0] + inputs[1])
    expected.backward(grad)
    y, bits = kernels.add_relu(a, b)
    dx = kernels.mask_grad(grad, bits, kernels.memory_format_of(a))
    assert torch.equal(y, expected)
    assert torch.equal(dx, inputs[0].grad)
    assert y.stride() == expected.stride()
    assert bits.numel() == math.ceil(a.numel() / 8)


def test_a_zero_passes_no_gradient_and_operands_may_lie_differently(way):
    a = torch.tensor([0.0, -0.0, 1e-30, -1.0] * 6).view(1, 2, 3, 4)
    b = torch.zeros(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    y, bits = kernels.add_relu(a, b)
    dx = kernels.mask_grad(torch.ones_like(b), bits)
    assert torch.equal(dx, torch.tensor([0.0, 0.0, 1.0, 0.0] * 6).view(1, 2, 3, 4))
    assert torch.equal(y, F.relu(a))
    alone, _ = kernels.add_relu(a)
    assert torch.equal(alone, y)


POOLS = (
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((2, 2), (2, 2), (0, 0), (1, 1), True),
    ((3, 2), (2, 1), (1, 1), (2, 2), False),
    ((4, 4), (3, 3), (2, 2), (1, 1), True),
    ((5, 5), (3, 3), (2, 2), (1, 1), False),
)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_max_pool_keeps_half_a_byte_and_has_torchs_gradient_bit_for_bit(way, pool, layout):
    kernel, stride, padding, dilation, ceil_mode = pool
    x = torch.randn(2, 5, 13, 11).contiguous(memory_format=layout).requires_grad_()
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    y, codes = kernels.max_pool2d(x.detach(), *pool)
    dx = kernels.max_pool2d_backward(grad, codes, tuple(x.shape), *pool)
    assert torch.equal(y, expected)
    assert torch.equal(dx, x.grad)
    assert codes.dtype == torch.uint8
    bytes_kept = y.numel() if kernel == (5, 5) else math.ceil(y.numel() / 2)
    assert codes.numel() == bytes_kept


def test_max_pool_takes_equal_values_and_nan_as_torch_does(way):
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 2] = float("nan")
    x.requires_grad_()
    expected = F.max_pool2d(x, 3, 2, 1)
    expected.backward(torch.arange(9.0).view(1, 1, 3, 3))
    y, codes = kernels.max_pool2d(x.detach(), (3, 3), (2, 2), (1, 1))
    dx = kernels.max_pool2d_backward(
        torch.arange(9.0).view(1, 1, 3, 3), codes, (1, 1, 6, 6), (3, 3), (2, 2), (1, 1)
    )
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(dx, x.grad)


def test_a_pool_whose_window_no_byte_can_tell_is_refused(way):
    with pytest.raises(EfftrainError, match="over 256 places"):
        kernels.max_pool2d(torch.zeros(1, 1, 40, 40), (17, 17), (1, 1))


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_has_autograds_gradients_bit_for_bit(affine):
    x, grad = torch.randn(6, 5, 24), torch.randn(6, 5, 24)
    weight, bias = (torch.randn(24), torch.randn(24)) if affine else (None, None)
    leaf = x.clone().requires_grad_()
    if affine:
        weight.requires_grad_()
        bias.requires_grad_()
    F.layer_norm(leaf, (24,), weight, bias).backward(grad)
    _, mean, rstd = torch.native_layer_norm(x, (24,), weight, bias, 1e-5)
    dx, dweight, dbias = kernels.layer_norm_backward(grad, x, weight, mean, rstd, shape=(24,))
    assert torch.equal(dx, leaf.grad)
    if affine:
        assert torch.equal(dweight, weight.grad)
        assert torch.equal(dbias, bias.grad)
    alone, *_ = kernels.layer_norm_backward(
        grad, x, weight, mean, rstd, shape=(24,), needs_dx=False
    )
    assert alone is None


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_has_torchs_values_and_gradients(way, affine, rows):
    x, grad = torch.randn(rows, 3, 40) * 2, torch.randn(rows, 3, 40)
    weight = torch.randn(40) if affine else None
    leaf = x.double().requires_grad_()
    wide = weight.double().requires_grad_() if affine else None
    expected = F.rms_norm(leaf, (40,), wide, 1e-6)
    expected.backward(grad.double())
    y, rstd = kernels.rms_norm(x, weight, eps=1e-6)
    dx, dweight = kernels.rms_norm_backward(grad, x, weight, rstd)
    assert rstd.shape == (rows, 3, 1)
    assert error(y, expected.detach()) < 1e-6
    assert error(dx, leaf.grad) < 1e-6
    if affine:
        assert error(dweight, wide.grad) < 1e-6
    assert kernels.rms_norm_backward(grad, x, weight, rstd, needs_dx=False)[0] is None


def test_rms_norm_of_two_threads_is_that_of_one():
    x, grad, weight = torch.randn(31, 40), torch.randn(31, 40), torch.randn(40)
    with kernels.using("cpp"):
        _, rstd = kernels.rms_norm(x, weight, eps=1e-6)
        one = kernels.rms_norm_backward(grad, x, weight, rstd)
        torch.set_num_threads(2)
        try:
            two = kernels.rms_norm_backward(grad, x, weight, rstd)
        finally:
            torch.set_num_threads(1)
    assert torch.equal(one[0], two[0])
    assert error(one[1], two[1]) < 1e-6


# ---- eight bits


class Quantized:
    """A BatchNorm by running statistics, by torch and from eight bits."""

    def __init__(self, act, shape=(4, 12, 14, 14), layout=torch.contiguous_format):
        channels = shape[1]
        self.x = (torch.randn(shape) * 2 + 3).contiguous(memory_format=layout)
        self.grad = torch.randn(shape).contiguous(memory_format=layout)
        weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
        mean, var = torch.full((channels,), 3.0), torch.full((channels,), 4.0)
        leaves = [t.clone().requires_grad_() for t in (self.x, weight, bias)]
        y = kernels.activate(F.batch_norm(leaves[0], mean, var, *leaves[1:], False, 0, 1e-5), act)
        y.backward(self.grad)
        self.expected = [y.detach(), *(leaf.grad for leaf in leaves)]
        y, self.codes, self.low, self.step, rstd = kernels.batch_norm_act_8bit(
            self.x, weight, bias, mean, var, eps=1e-5, act=act
        )
        back = (self.grad, self.codes, self.low, self.step, weight, mean, rstd)
        self.found = [y, *kernels.batch_norm_act_8bit_backward(*back, act=act)]
        self.without_dx = kernels.batch_norm_act_8bit_backward(*back, act=act, needs_dx=False)


@pytest.mark.parametrize("act", kernels.QUANTIZABLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_bits_leave_dx_and_dbias_exact_and_dweight_close(way, act, layout):
    norm = Quantized(act, layout=layout)
    for found, expected in zip(norm.found[:2], norm.expected[:2], strict=True):
        assert error(found, expected) < 1e-6
        assert found.stride() == expected.stride()
    assert error(norm.found[3], norm.expected[3]) < 1e-6
    cosine = F.cosine_similarity(norm.found[2], norm.expected[2], dim=0)
    assert cosine > 0.9999
    assert norm.without_dx[0] is None
    assert torch.equal(norm.without_dx[1], norm.found[2])


@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_code_zero_stands_exactly_where_no_gradient_passes(way, act):
    norm = Quantized(act)
    blocked = norm.expected[1] == 0
    assert 0 < blocked.sum() < blocked.numel()
    assert torch.equal(norm.codes == 0, blocked)


def test_an_eight_bit_x_is_off_by_half_a_step_of_its_plane_at_most(way):
    norm = Quantized("none")
    step = norm.step[:, :, None, None]
    back = norm.low[:, :, None, None] + step * norm.codes
    planes = norm.x.flatten(2)
    torch.testing.assert_close(norm.step, (planes.amax(2) - planes.amin(2)) / 255)
    assert ((back - norm.x).abs() <= step * 0.501).all()


@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 1, 1), (2, 3, 9)])
def test_a_plane_of_one_place_or_of_one_value_has_a_gradient_too(way, act, shape):
    norm = Quantized(act, shape)
    assert error(norm.found[1], norm.expected[1]) < 1e-6
    assert error(norm.found[3], norm.expected[3]) < 1e-6
    assert error(norm.found[2], norm.expected[2]) < 0.01


def test_an_activation_whose_slope_is_not_zero_or_one_is_refused(way):
    with pytest.raises(EfftrainError, match="derivative of 'silu'"):
        Quantized("silu")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelus_derivative_is_off_by_half_a_step_at_most(way, approximate):
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64).requires_grad_()
    expected = F.gelu(x, approximate=approximate)
    expected.backward(torch.ones_like(x))
    y, codes = kernels.gelu_8bit(x.detach().float(), approximate=approximate)
    dx = kernels.gelu_8bit_backward(torch.ones(4001), codes)
    assert (y - expected).abs().max() < 2e-6
    assert (dx - x.grad).abs().max() < 0.51 * STEP
    # the grid's ends are the derivative's extremes, at -+sqrt(2)
    assert pytest.approx(x.grad.min().item(), abs=1e-3) == LOW
    assert pytest.approx(x.grad.max().item(), abs=1e-3) == LOW + 255 * STEP


def test_gelus_tail_keeps_its_sign_and_its_nan(way):
    x = torch.tensor([-30.0, -12.0, 12.0, float("nan")] * 8)
    y, _ = kernels.gelu_8bit(x)
    assert -1e-30 < y[0] <= 0
    assert -1e-6 < y[1] <= 0
    assert y[2] == 12
    assert y[3].isnan()


def test_a_window_that_lies_in_the_padding_as_a_whole_is_left_to_torch() -> None:
    x = torch.randn(1, 300, 2, 2)
    y, codes = kernels.max_pool2d(x, (2, 2), (1, 1), (1, 1), (3, 3))
    wanted = torch.nn.functional.max_pool2d(x, 2, 1, 1, 3)
    assert torch.equal(y, wanted)
    assert codes.numel() <= y.numel()
