"""Backward knows what is frozen: a step under each way of training, against closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from efftrain.peft import apply, select
from efftrain.profiling.count import count_step
from tests.profiling import zoo

BACKWARD = ("backward_inputs", "backward_weights")
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def vit() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224")


def train_only(model: nn.Module, trains: Callable[[str, nn.Module], bool]) -> nn.Module:
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(trains(f"{path}.{name}", module))
    return model


def is_norm(name: str, module: nn.Module) -> bool:
    return isinstance(module, NORMS)


INSIDE = zoo.QKV + 2 * zoo.ATTENTION + zoo.OUTPUT + zoo.MLP  # gradients for a block's activations
LAST_4 = ("blocks.8.", "blocks.9.", "blocks.10.", "blocks.11.", "norm.")

# What trains; backward for inputs; backward for weights; backward / forward as published with the
# derivation in the comment.
VIT_MODES = {
    # every linear layer twice, attention twice (four products); no gradient for the image
    "full": (
        lambda name, module: True,
        zoo.BLOCKS * INSIDE + zoo.HEAD,
        zoo.PATCHES + zoo.BLOCKS * (zoo.QKV + zoo.OUTPUT + zoo.MLP) + zoo.HEAD,
        1.993,
    ),
    # down to the first norm, which stands behind the patches
    "norm": (is_norm, zoo.BLOCKS * INSIDE + zoo.HEAD, 0, 1.034),
    "norm_bias": (
        lambda name, module: is_norm(name, module) or name.endswith("bias"),
        zoo.BLOCKS * INSIDE + zoo.HEAD,
        0,
        1.034,
    ),
    "bias": (
        lambda name, module: name.endswith("bias"),
        zoo.BLOCKS * INSIDE + zoo.HEAD,
        0,
        1.034,
    ),
    "norm_last4": (
        lambda name, module: is_norm(name, module) and name.startswith(LAST_4),
        4 * INSIDE + zoo.HEAD,
        0,
        0.345,
    ),
    "final_norm": (lambda name, module: name.startswith("norm."), zoo.HEAD, 0, 0.000),
    "head": (lambda name, module: name.startswith("head."), 0, zoo.HEAD, 0.000),
    "nothing": (lambda name, module: False, 0, 0, 0.000),
}


@pytest.mark.parametrize("mode", VIT_MODES)
def test_backward_knows_what_is_frozen(mode: str) -> None:
    trains, inputs, weights, ratio = VIT_MODES[mode]
    count = count_step(train_only(vit(), trains), zoo.image())
    assert count.macs("forward") == zoo.VIT
    assert count.macs("backward_inputs") == inputs
    assert count.macs("backward_weights") == weights
    assert count.macs(*BACKWARD) / zoo.VIT == pytest.approx(ratio, abs=5e-4)


# As the peft room names them: what trains of ViT-B/16, gradients for inputs, for weights, the ratio.
METHODS = {
    "full": ({}, *VIT_MODES["full"][1:]),
    "norm": ({}, *VIT_MODES["norm"][1:]),
    "norm_bias": ({}, zoo.BLOCKS * INSIDE + zoo.HEAD, 0, 1.034),
    "bias": ({}, *VIT_MODES["bias"][1:]),
    # the first of the four has a norm before its first linear layer
    "last_k": (
        {"last_k": 4},
        4 * INSIDE + zoo.HEAD,
        4 * (zoo.QKV + zoo.OUTPUT + zoo.MLP),
        (4 * (2 * INSIDE - 2 * zoo.ATTENTION) + zoo.HEAD) / zoo.VIT,
    ),
    "head": ({}, *VIT_MODES["head"][1:]),
}


@pytest.mark.parametrize("method", METHODS)
def test_backward_knows_what_each_method_freezes(method: str) -> None:
    options, inputs, weights, ratio = METHODS[method]
    model = vit()
    apply(model, select(model, method, **options))
    count = count_step(model, zoo.image())
    assert count.macs("forward") == zoo.VIT
    assert count.macs("backward_inputs") == inputs
    assert count.macs("backward_weights") == weights
    assert count.macs(*BACKWARD) / zoo.VIT == pytest.approx(ratio, abs=5e-4)


def test_backward_of_adapters_is_the_closed_form() -> None:
    """LoRA of rank 8 on every qkv: the first block's input needs no gradient."""
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        model = get_peft_model(vit(), LoraConfig(r=8, target_modules=["qkv"], lora_dropout=0.0))
    down, up = zoo.TOKENS * zoo.WIDTH * 8, zoo.TOKENS * 8 * 3 * zoo.WIDTH
    apply(model, select(model, "lora"))
    count = count_step(model, zoo.image())
    assert count.macs("forward") == zoo.VIT + zoo.BLOCKS * (down + up)
    assert count.macs("backward_weights") == zoo.BLOCKS * (down + up)
    assert count.macs("backward_inputs") == (
        zoo.BLOCKS * (INSIDE + up) + zoo.HEAD - zoo.QKV + (zoo.BLOCKS - 1) * down
    )
    assert count.macs(*BACKWARD) / zoo.VIT == pytest.approx(1.017, abs=5e-3)


@pytest.mark.parametrize(("name", "saving"), [("efficientnet_b0", 1.51), ("resnet50", 1.51)])
def test_training_norms_saves_a_third_of_a_convolutional_step_not_nineteen_twentieths(
    name: str, saving: float
) -> None:
    model = copy.deepcopy(zoo.build(name).model).train()
    full = count_step(model, zoo.image(2)).macs()
    norm = count_step(train_only(model, is_norm), zoo.image(2)).macs()
    assert full / norm == pytest.approx(saving, abs=5e-3)


def test_each_gradient_of_a_convolution_costs_what_its_forward_does() -> None:
    for name in ("mobilenet_v2", "convnext_tiny"):
        known = zoo.build(name)
        count = count_step(known.model.train(), zoo.image(2))
        # the first layer's input is the image
        stem = {"mobilenet_v2": 112 * 112 * 32 * 27, "convnext_tiny": 56 * 56 * 96 * 48}[name]
        assert count.macs("forward") == 2 * known.macs
        assert count.macs("backward_weights") == 2 * known.macs
        assert count.macs("backward_inputs") == 2 * (known.macs - stem)
