"""Models, and their multiply-accumulates by hand or by an independent count of their layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn


def layer_macs(model: nn.Module, batch: torch.Tensor) -> int:
    """Conv2d and Linear modules, each output element times the inputs that it meets."""
    macs = 0

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            macs += output.numel() * kernel * module.in_channels // module.groups
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return macs


# ViT-B/16 at 224: 196 patches and a class token, width 768, 12 blocks, MLP 3072, 1000 classes.
TOKENS, WIDTH, BLOCKS = 197, 768, 12
PATCHES = 196 * WIDTH * 3 * 16 * 16
QKV = TOKENS * WIDTH * 3 * WIDTH
ATTENTION = 2 * TOKENS * TOKENS * WIDTH
OUTPUT = TOKENS * WIDTH * WIDTH
MLP = 2 * TOKENS * WIDTH * 4 * WIDTH
HEAD = WIDTH * 1000
VIT = PATCHES + BLOCKS * (QKV + ATTENTION + OUTPUT + MLP) + HEAD

# Swin-T at 224: windows of 49 tokens; at each stage blocks x tokens x 2 x 49 x width.
SWIN_ATTENTION = 2 * 49 * (
    2 * 56 * 56 * 96 + 2 * 28 * 28 * 192 + 6 * 14 * 14 * 384 + 2 * 7 * 7 * 768
)  # fmt: skip

# BERT-base, 128 tokens: per block 4 projections, attention, MLP of 4 x width; the pooler's layer.
BERT = 12 * (4 * 128 * 768**2 + 2 * 128**2 * 768 + 8 * 128 * 768**2) + 768**2

# Llama with 2 blocks, 64 tokens, width 128, 8 heads that share 2 keys, MLP 344, 1000 words.
LLAMA = 2 * 64 * (2 * 128**2 + 2 * 128 * 32 + 2 * 64 * 128 + 3 * 128 * 344) + 64 * 128 * 1000

# Two bidirectional layers, 10 steps: the second reads both directions of the first.
LSTM = 10 * 2 * 4 * 64 * ((32 + 64) + (128 + 64))
GRU = 10 * 2 * 3 * 64 * ((32 + 64) + (128 + 64))


class Known(NamedTuple):
    """A model on the meta device, a batch of one sample, and its forward pass in MACs."""

    model: nn.Module
    batch: Any
    macs: int


class _First(nn.Module):
    """A recurrent layer's output without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        return self.layer(sequence)[0]


def image(size: int = 1) -> torch.Tensor:
    return torch.empty(size, 3, 224, 224, device="meta")


def words(tokens: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.empty(1, tokens, dtype=torch.long, device="meta")}


def convolutional(name: str) -> Known:
    model = torchvision.models.get_model(name, weights=None)
    return Known(model, image(), layer_macs(model.eval(), image()))


def swin() -> Known:
    model = torchvision.models.swin_t()
    # the projections are called as functions, on all tokens of all windows
    tokens = [(56 * 56, 96, 2), (28 * 28, 192, 2), (14 * 14, 384, 6), (7 * 7, 768, 2)]
    projections = sum(4 * blocks * count * width**2 for count, width, blocks in tokens)
    return Known(model, image(), layer_macs(model.eval(), image()) + projections + SWIN_ATTENTION)


def bert() -> Known:
    from transformers import BertConfig, BertModel

    return Known(BertModel(BertConfig()), words(128), BERT)


def llama() -> Known:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    return Known(LlamaForCausalLM(config), words(64), LLAMA)


def recurrent(kind: type[nn.RNNBase], macs: int) -> Known:
    layer = kind(32, 64, num_layers=2, bidirectional=True, batch_first=True)
    return Known(_First(layer), torch.empty(1, 10, 32, device="meta"), macs)


ZOO: dict[str, Callable[[], Known]] = {
    **{
        name: lambda name=name: convolutional(name)
        for name in (
            "resnet50",
            "resnext50_32x4d",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "efficientnet_b0",
            "convnext_tiny",
        )
    },
    "vit_b_16": lambda: Known(torchvision.models.vit_b_16(), image(), VIT),
    "timm_vit": lambda: Known(timm.create_model("vit_base_patch16_224"), image(), VIT),
    "swin_t": swin,
    "bert": bert,
    "llama": llama,
    "lstm": lambda: recurrent(nn.LSTM, LSTM),
    "gru": lambda: recurrent(nn.GRU, GRU),
}


@cache
def build(name: str) -> Known:
    """A model of the zoo, built once; tests give it back as it was."""
    with torch.device("meta"):
        return ZOO[name]()
