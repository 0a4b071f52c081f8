"""The predicted size of a delta file, against the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from efftrain.models.digits import digits_mobilenetv2
from efftrain.peft import apply, save_delta, select
from efftrain.peft.delta_size import predict_delta_bytes


@pytest.mark.parametrize("method", ["norm", "bias", "norm_head", "full"])
@pytest.mark.parametrize("bn_stats", ["running", "update"])
def test_the_prediction_is_the_file_to_the_byte(tmp_path: Path, method: str, bn_stats: str) -> None:
    model = digits_mobilenetv2()
    selection = select(model, method)
    apply(model, selection, bn_stats=bn_stats)
    predicted = predict_delta_bytes(model, selection)
    path = tmp_path / "delta.safetensors"
    save_delta(model, path, selection=selection)
    assert predicted == path.stat().st_size


def test_mixed_precision_and_names_that_need_escapes(tmp_path: Path) -> None:
    model = nn.ModuleDict({'a "é"': nn.Linear(3, 5).bfloat16(), "b": nn.LayerNorm(7)})
    selection = select(model, "full")
    apply(model, selection)
    path = tmp_path / "delta.safetensors"
    save_delta(model, path, selection=selection)
    assert predict_delta_bytes(model, selection) == path.stat().st_size


def test_shapes_are_enough() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    selection = select(model, "norm")
    apply(model, selection)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained < predict_delta_bytes(model, selection) < trained + 64 * 200
