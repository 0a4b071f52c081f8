import copy
import pickle

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import add_affine, apply, find_norms, select, thaw_norms


def test_thawing_keeps_outputs_and_state_dict_keys_and_lets_the_norms_train(images) -> None:
    from torchvision import ops

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), ops.FrozenBatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[1].weight.uniform_(0.5, 1.5)
    output, state = model(images), copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="FrozenBatchNorm2d are buffers: call thaw_norms"):
        select(model, "norm")

    assert thaw_norms(model) == ("1.weight", "1.bias")
    assert torch.equal(model(images), output)
    assert set(model.state_dict()) == set(state)
    model.load_state_dict(state)

    selection = select(model, "norm")
    assert (selection.trainable, selection.drifting) == (8, ())
    apply(model, selection)
    model.train()(images).sum().backward()
    assert model[1].weight.grad is not None
    assert find_norms(model)[0].frozen == ()
    assert thaw_norms(model) == ()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(4, elementwise_affine=False), (2, 3, 4)),
        (nn.LayerNorm((3, 4), elementwise_affine=False), (2, 3, 4)),
        (nn.RMSNorm(4, elementwise_affine=False), (2, 3, 4)),
        (nn.GroupNorm(2, 4, affine=False), (2, 4, 3)),
        (nn.InstanceNorm1d(4), (2, 4, 3)),
        (nn.BatchNorm1d(4, affine=False), (2, 4, 3)),
    ],
    ids=str,
)
def test_an_added_scale_and_bias_change_nothing_yet_and_train(layer, shape) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"norm": layer, "rest": nn.Linear(2, 2)})
    batch, keys = torch.randn(shape), set(model.state_dict())
    output = layer(batch)
    with pytest.raises(ConfigError, match=r"have no scale or bias: add them with peft\.add_affine"):
        select(model, "norm")

    assert add_affine(model).added == ("norm",)
    assert torch.allclose(layer(batch), output, rtol=0, atol=1e-6)  # another kernel may round
    assert keys < set(model.state_dict())
    names = select(model, "norm").names
    assert names == tuple(f"norm.{name}" for name, _ in layer.named_parameters())
    layer(batch).square().sum().backward()
    assert layer.weight.grad.abs().max() > 0
    layer.weight.data.fill_(2.0)
    assert torch.allclose(layer(batch), 2 * output, atol=1e-6)


class WidthOnly(nn.Module):
    """OLMo's LayerNorm: no parameters, and a class that would not use them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape)


WidthOnly.__name__ = WidthOnly.__qualname__ = "WidthOnlyNorm"


class NoWidthNorm(nn.Module):
    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True)


def test_a_class_that_knows_of_no_scale_gets_one_that_survives_a_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 4), WidthOnly(4), NoWidthNorm())
    batch = torch.randn(2, 4)
    hidden = model[1](model[0](batch))
    done = add_affine(model)
    assert (done.added, done.skipped) == (("1",), ("2",))
    assert torch.equal(model[1](model[0](batch)), hidden)
    (found,) = (site for site in find_norms(model) if site.affine)
    assert found.parameters == ("1.weight", "1.bias")
    twin = copy.deepcopy(model)
    twin[1].bias.data.fill_(3.0)
    assert torch.allclose(twin[1](twin[0](batch)), hidden + 3)
    assert torch.equal(model[1](model[0](batch)), hidden)


def test_a_hooked_layer_can_be_pickled() -> None:
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False))
    add_affine(model)
    assert set(pickle.loads(pickle.dumps(model)).state_dict()) == {"0.weight", "0.bias"}


def test_only_some_norms_may_be_chosen() -> None:
    model = nn.Sequential(nn.InstanceNorm1d(2), nn.InstanceNorm1d(2))
    assert add_affine(model, "1").added == ("1",)
    with pytest.raises(ConfigError, match=r"peft\.add_affine=7 matches none"):
        add_affine(model, ["7"])


def test_a_model_that_needs_none_is_an_error(convnet) -> None:
    with pytest.raises(ConfigError, match="has a scale or a bias already"):
        add_affine(convnet())


def test_olmos_layer_norm_has_no_parameters_until_it_is_given_some():
    from transformers import OlmoConfig, OlmoForCausalLM

    config = OlmoConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=50, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = OlmoForCausalLM(config).eval()
    tokens = torch.arange(10).view(1, 10)
    before = model(tokens).logits
    sites = find_norms(model)
    assert [(site.kind, site.channels, site.affine) for site in sites] == [
        ("OlmoLayerNorm", 24, False)
    ] * (2 * 2 + 1)
    assert len(add_affine(model).added) == 5
    assert torch.equal(model(tokens).logits, before)
    assert select(model, "norm").trainable == 5 * 2 * 24
