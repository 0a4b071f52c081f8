"""The whole report: its keys, its figures on a small model by hand, and those of well-known ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import efftrain.profiling
from efftrain.profiling import profile
from tests.profiling import zoo


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def test_every_figure_of_a_small_model_is_the_count_by_hand() -> None:
    batch, target = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)

    def loss(output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)

    report = profile(network(), batch, loss, optimizer=torch.optim.AdamW).to_dict()
    conv, plane = 8 * 16 * 27, 8 * 16
    params = 8 * 27 + 8 + 16 + 90
    assert report["params"] == {
        "total": params, "trainable": params, "trainable_pct": 100, "buffers": 17,
    }  # fmt: skip
    assert report["size"]["model_bytes"] == 4 * (params + 16) + 8  # the counter is int64
    assert report["size"]["int4_bytes"] == params // 2
    assert report["macs"]["forward"] == conv + 80
    assert report["macs"]["step"] == 4 * (2 * conv + 3 * 80)  # no gradient for the image
    assert report["activations"]["total"] == 192 + plane + 8 + 10
    assert report["activations"]["peak"] == 192 + plane
    assert report["activations"]["conv_linear"] == plane + 10
    assert report["receptive_field"]["size"] == 3
    assert report["receptive_field"]["stride"] == 2
    # the norm's input and statistics, ReLU's result, the pooled vector; the loss's own
    kept = 4 * (2 * 4 * plane + 2 * 8 + 4 * 8)
    assert report["memory"]["saved_bytes"] == kept + 4 * 4 * 10 + 4 + 4 * 8
    assert report["memory"]["gradient_bytes"] == 4 * params
    assert report["memory"]["optimizer_bytes"] == 2 * 4 * params + 6 * 4  # six step counters
    assert report["flops"]["step"] == sum(
        report["flops"][part] for part in ("forward", "backward", "recompute", "optimizer")
    )
    assert report["coverage_pct"] == 100
    assert report["batch_size"] == 4
    assert json.loads(json.dumps(report)) == report


def test_layers_hold_what_each_module_does_itself() -> None:
    conv, norm, *_, linear = profile(network(), torch.zeros(4, 3, 8, 8)).layers
    assert conv.to_dict() == {
        "path": "0", "type": "Conv2d", "input_shape": [1, 3, 8, 8], "output_shape": [1, 8, 4, 4],
        "params": 224, "trainable": 224, "macs": 3456, "flops": 6912, "activations": 128,
        "bytes": 4 * (192 + 216 + 8 + 128), "intensity": 6912 / 2176,
    }  # fmt: skip
    assert (norm.activations, norm.macs, norm.flops) == (0, 0, 2 * 128)  # fused; scale and shift
    assert (linear.type, linear.params, linear.macs) == ("Linear", 90, 80)


def test_layers_add_up_to_the_whole() -> None:
    for name in ("mobilenet_v3_large", "timm_vit", "vit_b_16"):
        known = zoo.build(name)
        report = profile(known.model, known.batch)
        assert sum(layer.macs for layer in report.layers) == report.macs.forward == known.macs
        activations = sum(layer.activations for layer in report.layers)
        assert activations + report.activations.by_module["input"] == report.activations.total
        assert sum(layer.params for layer in report.layers) == report.params.total


@pytest.mark.parametrize(
    ("name", "params", "macs", "field", "peak"),
    [
        ("resnet50", 25_557_032, 4_089_184_256, 427, 1_806_336),
        ("mobilenet_v2", 3_504_872, 300_774_272, 491, 1_505_280),
    ],
)
def test_figures_of_well_known_models(
    name: str, params: int, macs: int, field: int, peak: int
) -> None:
    known = zoo.build(name)
    report = profile(known.model, known.batch).to_dict()
    assert report["params"]["total"] == params
    assert report["macs"]["forward"] == macs
    assert report["receptive_field"]["size"] == field
    assert report["activations"]["peak"] == peak


def test_a_figure_that_cannot_be_known_is_left_out() -> None:
    report = profile(nn.Linear(4, 4), torch.zeros(2, 4)).to_dict()
    assert "receptive_field" not in report
    assert "optimizer" not in report["flops"]
    assert "second_opinion" not in report
    assert "intensity" not in profile(nn.Flatten(), torch.zeros(2, 4)).to_dict()


def test_fvcore_is_asked_on_request() -> None:
    report = profile(nn.Linear(4, 4), torch.zeros(2, 4), second_opinion=True).to_dict()
    assert report["second_opinion"]["fvcore"]["flops"] == 16
    with torch.device("meta"):
        nothing = profile(nn.Linear(4, 4), torch.zeros(2, 4), second_opinion=True)
    assert nothing.second_opinion is None


def test_inference_is_that_of_one_sample_in_eval_mode_and_the_step_as_the_model_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    report = profile(model, torch.zeros(6, 4))
    assert report.macs.forward == 16
    assert report.macs.by_phase["forward"] == 6 * 16
    operators = {entry.operator for entry in report.inference.entries}
    assert operators == {"addmm"}
    assert {"bernoulli_", "native_dropout"} & {e.operator for e in report.training.entries}


def test_a_model_that_asks_for_values_is_profiled_with_values() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum().item() >= 0 else x

    report = profile(Asking(), torch.ones(2, 4))
    assert report.macs.forward == 16
    assert report.training.values


def test_counting_parameters_loads_neither_fvcore_nor_the_rest() -> None:
    code = (
        "import sys; from efftrain.profiling import count_parameters; "
        "print([m for m in sys.modules if m.startswith(('fvcore', 'efftrain.graph'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    assert all(getattr(efftrain.profiling, name) for name in efftrain.profiling.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = efftrain.profiling.nothing
