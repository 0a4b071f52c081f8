"""Every method from config, on models whose counts can be worked out by hand."""

import json

import pytest

BN_CHANNELS = 7_040
WIDTH, LAYERS = 48, 3
"""Of the tiny ViT in conf/model/hf_image.yaml: two LayerNorms a block, and one at the end."""


@pytest.mark.parametrize(
    ("overrides", "trainable"),
    [
        (["peft=norm_scale"], BN_CHANNELS),
        (["peft=norm_bias"], BN_CHANNELS),
        (["peft.norm_kinds=['BatchNorm*']"], 2 * BN_CHANNELS),
        (["model=hf_image"], 2 * WIDTH * (2 * LAYERS + 1)),
        (["model=hf_image", "peft.sites=[before_attention]"], 2 * WIDTH * LAYERS),
        (["model=hf_image", "peft.sites=[before_mlp,final]"], 2 * WIDTH * (LAYERS + 1)),
        (["model=hf_image", "peft.last_k=1"], 2 * WIDTH * 2),
        (["model=hf_image", "peft.blocks='0:2'"], 2 * WIDTH * 4),
        (["model=hf_image", "peft.exclude=['*.bias']"], WIDTH * (2 * LAYERS + 1)),
    ],
)
def test_what_trains_is_what_was_asked_for(verb, tmp_path, overrides, trainable):
    run = tmp_path / "run"
    code, _, err = verb("train", "debug=fast", *overrides, f"hydra.run.dir={run}")
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["params"]["trainable"] == trainable


@pytest.mark.parametrize("method", ["ssf", "ssf+head", "lora", "norm+lora", "last_k"])
def test_added_parameters_train_and_load_again(verb, tmp_path, method):
    run = tmp_path / "run"
    option = "last_k" if method == "last_k" else "norm"
    overrides = ["model=hf_image", f"peft={option}", f"peft.method={method}"]
    code, _, err = verb("train", "debug=fast", *overrides, f"hydra.run.dir={run}")
    assert code == 0, err
    code, out, err = verb("eval", f"run={run}")
    assert code == 0, err
    after = json.loads((run / "summary.json").read_text())["metrics"]["after"]
    line = next(line for line in out.splitlines() if line.startswith("val/loss"))
    assert line.split()[1] == line.split()[-1] == f"{after['val/loss']:.4f}"


def test_norms_of_a_bf16_model_move_at_a_small_rate(verb, tmp_path):
    from safetensors.torch import load_file

    run = tmp_path / "run"
    code, _, err = verb(
        "train", "debug=fast", "model=hf_text", "model.dtype=bfloat16", "optim.lr=1e-4",
        "scheduler=none", f"hydra.run.dir={run}",
    )  # fmt: skip
    assert code == 0, err
    delta = load_file(run / "delta.safetensors")
    scales = [t for name, t in delta.items() if name.endswith("LayerNorm.weight")]
    assert scales
    assert all(t.dtype.itemsize == 4 for t in scales)
    # AdamW's first steps move every value by about the rate, which bf16 would round away at 1
    assert all((t - 1).abs().max() > 1e-5 for t in scales)
