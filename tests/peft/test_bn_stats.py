"""A policy holds for every batch norm, whoever calls `.train()`, copies or pickles the model."""

import copy
import importlib
import pickle
import warnings

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import apply, get_bn_stats, select, set_bn_stats


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for _, buffer in model.named_buffers()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def warm(convnet, images):
    """A model whose statistics differ from the identity and from those of the test batch."""
    model = convnet()
    for _ in range(3):
        model.train()(images * 0.5 - 1)
    return model


def test_running_makes_the_training_forward_equal_the_eval_forward(warm, images) -> None:
    expected = warm.eval()(images)
    before = statistics(warm)
    set_bn_stats(warm, "running")
    assert torch.equal(warm.train()(images), expected)
    assert same(statistics(warm), before)
    assert warm.training
    assert warm.conv1.training


def test_batch_normalises_by_the_batch_and_leaves_every_buffer(warm, images) -> None:
    plain = copy.deepcopy(warm).train()
    expected = plain(images)
    before, at_rest = statistics(warm), copy.deepcopy(warm).eval()(images)
    set_bn_stats(warm, "batch")
    assert torch.equal(warm.train()(images), expected)
    assert same(statistics(warm), before)  # num_batches_tracked, too
    assert torch.equal(warm.eval()(images), at_rest)


def test_update_is_plain_torch_and_takes_everything_back(warm, images) -> None:
    plain = copy.deepcopy(warm).train()
    for policy in ("running", "batch"):
        set_bn_stats(warm, policy)
    set_bn_stats(warm.train(), "update")
    assert torch.equal(warm(images), plain(images))
    assert same(statistics(warm), statistics(plain))
    assert [vars(m).keys() for m in warm.modules()] == [vars(m).keys() for m in plain.modules()]


@pytest.mark.parametrize("policy", ["running", "batch", "recalibrate"])
@pytest.mark.parametrize(
    "carry",
    [
        lambda model: model,
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
        lambda model: model.double().float(),
    ],
    ids=["same", "deepcopy", "pickle", "both", "cast"],
)
def test_the_policy_survives(warm, images, policy: str, carry) -> None:
    set_bn_stats(warm, policy)
    model = carry(warm)
    before = statistics(model)
    model.train()
    model.bn1.train()
    model.eval().train(True)(images)
    assert same(statistics(model), before)
    assert get_bn_stats(model) == policy
    if model is not warm:  # the copy holds itself, not the original
        model.bn1.train()
        assert model.bn1.train.layer is model.bn1
    set_bn_stats(model, "update")
    model.train()(images)
    assert not same(statistics(model), before)


@pytest.mark.parametrize("policy", ["running", "batch"])
def test_types_keys_and_signatures_stay(warm, policy: str) -> None:
    types, keys = [type(m) for m in warm.modules()], list(warm.state_dict())
    set_bn_stats(warm, policy)
    assert [type(m) for m in warm.modules()] == types
    assert list(warm.state_dict()) == keys
    assert warm.bn1.train(False) is warm.bn1
    fresh = copy.deepcopy(warm)
    fresh.load_state_dict(warm.state_dict())


def test_every_layer_with_running_statistics_is_held() -> None:
    layers = [
        nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3),
        nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3, affine=False),
    ]  # fmt: skip
    model = nn.ModuleList([*layers, nn.LayerNorm(3), nn.BatchNorm2d(3, track_running_stats=False)])
    assert set_bn_stats(model, "running") == tuple(map(str, range(6)))
    model.train()
    assert [m.training for m in model] == [False] * 6 + [True, True]


def test_an_instance_norm_that_tracks_uses_its_statistics_in_eval_under_batch() -> None:
    layer = nn.InstanceNorm1d(3, track_running_stats=True)
    layer(torch.randn(4, 3, 5) + 2)
    model, batch = nn.Sequential(layer), torch.randn(4, 3, 5)
    in_eval, before = copy.deepcopy(model).eval()(batch), statistics(model)
    in_training = copy.deepcopy(model).train()(batch)
    set_bn_stats(model, "batch")
    assert torch.equal(model.train()(batch), in_training)
    assert torch.equal(model.eval()(batch), in_eval)
    assert same(statistics(model), before)


def test_a_fused_layers_dropout_follows_the_mode_of_the_model() -> None:
    layers = importlib.import_module("timm").layers
    fused = layers.BatchNormAct2d(3, drop_layer=nn.Dropout)
    set_bn_stats(nn.Sequential(fused), "running")
    fused.train()
    assert not fused.training
    assert fused.drop.training


def test_trained_batch_norms_are_held_as_frozen_ones_are(warm, images, train) -> None:
    # the trap: a pattern on names trains some norms and lets the others drift
    apply(warm, select(warm, include=["bn1"]))
    before = statistics(warm)
    train(warm.train(), images)
    assert same(statistics(warm), before)


def test_the_gradient_in_eval_mode_is_right(convnet) -> None:
    model = convnet().double()
    model.act = nn.Tanh()  # a ReLU has no derivative at 0
    set_bn_stats(model, "running")
    batch = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def run(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {"bn1.weight": weight, "bn1.bias": bias}, batch)

    at = [p.detach().clone().requires_grad_() for p in (model.bn1.weight, model.bn1.bias)]
    assert torch.autograd.gradcheck(run, at)


def test_a_training_mode_that_was_set_by_hand_is_noticed(warm) -> None:
    set_bn_stats(warm, "running")
    warm.bn2.training = True
    with pytest.raises(
        ConfigError, match=r"peft\.bn_stats=running: bn2 \(BatchNorm2d\) is in train"
    ):
        get_bn_stats(warm)


def test_batch_norms_that_disagree_are_noticed(warm) -> None:
    set_bn_stats(warm.bn1, "running")
    with pytest.raises(ConfigError, match="disagree"):
        get_bn_stats(warm)


def test_a_layer_that_cannot_do_what_is_asked_is_named() -> None:
    class Own(nn.Module):
        momentum = 0.1

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_var", torch.ones(2))

    with pytest.raises(ConfigError, match=r"peft\.bn_stats=batch: 0 \(Own\) has no switch"):
        set_bn_stats(nn.Sequential(Own()), "batch")


def test_an_unknown_policy_is_an_error(warm) -> None:
    with pytest.raises(ConfigError, match="allowed are running, batch, update, recalibrate"):
        set_bn_stats(warm, "frozen")


def test_the_policy_survives_compilation_and_export(warm, images) -> None:
    set_bn_stats(warm, "running")
    expected = warm.eval()(images)
    warm.train()
    exported = torch.export.export(warm, (images,)).module()
    assert torch.allclose(exported(images), expected, atol=1e-6)


@pytest.mark.parametrize("bn_stats", ["running", "batch"])
def test_the_policy_survives_lightning(convnet, images, tmp_path, bn_stats: str) -> None:
    # the trap: Lightning's own freezing leaves batch norms normalising by the batch
    lightning = importlib.import_module("lightning.pytorch")

    class Task(lightning.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return self.model(batch).square().mean()

        def validation_step(self, batch, _):
            self.model(batch)

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    model = convnet()
    apply(model, select(model), bn_stats=bn_stats)
    before = statistics(model)
    loader = torch.utils.data.DataLoader(images, batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging intervals
        trainer.fit(Task(model), loader, loader)
    assert same(statistics(model), before)
    assert get_bn_stats(model) == bn_stats
