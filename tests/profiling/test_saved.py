"""What autograd keeps, predicted from shapes, against a run with values and against hand counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from efftrain.profiling.saved import find_saved
from tests.profiling.allocator import kept_for_backward

F32 = 4


def in_mode(model: nn.Module, mode: str) -> nn.Module:
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    for module in model.modules():
        trains = {"full": True, "norm": isinstance(module, norms), "head": module is head}[mode]
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trains)
    return model.train()


REAL: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.35),
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "densenet": lambda: torchvision.models.DenseNet(16, (2, 2, 2, 2)),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 2, 1)),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2, 1, 1)
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_what_is_kept_is_what_the_allocator_keeps(name: str) -> None:
    model = REAL[name]()
    batch = torch.rand(2, 3, 56 if name == "swin" else 64, 56 if name == "swin" else 64)
    for mode in ("full", "norm", "head"):
        in_mode(model, mode)
        measured = kept_for_backward(lambda model=model, batch=batch: model(batch).sum())
        # timm's stochastic depth and dropout draw small masks that are gone or kept with the rest
        assert find_saved(model, batch).saved_bytes == pytest.approx(measured, rel=0.005, abs=64)


def test_norm_only_training_of_a_convolutional_network_keeps_as_much_as_full() -> None:
    """ResNet-50 at batch 4: 325.6 MiB in both, 0.0 for a probe (measured, torch 2.13)."""
    with torch.device("meta"):
        model, batch = torchvision.models.resnet50(), torch.zeros(4, 3, 224, 224)
    kept = {m: find_saved(in_mode(model, m), batch).saved_bytes / 2**20 for m in ("full", "norm")}
    assert kept["full"] == pytest.approx(325.6, abs=0.05)
    assert kept["norm"] == pytest.approx(325.6, abs=0.05)
    assert find_saved(in_mode(model, "head"), batch).saved_bytes == 4 * 2048 * F32


def test_each_piece_of_memory_is_charged_once_to_who_kept_it_first() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    saved = find_saved(model, torch.zeros(2, 3, 6, 6))
    plane = 2 * 8 * 36 * F32
    # the norm keeps its input and two vectors; ReLU its result, which the next layer keeps too
    assert saved.by_cause() == {"norm": plane + 2 * 8 * F32, "activation": plane}
    assert saved.by_module() == {"": 2 * plane + 64, "1": plane + 64, "2": plane}
    assert [tensor.kept_by for tensor in saved.tensors if tensor.path == "2"] == [
        ("activation", "conv")
    ]
    assert saved.to_dict()["saved_bytes"] == 2 * plane + 64


def test_a_view_pins_its_base() -> None:
    class FirstToken(nn.Module):
        """A class token's probe: twelve bytes look at a base of all tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(3).requires_grad_(False)
            self.head = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x)[:, 0])

    (kept,) = find_saved(FirstToken(), torch.zeros(1, 50, 3)).tensors
    assert kept.shape == (1, 3)
    assert kept.saved_bytes == 50 * 3 * F32
    assert (kept.cause, kept.path) == ("linear", "head")


def test_the_batch_the_weights_and_their_views_are_there_anyway() -> None:
    assert find_saved(nn.Linear(4, 4), torch.zeros(2, 4)).tensors == ()


def test_a_cast_weight_is_kept_in_its_cast_form() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        saved = find_saved(nn.Linear(8, 4), torch.zeros(2, 8, requires_grad=True))
    assert saved.saved_bytes == 2 * (8 * 4 + 2 * 8)


def test_a_checkpoint_keeps_its_input_alone() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 50), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, self.first(x), use_reentrant=False)

    assert find_saved(Again(), torch.zeros(2, 4)).saved_bytes == 2 * 6 * F32


def test_a_branch_that_is_thrown_away_keeps_nothing() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x).exp()
            return self.used(x)

    assert find_saved(Wasteful(), torch.zeros(2, 4)).saved_bytes == 0


def test_the_loss_keeps_what_it_needs() -> None:
    target = torch.zeros(2, dtype=torch.long)
    saved = find_saved(
        nn.Linear(4, 5), torch.zeros(2, 4), lambda y: nn.functional.cross_entropy(y, target)
    )
    log_probabilities, weight_sum, labels = 2 * 5 * F32, F32, 2 * 8
    assert saved.saved_bytes == log_probabilities + weight_sum + labels
    assert set(saved.by_module()) == {""}


def test_a_norm_written_in_steps_is_a_norm() -> None:
    class RMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)))

    saved = find_saved(nn.Sequential(nn.Linear(4, 4), RMSNorm()), torch.zeros(3, 4))
    assert set(saved.by_cause()) == {"norm"}


def test_nothing_trainable_keeps_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).requires_grad_(False)
    assert find_saved(model, torch.zeros(2, 4)).saved_bytes == 0


def test_an_activation_in_place_keeps_a_copy_of_its_input_and_is_charged_with_it() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6(inplace=True), nn.Conv2d(3, 3, 1))
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    saved = find_saved(model, torch.zeros(2, 3, 8, 8))
    plane = 2 * 3 * 8 * 8 * F32
    by_path = {tensor.path: tensor.cause for tensor in saved.tensors if tensor.saved_bytes == plane}
    assert by_path == {"1": "activation", "2": "conv"}  # the copy; and ReLU6's result
