"""Sites follow from the order of the calls, not from names: checked on blocks whose order is known."""

import importlib

import pytest
import torch

from efftrain.errors import ConfigError
from efftrain.peft import find_sites, select


def build(config: str, kind: str = "Model", **options):
    transformers = importlib.import_module("transformers")
    small = {
        "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32,
        "num_hidden_layers": 2, "vocab_size": 20, **options,
    }  # fmt: skip
    return getattr(transformers, config + kind)(getattr(transformers, f"{config}Config")(**small))


TOKENS = torch.arange(6)[None]


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (  # after each part (Devlin 2019, figure 1)
            "Bert", {},
            {"encoder.layer.0.attention.output.LayerNorm": ("block", "after_attention", "before_mlp"),
             "encoder.layer.1.output.LayerNorm": ("block", "after_mlp"),
             "embeddings.LayerNorm": ("stem",)},
        ),
        (  # before each part; the block registers its norms last
            "Llama", {},
            {"layers.0.input_layernorm": ("block", "before_attention"),
             "layers.0.post_attention_layernorm": ("block", "after_attention", "before_mlp"),
             "norm": ("final",)},
        ),
        (  # around each part
            "Gemma2", {"num_key_value_heads": 2, "head_dim": 8},
            {"layers.1.post_attention_layernorm": ("block", "after_attention"),
             "layers.1.pre_feedforward_layernorm": ("block", "before_mlp"),
             "layers.1.post_feedforward_layernorm": ("block", "after_mlp")},
        ),
        (  # inside, on queries and keys
            "Qwen3", {"num_key_value_heads": 2, "head_dim": 8},
            {"layers.0.self_attn.q_norm": ("block", "in_attention")},
        ),
    ],
    ids=["Bert", "Llama", "Gemma2", "Qwen3"],
)  # fmt: skip
def test_sites_of_transformer_blocks(config: str, options: dict, expected: dict) -> None:
    found = find_sites(build(config, **options), lambda model: model(TOKENS))
    assert {path: found[path] for path in expected} == expected


def test_the_last_norm_of_an_encoder_is_final_although_the_decoder_follows() -> None:
    model = build("T5", d_model=16, num_heads=2, d_kv=8, d_ff=32, num_layers=2)
    found = find_sites(model, lambda one: one(input_ids=TOKENS, decoder_input_ids=TOKENS))
    assert found["encoder.final_layer_norm"] == found["decoder.final_layer_norm"] == ("final",)


@pytest.mark.parametrize(
    ("first", "expected"), [(True, ("block", "before_attention")), (False, ("block", "after_mlp"))]
)
def test_the_same_name_stands_elsewhere_with_another_option(first: bool, expected: tuple) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    found = find_sites(model, lambda one: one(torch.randn(1, 4, 8)))
    assert found["layers.0.norm1" if first else "layers.0.norm2"] == expected


def test_without_a_forward_only_the_structure_is_told() -> None:
    models = importlib.import_module("torchvision").models
    with torch.device("meta"):
        found = find_sites(models.resnet18())
    assert found["bn1"] == ("stem",)
    assert found["layer1.0.bn1"] == ("block",)
    assert found["layer2.0.downsample.1"] == ("block", "downsample")
    assert {place for places in found.values() for place in places} == {
        "stem", "block", "downsample",
    }  # fmt: skip


def test_watching_leaves_modes_and_hooks_alone() -> None:
    model = build("Llama")
    model.train()
    model.layers[0].eval()
    find_sites(model, lambda one: one(TOKENS))
    assert model.training
    assert not model.layers[0].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_select_takes_sites() -> None:
    model = build("Llama", "ForCausalLM")
    chosen = select(model, "norm+head", sites="before_attention", run=lambda one: one(TOKENS))
    assert chosen.groups["norm"] == tuple(
        f"model.layers.{number}.input_layernorm.weight" for number in (0, 1)
    )
    assert chosen.groups["head"] == ("lm_head.weight",)
    assert select(model, "norm", sites=["final"]).names == ("model.norm.weight",)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("before_atention", r"peft\.sites=before_atention is not a site; did you mean before_att"),
        ("before_mlp", r"shows only in a forward; pass run=lambda model: model\(batch\)"),
        ("downsample", r"has no norm there; it has norms at block, final"),
    ],
)
def test_a_site_that_cannot_be_had_is_an_error(sites: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(build("Llama"), "norm", sites=[sites])
