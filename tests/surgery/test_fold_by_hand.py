"""Folds small enough to work out by hand, or with torch's own `fuse_conv_bn_eval`."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from efftrain.surgery import fold


def test_a_batch_norm_goes_into_the_convolution_before_it():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.fill_(1.0)
        model[1].weight.fill_(3.0)
        model[1].bias.fill_(-1.0)
        model[1].running_mean.fill_(4.0)
        model[1].running_var.fill_(0.25)
    report = fold(model, torch.randn(2, 1, 3, 3))
    # scale 3 / 0.5 = 6; weight 2 x 6 = 12; bias (1 - 4) x 6 - 1 = -19
    assert report.model[0].weight.item() == 12.0
    assert report.model[0].bias.item() == -19.0
    assert type(report.model[1]) is nn.Identity
    (norm,) = report.folded
    assert (norm.path, norm.into, norm.before, norm.left_as) == ("1", ("0",), True, "identity")
    assert norm.added_bias == ()


def test_a_layer_norm_goes_into_the_linear_after_it_which_gets_a_bias():
    model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 3.0]))
        model[0].bias.copy_(torch.tensor([10.0, 20.0]))
        model[1].weight.copy_(torch.tensor([[5.0, 7.0]]))
    report = fold(model, torch.randn(4, 2))
    assert report.model[1].weight.tolist() == [[10.0, 21.0]]
    assert report.model[1].bias.tolist() == [190.0]  # 5 x 10 + 7 x 20
    assert report.folded[0].added_bias == ("1",)
    assert report.folded[0].left_as == "no_affine"
    assert list(report.model.state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 8)),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.BatchNorm2d(6), (2, 4, 8, 8)),
        (nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), (2, 2, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    ],
)
def test_batch_norms_fold_as_torch_folds_them(trained, layer, norm, shape):
    model = trained(nn.Sequential(layer, norm)).double()
    transposed = isinstance(layer, nn.ConvTranspose2d)
    expected = fuse_conv_bn_eval(model[0], model[1], transposed)
    report = fold(model, torch.randn(shape, dtype=torch.float64))
    torch.testing.assert_close(report.model[0].weight, expected.weight)
    torch.testing.assert_close(report.model[0].bias, expected.bias)


def test_a_batch_norm_behind_a_linear_folds_as_torch_folds_it(trained):
    model = trained(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))).double()
    expected = fuse_linear_bn_eval(model[0], model[1])
    report = fold(model, torch.randn(4, 3, dtype=torch.float64))
    torch.testing.assert_close(report.model[0].weight, expected.weight)
    torch.testing.assert_close(report.model[0].bias, expected.bias)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 6, 3, groups=2),  # torch's fuse does not know groups here
        nn.Conv2d(4, 6, 3, groups=2, dilation=2, bias=False),
    ],
)
def test_groups_keep_their_channels(trained, layer):
    model = trained(nn.Sequential(layer, nn.BatchNorm2d(6))).double()
    images = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    report = fold(model, images)
    assert len(report.folded) == 1
    torch.testing.assert_close(report.model(images), model(images))


@pytest.mark.parametrize(
    ("norm", "layer", "shape"),
    [
        (nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
        (nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
        (nn.RMSNorm(4), nn.Linear(4, 3, bias=False), (2, 7, 4)),
        (nn.RMSNorm(4), nn.Conv2d(5, 2, 3, padding=1), None),
        (nn.BatchNorm1d(4), nn.Linear(4, 3), (2, 4)),
    ],
)
def test_a_norm_goes_into_what_follows_it(trained, norm, layer, shape):
    if shape is None:  # a scale of rows, which are no channels of the convolution
        model, images = trained(nn.Sequential(norm, layer)), torch.randn(2, 5, 6, 4)
        assert fold(model, images).left[0].reason == "1 does not take its channels one by one"
        return
    model = trained(nn.Sequential(norm, layer)).double()
    images = torch.randn(shape, dtype=torch.float64)
    report = fold(model, images)
    assert not report.folded[0].before
    torch.testing.assert_close(report.model(images), model(images))
    assert "0.weight" not in report.model.state_dict()


def test_a_layer_between_two_norms_takes_both(trained):
    """The first gives it a bias; the second finds a parameter that was not there before."""
    layers = nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
    model = trained(nn.Sequential(*layers)).double()
    images = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    report = fold(model, images)
    assert report.left == ()
    torch.testing.assert_close(report.model(images), model(images))


def test_a_scale_passes_zero_padding_and_a_shift_does_not(trained):
    images = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    model = trained(nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1))).double()
    (left,) = fold(model, images).left
    assert left.reason == "1 pads its input with zeros, which the norm's bias would not reach"
    with torch.no_grad():
        model[0].bias.zero_()
    report = fold(model, images)
    assert len(report.folded) == 1
    torch.testing.assert_close(report.model(images), model(images))


def test_what_was_given_stays_as_it_was(trained):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))).train()
    before = copy.deepcopy(model.state_dict())
    fold(model, torch.randn(2, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
