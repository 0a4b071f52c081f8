import copy
import importlib

import pytest
import torch
from torch import nn

from efftrain.errors import CheckpointError, ConfigError
from efftrain.peft import add_ssf, apply, load_delta, merge_ssf, save_delta, select


def test_it_starts_as_the_identity_and_adds_two_parameters_for_each_layer(convnet, images) -> None:
    model = convnet()
    expected, keys = model.eval()(images), set(model.state_dict())
    assert add_ssf(model) == ("conv1", "bn1", "conv2", "bn2")  # not the head
    assert torch.equal(model(images), expected)
    added = set(model.state_dict()) - keys
    assert added == {f"{layer}.ssf_{what}" for layer in ("conv1", "bn1", "conv2", "bn2")
                     for what in ("scale", "shift")}  # fmt: skip
    selection = select(model, "ssf+head")
    assert selection.sizes == {"head": 35, "other": 2 * (4 + 4 + 6 + 6)}


@pytest.mark.parametrize("kind", ["convnet", "transformer"])
def test_a_trained_model_merges_into_a_plain_one(kind, request, images, train) -> None:
    model = request.getfixturevalue(kind)().double()
    keys = set(model.state_dict())
    batch = images.double() if kind == "convnet" else torch.randn(2, 4, 8, dtype=torch.float64)
    layers = add_ssf(model)
    apply(model, select(model, "ssf"))
    train(model.train(), batch)
    expected = model.eval()(batch)
    assert all(float(p.detach().sub(1).abs().max()) > 0 for n, p in model.named_parameters()
               if n.endswith("ssf_scale"))  # fmt: skip
    assert merge_ssf(model) == layers
    assert torch.allclose(model(batch), expected, rtol=1e-10, atol=1e-12)
    biases = {"conv1.bias"} if kind == "convnet" else set()  # it had none
    assert set(model.state_dict()) == keys | biases
    assert not any(m._forward_hooks for m in model.modules())


def test_layers_that_their_owner_reads_instead_of_calling_are_left_out(transformer) -> None:
    layers = add_ssf(transformer())
    assert not any("self_attn" in path for path in layers)  # fused attention reads its projections
    assert "encoder.layers.0.linear1" in layers


def test_tied_weights_are_left_out() -> None:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=10, tie_word_embeddings=True,
    )  # fmt: skip
    assert not any("head" in path for path in add_ssf(transformers.LlamaForCausalLM(config)))


def test_only_some_layers_may_be_chosen(convnet) -> None:
    assert add_ssf(convnet(), "conv*") == ("conv1", "conv2")
    with pytest.raises(ConfigError, match=r"peft\.include=convv matches none"):
        add_ssf(convnet(), ["convv"])


def test_a_delta_loads_where_the_scales_and_shifts_are(convnet, images, train, tmp_path) -> None:
    model = convnet()
    add_ssf(model)
    apply(model, select(model, "ssf"))
    train(model.train(), images)
    save_delta(model, tmp_path / "task.safetensors")
    base = convnet()
    with pytest.raises(CheckpointError, match=r"has no bn1\.ssf_scale.*after add_ssf"):
        load_delta(base, tmp_path / "task.safetensors")
    add_ssf(base)
    load_delta(base, tmp_path / "task.safetensors")
    assert torch.equal(base.eval()(images), model.eval()(images))


def test_copies_keep_their_own(convnet, images) -> None:
    model = convnet().eval()
    add_ssf(model)
    twin = copy.deepcopy(model)
    twin.bn2.ssf_shift.data.fill_(1.0)
    assert not torch.equal(twin(images), model(images))


def test_twice_or_never_is_an_error(convnet) -> None:
    model = convnet()
    with pytest.raises(ConfigError, match="this model has no scale and shift"):
        merge_ssf(model)
    add_ssf(model)
    with pytest.raises(ConfigError, match="merge_ssf first"):
        add_ssf(model)
    with pytest.raises(ConfigError, match="no linear layer, convolution or norm"):
        add_ssf(nn.Sequential(nn.ReLU()))
