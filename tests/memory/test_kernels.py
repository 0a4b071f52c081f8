"""Each kernel against plain autograd of torch's own modules, in every way that it can run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from efftrain.errors import EfftrainError
from efftrain.memory import kernels
from efftrain.memory.kernels import backend as backends
from efftrain.memory.kernels.cpp.build import library

# [N, C, ...]: a plane that fills no vector, one that fills several, no plane, a line, a volume
SHAPES = ((4, 12, 7, 7), (2, 8, 16, 16), (24, 10), (3, 8, 33), (2, 6, 4, 5, 3))
SMOOTH = ("hardswish", "silu", "gelu", "gelu_tanh")


@pytest.fixture(params=["aten", "cpp"])
def way(request):
    """Every test runs both ways."""
    if request.param == "cpp":
        assert library() is not None, "the C++ kernels do not build here"
    with kernels.using(request.param):
        yield request.param


def error(found: Tensor, expected: Tensor) -> float:
    """Of the whole tensor, relative."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


class Norm:
    """A BatchNorm and what follows, by torch itself: in fp32, and in fp64 for the truth."""

    def __init__(self, shape, act, training, layout=torch.contiguous_format):
        channels = shape[1]
        self.x = (torch.randn(shape) * 2 + 3).contiguous(memory_format=layout)
        self.grad = torch.randn(shape).contiguous(memory_format=layout)
        self.weight, self.bias = torch.rand(channels) + 0.5, torch.randn(channels)
        self.mean, self.var = torch.randn(channels), torch.rand(channels) + 0.5
        self.act, self.training = act, training

    def by_torch(self, dtype=torch.float32):
        x, weight, bias = (
            t.to(dtype).requires_grad_() for t in (self.x.clone(), self.weight.clone(), self.bias)
        )
        mean, var = self.mean.to(dtype, copy=True), self.var.to(dtype, copy=True)
        z = F.batch_norm(x, mean, var, weight, bias, self.training, 0.3, 1e-5)
        y = kernels.activate(z, self.act)
        y.backward(self.grad.to(dtype))
        return [y.detach(), mean, var, x.grad, weight.grad, bias.grad]

    def by_kernels(self, **options):
        mean, var = self.mean.clone(), self.var.clone()
        y, m, r = kernels.batch_norm_act(
            self.x,
            self.weight,
            self.bias,
            mean,
            var,
            training=self.training,
            momentum=0.3,
            eps=1e-5,
            act=self.act,
        )
        self.statistics = (m, r)
        dx, dw, db = kernels.batch_norm_act_backward(
            self.grad,
            self.x,
            self.weight,
            self.bias,
            m,
            r,
            training=self.training,
            act=self.act,
            **options,
        )
        return [y, mean, var, dx, dw, db]


@pytest.mark.parametrize("act", kernels.ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_with_its_activation_has_torchs_values_and_gradients(way, shape, training, act):
    norm = Norm(shape, act, training)
    for found, expected in zip(norm.by_kernels(), norm.by_torch(torch.float64), strict=True):
        assert found.shape == expected.shape
        assert error(found, expected) < 3e-6


@pytest.mark.parametrize("act", ["none", "relu", "relu6"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_aten_of_batch_statistics_equals_torch_bit_for_bit(act, layout):
    norm = Norm((8, 12, 9, 7), act, training=True, layout=layout)
    with kernels.using("aten"):
        found = norm.by_kernels()
    for one, other in zip(found, norm.by_torch(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("act", kernels.ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_aten_forward_equals_torch_bit_for_bit(act, training):
    norm = Norm((4, 12, 7, 7), act, training)
    with kernels.using("aten"):
        found = norm.by_kernels()[:3]
    assert all(map(torch.equal, found, norm.by_torch()[:3]))


def test_cpp_is_as_near_to_fp64_as_torch_is():
    norm = Norm((8, 16, 28, 28), "relu", training=True)
    with kernels.using("cpp"):
        found = norm.by_kernels()
    truth = norm.by_torch(torch.float64)
    for name, one, by_torch, true in zip(
        ("y", "running mean", "running var", "dx", "dweight", "dbias"),
        found,
        norm.by_torch(),
        truth,
        strict=True,
    ):
        assert error(one, true) <= 2 * error(by_torch, true) + 1e-7, name


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(way):
    norm = Norm((4, 3, 16, 16), "none", training=True)
    norm.x += 1000
    assert error(norm.by_kernels()[0], norm.by_torch(torch.float64)[0]) < 1e-4


@pytest.mark.parametrize("act", ["none", "relu6", "silu"])
def test_the_same_output_comes_again_and_running_statistics_stay(way, act):
    norm = Norm((4, 12, 7, 7), act, training=True)
    y, *_ = norm.by_kernels()
    mean, var = norm.mean.clone(), norm.var.clone()
    again = kernels.batch_norm_act_again(norm.x, norm.weight, norm.bias, *norm.statistics, act=act)
    assert error(again, y) < 1e-6
    assert torch.equal(mean, norm.mean)
    assert torch.equal(var, norm.var)


@pytest.mark.parametrize("training", [True, False])
def test_without_a_gradient_of_x_the_others_are_the_same(way, training):
    norm = Norm((4, 12, 7, 7), "relu", training)
    *_, dx, dweight, dbias = norm.by_kernels(needs_dx=False)
    *_, expected_weight, expected_bias = norm.by_kernels()
    assert dx is None
    assert torch.equal(dweight, expected_weight)
    assert torch.equal(dbias, expected_bias)


def test_a_norm_without_weight_and_bias_is_one_with_ones_and_zeros(way):
    norm = Norm((4, 12, 7, 7), "relu", training=True)
    norm.weight, norm.bias = torch.ones(12), torch.zeros(12)
    expected = norm.by_torch()
    norm.weight = norm.bias = None
    for found, one in zip(norm.by_kernels(), expected, strict=True):
        assert error(found, one) < 1e-6


@pytest.mark.parametrize("act", kernels.ACTIVATIONS)
def test_a_value_that_is_not_a_number_stays_one(way, act):
    x = torch.randn(2, 4, 8, 8)
    x[1, 2, 3, 3] = float("nan")
    y, *_ = kernels.batch_norm_act(
        x, None, None, torch.zeros(4), torch.ones(4), training=False, momentum=0.1, eps=0.0, act=act
    )
    assert torch.equal(y.isnan(), x.isnan())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grad_layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_come_in_the_layout_of_x_however_theirs_lie(way, layout, grad_layout):
    norm = Norm((4, 12, 7, 7), "relu", training=True, layout=layout)
    norm.grad = norm.grad.contiguous(memory_format=grad_layout)
    dx = norm.by_kernels()[3]
    assert error(dx, norm.by_torch()[3]) < 1e-6
    assert dx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("act", SMOOTH)
def test_low_precision_is_torchs_own(act):
    norm = Norm((4, 12, 7, 7), act, training=True)
    norm.x, norm.grad = norm.x.bfloat16(), norm.grad.bfloat16()
    x = norm.x.clone().requires_grad_()
    y = kernels.activate(F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.1, 1e-5), act)
    y.backward(norm.grad)
    found = norm.by_kernels()
    assert torch.equal(found[0], y)
    assert found[3].dtype == torch.bfloat16
    assert error(found[3], x.grad) < 0.01


def test_two_threads_compute_the_same_bits_as_one():
    norm = Norm((4, 13, 9, 9), "silu", training=True)
    with kernels.using("cpp"):
        one = norm.by_kernels()
        torch.set_num_threads(2)
        try:
            two = norm.by_kernels()
        finally:
            torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu"])
def test_a_gated_unit_has_autograds_gradients(way, act):
    gate, up = (torch.randn(5, 11, 33, dtype=torch.float64) * 3 for _ in range(2))
    grad = torch.randn_like(gate)
    inputs = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
    product = kernels.activate(inputs[0], act) * inputs[1]
    product.backward(grad)
    assert error(kernels.gated(gate.float(), up.float(), act=act), product.detach()) < 1e-6
    found = kernels.gated_backward(grad.float(), gate.float(), up.float(), act=act)
    assert all(error(one, other.grad) < 1e-6 for one, other in zip(found, inputs, strict=True))


def test_an_activation_without_a_kernel_is_refused_by_name(way):
    with pytest.raises(EfftrainError, match="'mish'; there are"):
        kernels.activate(torch.ones(3), "mish")
    with pytest.raises(EfftrainError, match="'mish'"):
        kernels.gated(torch.ones(3), torch.ones(3), act="mish")


def test_a_backend_that_is_none_is_refused_and_the_choice_is_given_back():
    with pytest.raises(EfftrainError, match=r"memory\.kernels='cuda'; there are"):
        kernels.set_backend("cuda")
    with kernels.using("aten"):
        assert kernels.get_backend() == "aten"
    assert kernels.get_backend() == "auto"


def test_auto_takes_cpp_for_large_tensors_only_and_never_where_someone_looks_on():
    large, small = torch.zeros(backends.SMALLEST), torch.zeros(backends.SMALLEST - 1)
    assert backends.choose((large,)) == "cpp"
    assert backends.choose((small, None, 3)) == "aten"
    with FlopCounterMode(display=False):
        assert backends.choose((large,)) == "aten"
    with FakeTensorMode() as mode:
        assert backends.choose((mode.from_tensor(large),)) == "aten"
    seen = []
    torch.func.vmap(lambda x: seen.append(backends.choose((x,))) or x)(large[None])
    assert seen == ["aten"]
