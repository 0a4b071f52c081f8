"""A delta comes back to the bit, goes off to the bit, and is put only on its own base."""

import copy
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from efftrain.errors import CheckpointError, ConfigError, NumericError
from efftrain.peft import (
    apply,
    collect_delta,
    load_delta,
    read_delta,
    recalibrate,
    save_delta,
    select,
    swap_delta,
    unload_delta,
)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture
def trained(convnet, images, train, tmp_path):
    """Trains a copy of the base and saves the delta: (trained model, path)."""

    def make(method: str = "norm_head", bn_stats: str = "running", name: str = "task", lr=1e-2):
        model = convnet()
        apply(model, select(model, method), bn_stats=bn_stats)
        train(model.train(), images, lr=lr)
        path = tmp_path / f"{name}.safetensors"
        save_delta(model, path, metadata={"task": name})
        return model.eval(), path

    return make


@pytest.mark.parametrize("method", ["norm", "norm_head", "bias", "head", "norm_bias", "full"])
@pytest.mark.parametrize("bn_stats", ["running", "batch", "update"])
def test_save_load_and_unload_are_exact_to_the_bit(
    trained, convnet, images, method: str, bn_stats: str
) -> None:
    model, path = trained(method, bn_stats)
    base = convnet().eval()
    before, logits = state(base), base(images)
    load_delta(base, path)
    assert same(state(base), state(model))
    assert torch.equal(base(images), model(images))
    assert unload_delta(base)
    assert same(state(base), before)
    assert torch.equal(base(images), logits)
    assert not unload_delta(base)


def test_what_is_in_the_file(trained) -> None:
    _, path = trained("norm")
    delta = read_delta(path)
    assert set(delta.tensors) == {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}
    assert (delta.method, delta.bn_stats, delta.user) == ("norm", "running", {"task": "task"})
    assert delta.groups == {"norm": ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias")}
    assert set(delta.base_parts) == {"conv1", "bn1", "conv2", "bn2", "fc"}


def test_statistics_are_in_the_file_exactly_if_they_moved(trained, convnet, images) -> None:
    moved = {
        f"{bn}.{name}"
        for bn in ("bn1", "bn2")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    for policy, expected in (("running", set()), ("batch", set()), ("update", moved)):
        _, path = trained("norm", policy)
        assert {name for name in read_delta(path).tensors if name in moved} == expected
    model = convnet()
    apply(model, select(model), bn_stats="running")
    model.bn2.running_mean += 1  # by hand, against the policy
    assert moved & set(collect_delta(model).tensors) == {"bn2.running_mean"}


def test_recalibrated_statistics_travel(convnet, images, train, tmp_path) -> None:
    model = convnet()
    apply(model, select(model), bn_stats="recalibrate")
    recalibrate(model, [images])
    train(model.train(), images)
    save_delta(model, tmp_path / "task.safetensors")
    base = convnet()
    load_delta(base, tmp_path / "task.safetensors")
    assert torch.equal(base.eval()(images), model.eval()(images))


def test_a_full_delta_is_a_complete_state_and_needs_no_base(trained, convnet) -> None:
    model, path = trained("full")
    delta = read_delta(path)
    assert (delta.base, set(delta.tensors)) == ("", set(model.state_dict()))
    other = convnet()
    other.conv1.weight.data.normal_()
    load_delta(other, path)
    assert same(state(other), state(model))


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 2.0])
def test_scale_goes_from_the_base_to_the_trained_model_and_beyond(trained, convnet, scale) -> None:
    model, path = trained()
    base, pristine = convnet(), convnet()
    load_delta(base, path, scale=scale)
    for name, value in state(base).items():
        start, end = pristine.state_dict()[name], model.state_dict()[name]
        expected = (start.double() + scale * (end.double() - start.double())).to(end.dtype)
        assert torch.equal(value, expected), name


def test_running_variances_cannot_be_scaled_below_zero(trained, convnet) -> None:
    _, path = trained("norm", "update")
    base = convnet()
    before = state(base)
    with pytest.raises(CheckpointError, match=r"would become negative at -1000000\.0"):
        load_delta(base, path, scale=-1e6)
    assert same(state(base), before)


def test_swapping_goes_by_way_of_the_base(trained, convnet, images) -> None:
    first, one = trained("norm", name="one")
    second, two = trained("head", name="two", lr=0.1)
    base = convnet().eval()
    before = state(base)
    load_delta(base, one)
    swap_delta(base, two)
    assert torch.equal(base(images), second(images))
    swap_delta(base, one, scale=1.0)
    assert torch.equal(base(images), first(images))
    unload_delta(base)
    assert same(state(base), before)


def test_a_second_load_is_refused(trained, convnet) -> None:
    _, path = trained()
    base = convnet()
    load_delta(base, path)
    with pytest.raises(ConfigError, match="swap_delta, or call unload_delta first"):
        load_delta(base, path)


def test_the_way_back_survives_a_copy_and_more_training(trained, convnet, images, train) -> None:
    _, path = trained()
    base = convnet()
    before = state(base)
    load_delta(base, path)
    twin = copy.deepcopy(base)
    train(twin.train(), images)
    twin.load_state_dict({**twin.state_dict(), **{n: before[n] for n in before if "conv" in n}})
    unload_delta(twin)
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert all(torch.equal(twin.state_dict()[n], before[n]) for n in before if n not in statistics)


def test_training_on_top_of_a_loaded_delta_saves_both(
    trained, convnet, images, train, tmp_path
) -> None:
    _, norms = trained("norm")
    model = convnet()
    load_delta(model, norms)
    apply(model, select(model, "head"))
    train(model.train(), images)
    save_delta(model, tmp_path / "both.safetensors")
    base = convnet()
    load_delta(base, tmp_path / "both.safetensors")
    assert same(state(base), state(model))


def wrong_weight(model: nn.Module) -> None:
    model.conv2.weight.data[0, 0, 0, 0] += 1


def wrong_statistics(model: nn.Module) -> None:
    model.bn1.running_var += 1


def wrong_type(model: nn.Module) -> None:
    model.conv1.to(torch.float16)


@pytest.mark.parametrize(
    ("change", "part"), [(wrong_weight, "conv2"), (wrong_statistics, "bn1"), (wrong_type, "conv1")]
)
def test_another_base_is_refused_by_name_and_nothing_is_applied(
    trained, convnet, change, part
) -> None:
    _, path = trained()
    base = convnet()
    change(base)
    before = state(base)
    with pytest.raises(CheckpointError, match=rf"the frozen weights differ in {part}; ") as caught:
        load_delta(base, path)
    assert "\n" not in str(caught.value)
    assert same(state(base), before)
    load_delta(base, path, check_base=False)
    assert not same(state(base), before)


def test_another_architecture_is_refused_and_nothing_is_applied(
    trained, convnet, transformer
) -> None:
    _, path = trained()
    for model, message in [
        (transformer(), "does not fit Sequential: the model has no bn1"),
        (self_with_wider_head(convnet()), r"fc\.bias is \[5\] in the delta and \[7\] in the model"),
    ]:
        before = state(model)
        with pytest.raises(CheckpointError, match=message):
            load_delta(model, path)
        assert same(state(model), before)


def self_with_wider_head(model: nn.Sequential) -> nn.Sequential:
    model.fc = nn.Linear(6, 7)
    return model


@pytest.mark.parametrize("method", ["norm", "full"])
def test_a_tensor_that_is_missing_is_named(trained, convnet, method) -> None:
    model, _ = trained(method)
    delta = collect_delta(model)
    del delta.tensors["bn2.bias"]
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors that it should hold, first bn2\.bias"
    ):
        load_delta(convnet(), delta)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_saved(convnet, tmp_path: Path, value: float) -> None:
    model = convnet()
    apply(model, select(model))
    model.bn1.weight.data[0] = value
    with pytest.raises(
        NumericError, match=r"bn1\.weight holds NaN or infinity; nothing was written"
    ):
        save_delta(model, tmp_path / "task.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_selection_saves_what_requires_a_gradient(convnet) -> None:
    model = convnet().requires_grad_(False)
    with pytest.raises(
        ConfigError, match="no parameter of Sequential trains; call select and apply"
    ):
        collect_delta(model)
    model.bn1.requires_grad_(True)
    delta = collect_delta(model)
    assert delta.method == "custom"
    assert {"bn1.weight", "bn1.bias", "bn2.running_var"} <= set(delta.tensors)  # no policy is known


def test_a_selection_of_another_model_is_refused(convnet, transformer) -> None:
    with pytest.raises(ConfigError, match="the selection belongs to another model"):
        collect_delta(convnet(), select(transformer()))


def test_tied_tensors_are_in_the_file_once_and_come_back(tmp_path: Path) -> None:
    norm = nn.LayerNorm(4)
    model = nn.Sequential(norm, nn.Linear(4, 4), norm, nn.Linear(4, 2))
    base = copy.deepcopy(model)
    apply(model, select(model))
    norm.weight.data.fill_(2.0)
    save_delta(model, tmp_path / "task.safetensors")
    assert set(load_delta(base, tmp_path / "task.safetensors").tensors) == {"0.weight", "0.bias"}
    assert torch.equal(base[2].weight, torch.full((4,), 2.0))


def test_a_delta_of_norms_is_small(tmp_path: Path) -> None:
    # research figure: 208 KiB for ResNet-50 in float32, 53,120 x 4 bytes and a header
    transformers = importlib.import_module("transformers")
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig())
    apply(model, select(model))
    assert 0 <= save_delta(model, tmp_path / "task.safetensors").bytes - 53_120 * 4 < 24 * 1024
