"""Models of torchvision, timm and transformers, with norms as a training leaves them."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from efftrain.surgery import fold

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def relative_error(folded: nn.Module, model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        expected, found = model(images), folded(images)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "norms"), [("resnet50", 53), ("mobilenet_v2", 52)])
def test_all_batch_norms_fold(trained, name, norms):
    model = trained(torchvision.models.get_model(name))
    images = torch.randn(2, 3, 64, 64)
    held_out = torch.randn(3, 3, 96, 96)
    report = fold(model, images)
    assert len(report.folded) == norms
    assert report.left == ()
    assert not any(isinstance(one, nn.BatchNorm2d) for one in report.model.modules())
    assert relative_error(report.model, model, held_out) < 1e-3
    exact = fold(model.double(), images.double())
    assert relative_error(exact.model, model, held_out.double()) < 1e-5
    assert exact.random.max_rel < 1e-5


def test_the_logits_of_these_models_depend_on_every_scale(trained):
    """Otherwise equal logits would prove nothing: a few wrong channels in one layer have to show."""
    model = trained(torchvision.models.resnet50()).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold(model, images).model
    with torch.no_grad():
        folded.layer2[1].conv2.weight[:8] *= 1.1
    assert relative_error(folded, model, images) > 1e-5


def test_a_fused_activation_stays(trained):
    model = trained(timm.create_model("mobilenetv3_small_050")).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    report = fold(model, images)
    assert report.left == ()
    assert {norm.left_as for norm in report.folded} == {"identity", "activation"}
    assert isinstance(report.model.bn1, nn.Hardswish)
    assert relative_error(report.model, model, images) < 1e-5


def test_a_vision_transformer_of_torchvision_folds_into_its_attention(trained):
    model = trained(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64)).double()
    nn.init.normal_(model.heads.head.weight)  # starts at zero: all logits would be equal
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    report = fold(model, images)
    assert [norm.into for norm in report.folded] == [
        ("encoder.layers.encoder_layer_0.self_attention",),
        ("encoder.layers.encoder_layer_0.mlp.0",),
        ("encoder.layers.encoder_layer_1.self_attention",),
        ("encoder.layers.encoder_layer_1.mlp.0",),
        ("heads.head",),
    ]
    assert relative_error(report.model, model, images) < 1e-5


def test_a_vision_transformer_of_timm_folds(trained):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4
    )
    trained(model).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    report = fold(model, images)
    assert len(report.folded) == 2 * 2 + 1
    assert all(norm.left_as == "no_affine" for norm in report.folded)
    assert relative_error(report.model, model, images) < 1e-5


def test_windows_and_merged_patches_let_a_norm_through(trained):
    """Shifts, windows, a mean over tokens, and a merge of four patches before the norm."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(2, 2), num_heads=(2, 2)
    )
    trained(model).double()
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    report = fold(model, images)
    assert [norm.path for norm in report.left] == ["patch_embed.norm"]
    assert len(report.folded) == 2 * 4 + 2  # blocks, the merge, the last
    assert relative_error(report.model, model, images) < 1e-5


def test_norms_of_a_convnext_fold_into_pointwise_and_strided_layers(trained):
    model = trained(timm.create_model("convnext_atto", depths=(1, 1, 1, 1))).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    report = fold(model, images)
    assert [(one.path, one.reason) for one in report.left] == [
        ("stem.1", "its output goes into add in stages.0.blocks.0")
    ]
    downsample = next(one for one in report.folded if one.path == "stages.1.downsample.0")
    assert downsample.into == ("stages.1.downsample.1",)
    assert relative_error(report.model, model, images) < 1e-5


def tokens() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    ("kind", "options", "offset"),
    [
        ("Llama", {}, False),
        ("Gemma", {"head_dim": 8, "num_key_value_heads": 4, "tie_word_embeddings": False}, True),
    ],
)
def test_root_mean_square_norms_of_a_language_model_fold(trained, kind, options, offset):
    config = getattr(transformers, f"{kind}Config")(**TINY, **options)
    model = trained(getattr(transformers, f"{kind}ForCausalLM")(config)).double()
    report = fold(model, tokens())
    assert len(report.folded) == 5
    assert report.folded[0].into == tuple(
        f"model.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v")
    )
    assert report.folded[-1].into == ("lm_head",)
    assert all(norm.left_as == "neutral" for norm in report.folded)
    scale = report.model.model.norm.weight  # (1 + w) is the identity at w = 0
    assert torch.equal(scale, torch.zeros_like(scale) if offset else torch.ones_like(scale))
    with torch.no_grad():
        expected, found = model(**tokens()).logits, report.model(**tokens()).logits
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-5


def test_a_head_that_is_tied_to_the_embedding_is_left_alone(trained):
    config = transformers.LlamaConfig(**TINY, tie_word_embeddings=True)
    report = fold(trained(transformers.LlamaForCausalLM(config)), tokens())
    (left,) = report.left
    assert left.path == "model.norm"
    assert left.reason == "lm_head.weight is the same tensor as model.embed_tokens.weight"


def test_norms_in_a_residual_stream_are_left_alone(trained):
    """BERT normalises after adding: only the last norm feeds nothing but a linear layer."""
    model = trained(transformers.BertForSequenceClassification(transformers.BertConfig(**TINY)))
    report = fold(model.double(), tokens())
    assert [norm.into for norm in report.folded] == [("bert.pooler.dense",)]
    assert len(report.left) == 4
    assert all(one.reason.startswith("its output goes into add in bert.") for one in report.left)


def test_the_fast_path_of_torchs_own_encoder_still_runs(trained):
    """It reads the norms' weights from outside, so they stay there and change nothing."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    model = trained(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).double()
    words = torch.randn(2, 5, 32, dtype=torch.float64)
    report = fold(model, words)
    assert len(report.folded) == 4
    assert all(norm.left_as == "neutral" for norm in report.folded)
    assert torch.equal(report.model.layers[0].norm1.weight, torch.ones(32, dtype=torch.float64))
    assert relative_error(report.model, model, words) < 1e-5
