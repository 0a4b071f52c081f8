"""The most memory that a step holds, against the allocator and against hand counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from efftrain.graph.rehearsal import rehearse
from efftrain.profiling.peak import StepPeak
from efftrain.profiling.saved import Saved
from efftrain.profiling.step import run_step
from tests.profiling.allocator import (
    called,
    highest_in_second_step,
    kept_for_backward,
    needs_avx512,
)

F32 = 4
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def predicted(
    model: nn.Module, batch: Any, optimizer: Callable[..., torch.optim.Optimizer] | None = None
) -> StepPeak:
    step = rehearse(lambda r: run_step(r, optimizer=optimizer, memory=True), model, batch)
    assert step.peak is not None
    return step.peak


def assert_measured(
    model: nn.Module,
    batch: Any,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    autocast: torch.dtype | None = None,
    peak_error: float = 0.03,
) -> None:
    """Saved bytes within 0.5 %, the peak within 3 %."""

    def loss_of_model() -> Tensor:
        with torch.autocast("cpu", autocast, enabled=autocast is not None, cache_enabled=False):
            output = called(model, batch)
            return output.loss if hasattr(output, "loss") else output.float().sum()

    def loss_of_output(output: Any) -> Tensor:
        return output.loss if hasattr(output, "loss") else output.float().sum()

    step = rehearse(
        lambda r: run_step(r, loss_of_output, optimizer=optimizer, memory=True, autocast=autocast),
        model,
        batch,
    )
    saved, peak = step.saved, step.peak
    assert isinstance(saved, Saved)
    assert isinstance(peak, StepPeak)
    assert saved.saved_bytes == pytest.approx(kept_for_backward(loss_of_model), rel=0.005, abs=64)
    there = peak.parameter_bytes + peak.buffer_bytes + peak.batch_bytes + peak.optimizer_bytes
    updating = optimizer([p for p in model.parameters() if p.requires_grad])
    highest = there + highest_in_second_step(loss_of_model, updating)
    assert peak.step_peak_bytes == pytest.approx(highest, rel=peak_error)
    # what is left of a step that mostly holds weights
    above = peak.step_peak_bytes - there
    assert above == pytest.approx(highest - there, rel=3 * peak_error)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(100, 64), nn.LayerNorm(128)
        self.rnn, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.rnn(self.embed(tokens))[0][:, -1]))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
    )
    return LlamaForCausalLM(config)


def image(size: int = 64) -> Tensor:
    return torch.zeros(8, 3, size, size)


def words() -> dict[str, Tensor]:
    tokens = torch.arange(8 * 32).reshape(8, 32) % 100
    return {"input_ids": tokens, "labels": tokens}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet18": lambda: (torchvision.models.resnet18(), image()),
    "mobilenet_v2": lambda: (torchvision.models.mobilenet_v2(width_mult=0.5), image()),
    "convnext": lambda: (timm.create_model("convnext_atto", depths=(1, 1, 2, 1)), image()),
    "mixer": lambda: (
        timm.models.MlpMixer(img_size=64, patch_size=16, num_blocks=2, embed_dim=128),
        image(),
    ),
    "vit": lambda: (timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4), image()),
    "llama": lambda: (llama(), words()),
    "lstm": lambda: (Recurrent(), words()["input_ids"]),
}


def train_only(model: nn.Module, mode: str) -> None:
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    for module in model.modules():
        norm = isinstance(module, NORMS) or "Norm" in type(module).__name__
        trains = {"full": True, "norm": norm, "head": module is head}[mode]
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trains)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, mode) for name in MODELS for mode in ("full", "norm")),
        *((name, "head") for name in ("resnet18", "llama", "lstm")),
    ],
)
def test_saved_bytes_and_the_peak_are_the_allocators(name: str, mode: str) -> None:
    model, batch = MODELS[name]()
    train_only(model.train(), mode)
    assert_measured(model, batch)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "vit", "llama", pytest.param("lstm", marks=needs_avx512)]
)
def test_mixed_precision(name: str) -> None:
    model, batch = MODELS[name]()
    assert_measured(model, batch, autocast=torch.bfloat16)


@pytest.mark.parametrize("name", ["resnet18", "vit", "llama"])
def test_a_model_of_16_bits(name: str) -> None:
    model, batch = MODELS[name]()
    model.to(torch.bfloat16)
    if isinstance(batch, Tensor):
        batch = batch.to(torch.bfloat16)
    assert_measured(model, batch)


@needs_avx512
def test_channels_last() -> None:
    model = torchvision.models.resnet18().to(memory_format=torch.channels_last)
    assert_measured(model, image().contiguous(memory_format=torch.channels_last))


def test_each_part_is_the_count_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.BatchNorm1d(50))
    found = predicted(model, torch.zeros(8, 100), torch.optim.AdamW)
    trained = 100 * 50 + 2 * 50
    assert found.parameter_bytes == F32 * trained
    assert found.buffer_bytes == F32 * 100 + 8
    assert found.batch_bytes == F32 * 800
    assert found.gradient_bytes == F32 * trained
    assert found.optimizer_bytes == 2 * F32 * trained + 3 * F32
    assert found.to_dict().keys() >= {"step_peak_bytes", "scratch_bytes", "gradient_bytes"}


def test_scratch_is_what_kernels_add_to_the_peak() -> None:
    model = nn.Conv2d(64, 64, 3, padding=1, bias=False).requires_grad_(False)
    found = predicted(model, torch.zeros(8, 64, 16, 16))
    side, weights, loss = F32 * 8 * 64 * 16 * 16, F32 * 64 * 64 * 9, F32
    # source, weights and result in blocks; tensors alone would be the result and the loss
    assert found.step_peak_bytes == (weights + side) + (side + weights + side)
    assert found.scratch_bytes == (side + weights + side) - (side + loss)
    on_linear = predicted(nn.Linear(100, 50), torch.zeros(8, 100))
    assert on_linear.scratch_bytes == 0


MATRIX, VECTORS, TENSORS = 100 * 50, 2 * 50, 3
STATES: dict[str, tuple[Callable[..., torch.optim.Optimizer], int]] = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), 0),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), MATRIX + VECTORS),
    # two moments, and each tensor counts its own steps
    "adam": (torch.optim.Adam, 2 * (MATRIX + VECTORS) + TENSORS),
    "adamw": (torch.optim.AdamW, 2 * (MATRIX + VECTORS) + TENSORS),
    "foreach": (lambda p: torch.optim.AdamW(p, foreach=True), 2 * (MATRIX + VECTORS) + TENSORS),
    "fused": (lambda p: torch.optim.AdamW(p, fused=True), 2 * (MATRIX + VECTORS) + TENSORS),
    # a matrix' second moment as a row and a column
    "adafactor": (torch.optim.Adafactor, 100 + 50 + VECTORS + TENSORS),
}


@pytest.mark.parametrize("name", STATES)
def test_the_optimizers_state_is_the_count_by_hand_and_its_peak_the_allocators(name: str) -> None:
    optimizer, elements = STATES[name]
    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.BatchNorm1d(50))
    batch = torch.ones(8, 100)
    assert predicted(model, batch, optimizer).optimizer_bytes == F32 * elements
    assert_measured(model, batch, optimizer)


def test_the_peak_of_a_chain_is_the_sum_of_what_is_alive() -> None:
    model = nn.Sequential(nn.Linear(10, 1000, bias=False), nn.Linear(1000, 10, bias=False))
    model.requires_grad_(False)
    found = predicted(model, torch.zeros(4, 10))
    # nothing trains: the wide result beside the narrow one, then nothing but the sum
    static = F32 * (20_000 + 40)
    assert found.step_peak_bytes == static + F32 * (4 * 1000 + 4 * 10)
    assert found.gradient_bytes == 0
