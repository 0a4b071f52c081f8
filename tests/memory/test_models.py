"""Whole models of timm, torchvision and transformers, unmodified."""

import pytest
import torch
from torch import nn

from efftrain.memory import check_gradients, reduce_memory
from efftrain.profiling import find_saved
from tests.memory.steps import (
    error,
    gradients,
    live_bytes,
    randomize_norms,
    reduced_copy,
    saved_bytes,
    squares,
    train_norms_alone,
)

# name, side of its image, at most this share of plain torch's bytes
TIMM = {
    "resnet18": (64, 0.60),
    "resnetv2_50x1_bit": (
        64,
        0.95,
    ),  # StdConv2d, whose weights outweigh so small an image; GroupNormAct
    "efficientnet_b0": (64, 0.55),  # BatchNormAct2d with SiLU written over, squeeze-and-excitation
    "mobilenetv3_small_100": (64, 0.75),
    "regnety_002": (64, 0.75),
    "densenet121": (64, 0.75),
    "convnext_atto": (64, 0.95),
    "vit_tiny_patch16_224": (224, 1.0),
    "repvgg_a0": (64, 0.85),
    "mixer_s32_224": (224, 1.0),
}


def timm_model(name: str, side: int) -> tuple[nn.Module, torch.Tensor]:
    import timm

    model = timm.create_model(name, num_classes=7)
    randomize_norms(train_norms_alone(model, "head", "classifier", "fc"))
    return model.eval(), torch.randn(2, 3, side, side)


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model_has_torchs_output_and_gradients_and_keeps_less(name: str) -> None:
    side, share = TIMM[name]
    model, images = timm_model(name, side)
    reduced = reduced_copy(model)
    assert torch.allclose(reduced(images), model(images), rtol=1e-5, atol=1e-5)
    # in float64, so that nothing but a wrong formula shows; torch's hardswish has 1/6 in float32
    exact, images64 = model.double(), images.double()
    assert error(gradients(exact, images64), gradients(reduced.double(), images64)) <= 1e-8
    assert saved_bytes(reduced, images64) <= share * saved_bytes(exact, images64)


def test_batch_statistics_are_no_further_from_the_truth_than_torch() -> None:
    model, images = timm_model("resnet18", 64)
    model.train()
    truth = gradients(reduced_copy(model).double(), images.double())
    plain = error(truth, gradients(reduced_copy(model), images))
    assert error(truth, gradients(reduced_copy(model), images)) <= max(2 * plain, 1e-6)


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, hidden_dropout_prob=0.1,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def llama(kind: str = "Llama"):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=64, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    return getattr(transformers, f"{kind}Model")(config)


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def vit():
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=32, patch_size=8,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


TRANSFORMERS = {
    "bert": (bert, 0.9),  # dropout's masks in bits
    "llama": (llama, 0.75),
    "gemma": (lambda: llama("Gemma"), 0.75),  # scales by 1 + w
    "qwen3": (lambda: llama("Qwen3"), 0.75),  # norms of queries and keys
    "t5": (t5, 0.95),
    "vit": (vit, 1.0),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_model_has_torchs_gradients_and_keeps_less(
    name: str, training: bool
) -> None:
    make, share = TRANSFORMERS[name]
    model = randomize_norms(train_norms_alone(make())).train(training)
    tokens = {"input_ids": torch.arange(24).view(2, 12) % 50}
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)} if name == "vit" else tokens

    def loss(output):
        return squares(output.last_hidden_state)

    reduced = reduced_copy(model)
    assert error(gradients(model, batch, loss), gradients(reduced, batch, loss)) <= 2e-6
    share = 1.0 if name == "bert" and not training else share
    assert live(reduced, batch) <= share * live(model, batch)


def live(model, batch) -> int:
    class State(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, **inputs):
            return self.inner(**inputs).last_hidden_state

    return saved_bytes(State(), batch)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_hugging_faces_own_checkpointing_of_layers() -> None:
    model = train_norms_alone(llama()).train()
    reduced = reduced_copy(model)
    batch = {"input_ids": torch.arange(24).view(2, 12) % 50}
    expected = gradients(model, batch, lambda o: squares(o.last_hidden_state))
    reduced.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(reduced, batch, lambda o: squares(o.last_hidden_state))
    assert error(expected, found) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_low_precision_has_its_own_output_to_the_bit(dtype: torch.dtype) -> None:
    model = train_norms_alone(llama()).to(dtype)
    tokens = {"input_ids": torch.arange(24).view(2, 12) % 50}
    expected, found = (m(**tokens).last_hidden_state for m in (model, reduced_copy(model)))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_the_profilers_bytes_are_the_allocators_before_and_after(name: str) -> None:
    model, images = timm_model(name, 64)
    for _ in range(2):
        kept = find_saved(model, images, lambda out: out.sum()).saved_bytes
        assert kept == pytest.approx(live_bytes(model, images), rel=0.01)
        reduce_memory(model)


def test_checking_gradients_leaves_the_model_as_it_was() -> None:
    model, images = timm_model("resnet18", 64)
    model.train()
    reduce_memory(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    check = check_gradients(model, images)
    assert torch.equal(torch.rand(1), expected)
    assert check.passed
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_wrong_gradient_is_found_by_the_check(monkeypatch) -> None:
    from efftrain.errors import NumericError
    from efftrain.memory.functions.batch_norm import BatchNorm

    model, images = timm_model("resnet18", 64)
    reduce_memory(model)
    right = BatchNorm.backward

    def wrong(ctx, *grads):
        dx, dweight, *rest = right(ctx, *grads)
        return dx, None if dweight is None else 1.1 * dweight, *rest

    monkeypatch.setattr(BatchNorm, "backward", staticmethod(wrong))
    with pytest.raises(NumericError, match="gradients differ from plain autograd by"):
        check_gradients(model, images)
