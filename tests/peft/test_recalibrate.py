"""Exact means: what reaches each batch norm on the data has mean 0 and variance 1 behind it."""

import copy
import importlib

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError, NumericError
from efftrain.peft import recalibrate, set_bn_stats


@pytest.fixture
def batches() -> list[torch.Tensor]:
    """Three batches of different size and place."""
    noise = torch.Generator().manual_seed(2)
    sizes = [(8, 1.0, 0.0), (5, 3.0, 2.0), (3, 0.5, -4.0)]
    return [scale * torch.randn(n, 3, 8, 8, generator=noise) + at for n, scale, at in sizes]


def test_the_first_layer_by_hand() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    recalibrate(model, [torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[8.0, 3.0]])])
    # means (1 + 3 + 8) / 3, (0 + 0 + 3) / 3; variances (9 + 1 + 16) / 3, (1 + 1 + 4) / 3
    assert torch.allclose(model[0].running_mean, torch.tensor([4.0, 1.0]))
    assert torch.allclose(model[0].running_var, torch.tensor([26 / 3, 2.0]))


def test_it_equals_one_batch_of_all_data_normalised_by_itself(convnet, batches) -> None:
    # an independent way to the same statistics: the whole data as one batch in training mode
    model = convnet()
    reference = copy.deepcopy(model)
    for layer in (reference.bn1, reference.bn2):
        layer.momentum = 1.0
    everything = torch.cat(batches)
    reference.train()(everything)
    done = recalibrate(model, batches)
    assert (done.layers, done.batches, done.passes, done.exact) == (("bn1", "bn2"), 3, 2, True)
    unbiased = everything.numel() / 3 / (everything.numel() / 3 - 1)  # torch stores n / (n - 1)
    for ours, theirs in ((model.bn1, reference.bn1), (model.bn2, reference.bn2)):
        assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
        assert torch.allclose(ours.running_var * unbiased, theirs.running_var, rtol=1e-5)


def test_a_deep_residual_model_is_exact_at_every_layer(batches) -> None:
    models = importlib.import_module("torchvision").models
    torch.manual_seed(0)
    model = models.resnet18()
    data = [nn.functional.interpolate(batch, size=32) for batch in batches]
    done = recalibrate(model, data)
    assert len(done.layers) == 20
    found = dict.fromkeys(done.layers, torch.empty(0))

    def note(path):
        def hook(_, inputs):
            found[path] = torch.cat([found[path], inputs[0].transpose(0, 1).flatten(1).T])

        return hook

    for path in done.layers:
        model.get_submodule(path).register_forward_pre_hook(note(path))
    with torch.no_grad():
        for batch in data:
            model.eval()(batch)
    for path, values in found.items():
        layer = model.get_submodule(path)
        assert torch.allclose(layer.running_mean, values.mean(0), atol=1e-5, rtol=1e-4), path
        assert torch.allclose(layer.running_var, values.var(0, correction=0), rtol=1e-4), path


def test_one_pass_is_exact_in_the_first_layer_only(convnet, batches) -> None:
    exact, quick = convnet(), convnet()
    recalibrate(exact, batches)
    done = recalibrate(quick, iter(batches), exact=False)  # a stream will do
    assert (done.passes, done.exact) == (1, False)
    assert torch.allclose(quick.bn1.running_var, exact.bn1.running_var)
    assert not torch.allclose(quick.bn2.running_var, exact.bn2.running_var, rtol=1e-2)


@pytest.mark.parametrize("policy", ["running", "batch", "update", "recalibrate"])
@pytest.mark.parametrize("exact", [True, False])
def test_modes_policy_and_parameters_are_as_before(convnet, batches, policy, exact) -> None:
    model = convnet()
    model.add_module("drop", nn.Dropout(0.5))
    set_bn_stats(model, policy)
    model.train()
    model.conv1.eval()
    modes = [m.training for m in model.modules()]
    parameters = [p.clone() for p in model.parameters()]
    recalibrate(model, batches, exact=exact)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())
    mean = model.bn1.running_mean.clone()
    model.train()(batches[0])
    assert torch.equal(model.bn1.running_mean, mean) == (policy != "update")


def test_batches_of_any_kind(convnet, batches) -> None:
    plain, pairs, own = convnet(), convnet(), convnet()
    recalibrate(plain, batches)
    recalibrate(pairs, [(batch, torch.zeros(len(batch))) for batch in batches])
    recalibrate(own, [{"x": batch} for batch in batches], lambda model, batch: model(batch["x"]))
    assert torch.equal(plain.bn2.running_var, pairs.bn2.running_var)
    assert torch.equal(plain.bn2.running_var, own.bn2.running_var)


def test_a_mapping_goes_in_by_name_without_the_labels(batches) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, pixel_values):
            return self.bn(pixel_values)

    model = Named()
    recalibrate(model, [{"pixel_values": batch, "labels": None} for batch in batches])
    assert torch.allclose(model.bn.running_mean, torch.cat(batches).mean((0, 2, 3)), atol=1e-5)


def test_a_layer_that_one_forward_runs_twice_is_not_called_exact(batches) -> None:
    norm = nn.BatchNorm2d(3)
    assert not recalibrate(nn.Sequential(norm, nn.ReLU(), norm), batches).exact


def test_a_layer_that_never_runs_keeps_its_statistics(convnet, batches) -> None:
    model = nn.ModuleDict({"used": convnet(), "idle": nn.BatchNorm2d(3)})
    done = recalibrate(model, batches, lambda one, batch: one["used"](batch))
    assert done.layers == ("used.bn1", "used.bn2")
    assert torch.equal(model["idle"].running_var, torch.ones(3))


def test_data_that_is_not_finite_leaves_everything_as_it_was(convnet, batches) -> None:
    model = convnet()
    with torch.no_grad():
        model.conv2.weight.fill_(float("inf"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NumericError, match="what reaches bn2 is not finite"):
        recalibrate(model, batches)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "there is no batch to measure on"), (iter([1]), "can be read only once.*exact=False")],
)
def test_no_data_is_an_error(convnet, data, message) -> None:
    with pytest.raises(ConfigError, match=message):
        recalibrate(convnet(), data)


def test_a_model_without_batch_norms_is_an_error(transformer, batches) -> None:
    with pytest.raises(ConfigError, match="has no batch norm with running statistics"):
        recalibrate(transformer(), batches)
