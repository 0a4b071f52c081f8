"""What is not exact is not folded, and the report says why."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from efftrain.surgery import fold, restructure


class Net(nn.Module):
    """Two linear layers and two norms; each test connects them in its own way."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.gn = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


CASES = {
    "also returned": (
        lambda m, x: (y := m.conv(x), m.bn(y)),
        {"bn": "conv feeds not only it: its output is returned by the model"},
    ),
    "a residual from before the norm": (
        lambda m, x: m.bn(y := m.conv(x)) + y,
        {"bn": "conv feeds not only it: its output goes into add"},
    ),
    "changed in place before the norm": (
        lambda m, x: m.bn(m.conv(x).relu_()),
        {"bn": "conv feeds not only it: its output goes into relu_"},
    ),
    "changed in place through a view": (
        lambda m, x: ((y := m.gn(x)).view(-1).mul_(2), m.conv(y))[1],
        {"gn": "its output goes into view"},
    ),
    "two convolutions, one norm": (
        lambda m, x: m.bn(m.conv(x)) + m.bn(m.other(x)),
        {"bn": "bn runs 2 times"},
    ),
    "one convolution, called twice": (
        lambda m, x: m.bn(m.conv(m.conv(x))),
        {"bn": "its input comes from conv, no linear layer that feeds only it"},
    ),
    "a residual from behind the norm": (
        lambda m, x: m.conv(y := m.gn(x)) + y,
        {"gn": "its output goes into add"},
    ),
    "an activation between": (
        lambda m, x: m.conv(m.gn(x).relu()),
        {"gn": "its output goes into relu"},
    ),
    "padded by hand": (
        lambda m, x: m.conv(functional.pad(m.gn(x), (1, 1))),
        {"gn": "zeros are padded beside its output, which its bias would not reach"},
    ),
    "channels mixed by a view": (
        lambda m, x: m.conv(m.gn(x).reshape(-1, 2, 4, 6).transpose(1, 2)),
        {"gn": "its output goes into view"},
    ),
    "the weight read elsewhere": (
        lambda m, x: m.bn(m.conv(x)) + m.conv.weight.sum(),
        {"bn": "conv.weight is also used in the model itself"},
    ),
    "the norm's weight read elsewhere": (
        lambda m, x: m.bn(m.conv(x)) * m.bn.weight.sum(),
        {"bn": "bn.weight is also used in the model itself"},
    ),
    "a second norm behind it": (
        lambda m, x: m.conv(m.bn(m.gn(x))),
        {"gn": "its output goes into bn, which is not linear"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_left_alone_with_its_reason(trained, name):
    run, reasons = CASES[name]
    model = trained(Net(run)).double()
    images = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    report = fold(model, images)
    found = {one.path: one.reason for one in report.left if "does not run" not in one.reason}
    assert {path: reason.split("; behind it")[0] for path, reason in found.items()} == reasons
    assert not {one.path for one in report.folded} & set(reasons)


def test_a_channel_that_is_cut_off_is_no_neighbour(trained):
    model = trained(Net(lambda m, x: m.conv(torch.cat([m.gn(x)[:, :2], x[:, :2]], 1)))).double()
    (left, *_) = (
        one for one in fold(model, torch.randn(2, 4, 3, 3).double()).left if "gn" in one.path
    )
    assert left.reason == "its output goes into slice"


def test_shared_modules_and_shared_weights_are_left_alone(trained):
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)
    (left,) = fold(trained(model), torch.randn(2, 4, 3, 3)).left
    assert left.reason == "1 is the same module as 3"

    tied = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[1].weight
    (left,) = fold(trained(tied), torch.randn(2, 4)).left
    assert left.reason == "1.weight is the same tensor as 2.weight"


def test_batch_statistics_are_no_fixed_scale(trained):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    (left,) = fold(trained(model), torch.randn(2, 4, 3, 3)).left
    assert left.reason == "its output is returned by the model"


class StandardizedConv(nn.Conv2d):
    """Divides by the deviation of its weight: a scale of the weight has no effect."""

    def forward(self, x):
        return functional.conv2d(x, self.weight / self.weight.std(), self.bias)


class ClippedBatchNorm(nn.BatchNorm2d):
    """Does something behind the scale that no attribute tells of."""

    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


def test_a_subclass_is_believed_only_for_what_it_does(trained):
    images = torch.randn(2, 4, 3, 3)
    (left,) = fold(
        trained(nn.Sequential(StandardizedConv(4, 4, 1), nn.BatchNorm2d(4))), images
    ).left
    assert left.reason.startswith("scaling the weight of 0 does not scale its output; behind it:")
    (left,) = fold(trained(nn.Sequential(nn.Conv2d(4, 4, 1), ClippedBatchNorm(4))), images).left
    assert left.reason == "ClippedBatchNorm does more than normalise and activate"


def test_a_weight_that_would_overflow_stays(trained):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).half().eval()
    with torch.no_grad():
        model[0].weight.fill_(100.0)
        model[1].running_var.fill_(1e-7)
        model[1].weight.fill_(1e4)
    (left,) = fold(model, torch.randn(2, 4).half()).left
    assert left.reason == "0.weight would not fit into torch.float16"


def test_a_fold_that_fails_its_proof_is_refused(trained):
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    before = copy.deepcopy(model.state_dict())
    report = fold(model, torch.randn(2, 4, 8, 8), tolerance=0.0)  # rounding alone is too much
    assert report.model is model
    assert report.folded == ()
    assert "on given inputs the folded model is off by" in report.refused
    assert report.left[0].reason == "the fold was refused"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folded_state_loads_into_the_same_structure(trained):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.LayerNorm(36),
            nn.Linear(36, 2, bias=False),
        )

    images = torch.randn(2, 3, 3, 3)
    report = fold(trained(build()), images)
    fresh = build().eval()
    restructure(fresh, report.to_dict()["folded"])
    fresh.load_state_dict(report.model.state_dict())
    assert torch.equal(fresh(images), report.model(images))
