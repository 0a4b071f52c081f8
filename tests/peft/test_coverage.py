"""A subset of `scripts/benchmarks/norm_coverage.py`, and the list that a user reads.

The judge there reads the code of each class; efftrain runs it. They share no code.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from efftrain.peft import norm_coverage

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "norm_coverage.py"


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    spec = importlib.util.spec_from_file_location("norm_coverage_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet", "test_efficientnet", "test_efficientnet_evos", "test_efficientnet_ln",
        "test_vit3", "test_convnext2", "convnextv2_atto", "mobilenetv3_small_050",
        "resnetv2_50d_frn", "resmlp_12_224", "poolformer_s12", "levit_128s", "xcit_nano_12_p16_224",
        "swinv2_cr_tiny_ns_224", "dm_nfnet_f0", "edgenext_xx_small",
    ],
)  # fmt: skip
def test_every_norm_parameter_of_timm_is_found_and_no_other(judge: ModuleType, name: str) -> None:
    timm = importlib.import_module("timm")
    with torch.device("meta"):
        row = judge.judge("timm", name, name, timm.create_model(name))
    assert (row.missed, row.extra, row.unknown) == ((), (), ())


@pytest.mark.parametrize(
    "name",
    [
        "bert", "llama", "t5", "gemma2", "mamba2", "qwen3_moe", "convnextv2", "vit", "ibert",
        "detr", "squeezebert", "xlstm", "mobilenet_v2", "opt", "zaya", "mobilebert",
    ],
)  # fmt: skip
def test_every_norm_parameter_of_transformers_is_found_and_no_other(
    judge: ModuleType, name: str
) -> None:
    with torch.device("meta"):
        row = judge.judge("transformers", name, name, judge.build_transformers(name))
    assert row.parameters or name == "mobilebert"  # its NoNorm normalises nothing
    assert (row.missed, row.extra, row.unknown) == ((), (), ())


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, cache):
        return x * cache["scale"]


class OddNorm(Odd):
    pass


class NoNorm(Odd):
    def forward(self, x):
        return x * self.weight


def test_the_list_names_kinds_gaps_and_the_share_that_is_known() -> None:
    shared = nn.LayerNorm(4)
    model = nn.ModuleDict(
        {"a": nn.BatchNorm2d(6), "b": shared, "c": shared, "d": OddNorm(), "e": NoNorm()}
    )
    model["f"] = nn.LayerNorm(8, elementwise_affine=False)
    coverage = norm_coverage(model)
    assert (len(coverage.sites), coverage.parameters, coverage.unknown_parameters) == (3, 20, 3)
    assert coverage.pct == pytest.approx(100 * 20 / 23)
    assert [one.kind for one in coverage.refuted] == ["NoNorm"]
    text = str(coverage)
    assert "BatchNorm2d                       1              6  running statistics" in text
    assert "LayerNorm                         2         4 to 8  no scale or bias, shared" in text
    assert "OddNorm                           1                 NOT RECOGNISED" in text
    assert "NoNorm                            1                 does not normalise" in text
    assert text.endswith("norm layers: 3 || norm params: 20 || coverage%: 86.96")
    assert coverage.to_dict()["unknown"][0]["path"] == "d"
    assert norm_coverage(model, ["OddNorm"]).pct == 100


def test_a_model_without_norms_has_no_gap() -> None:
    assert norm_coverage(nn.Linear(2, 2)).pct == 100
