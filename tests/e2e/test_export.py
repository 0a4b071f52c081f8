"""`efftrain export`: what it writes loads with the libraries' own loaders and computes the same."""

import json
from pathlib import Path

import peft
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import MobileNetV2ForImageClassification, ViTForImageClassification

from efftrain.config.compose import compose
from efftrain.files import write_text
from efftrain.jobs.assemble import assemble
from efftrain.jobs.evaluate import load_run
from efftrain.models.digits import digits_mobilenetv2
from efftrain.models.lora import add_lora
from efftrain.paths import RunFolder, conf_dir
from efftrain.peft import add_ssf, load_delta, save_delta
from efftrain.surgery import restructure


@pytest.fixture
def trained(tmp_path):
    """A run folder as a training leaves it, made without one."""

    def run(*overrides: str) -> Path:
        folder = RunFolder(tmp_path / "run")
        config = compose("train", overrides, [conf_dir()]).config.copy()
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        config.run_dir = str(folder.root)
        write_text(folder.config, OmegaConf.to_yaml(config))
        parts = assemble(config)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in parts.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
            for module in parts.model.modules():
                if config.peft.bn_stats == "update" and isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.add_(0.1)
        save_delta(parts.model, folder.delta, selection=parts.selection)
        return folder.root

    return run


def images(channels: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))


def logits(model, given=None):
    model.eval()
    with torch.no_grad():
        output = model(images() if given is None else given)
    return output if isinstance(output, torch.Tensor) else output.logits


def after(run: Path) -> torch.Tensor:
    """Logits of the base model with the run's delta on it."""
    model = digits_mobilenetv2()
    load_delta(model, run / "delta.safetensors")
    return logits(model)


def test_a_merged_model_loads_with_transformers_and_with_efftrain(verb, tmp_path):
    run = tmp_path / "run"
    code, _, err = verb("train", "debug=fast", f"hydra.run.dir={run}")
    assert code == 0, err
    code, out, err = verb("export", f"run={run}")
    assert code == 0, err
    folder = run / "export" / "merged"
    assert str(folder / "model.safetensors") in out
    own = MobileNetV2ForImageClassification.from_pretrained(folder)
    assert torch.equal(logits(own), after(run))
    assert not torch.equal(logits(own), logits(digits_mobilenetv2()))
    ours = digits_mobilenetv2(pretrained=str(folder / "model.safetensors"))
    assert torch.equal(logits(ours), after(run))
    record = json.loads((folder / "export.json").read_text())
    assert record["to"] == "merged"
    assert record["files"]["model.safetensors"]["bytes"] > 1_000_000


def test_a_folded_model_has_no_norms_and_states_its_largest_errors(trained, verb):
    run = trained()
    code, out, err = verb("export", f"run={run}", "to=folded", "batches=2")
    assert code == 0, err
    assert "folded 52 of 52 norms" in out
    folder = run / "export" / "folded"
    record = json.loads((folder / "export.json").read_text())["fold"]
    assert record["given"]["inputs"] == 2
    assert record["random"]["inputs"] == 1
    for kind in ("given", "random"):
        assert 0 < record[kind]["max_rel"] <= record[kind]["tolerance"] == 1e-3
    weights = load_file(folder / "model.safetensors")
    assert not any("normalization" in name for name in weights)
    model = digits_mobilenetv2(pretrained=False)
    restructure(model, record["folded"])
    model.load_state_dict(weights)
    torch.testing.assert_close(logits(model), after(run), rtol=1e-3, atol=1e-3)


def test_adapters_are_merged_and_the_model_is_plain(trained, verb):
    run = trained("peft=lora", "peft.method=norm+lora", "peft.lora.r=2")
    code, out, err = verb("export", f"run={run}", "to=merged")
    assert code == 0, err
    assert "merged on held-out inputs: largest error" in out
    folder = run / "export" / "merged"
    record = json.loads((folder / "export.json").read_text())["merge"]
    assert record["given"]["max_rel"] < 1e-4
    model = MobileNetV2ForImageClassification.from_pretrained(folder)
    torch.manual_seed(0)
    adapted = digits_mobilenetv2()
    add_lora(adapted, r=2)
    load_delta(adapted, run / "delta.safetensors")
    torch.testing.assert_close(logits(model), logits(adapted), rtol=1e-3, atol=1e-3)


# peft asks for every attribute of a transformers model, deprecated ones as well,
# and does not know how wide a batch norm is, which it need not
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*BatchNorm2d:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (["peft=norm"], "LN_TUNING"),
        (["peft=norm_scale"], "LN_TUNING"),
        (["peft=norm_head"], "LN_TUNING"),
        (["peft=norm", "peft.bn_stats=update"], "LN_TUNING"),
        (["peft=lora"], "LORA"),
        (["peft=lora", "peft.method=norm+lora+head", "peft.bn_stats=update"], "LORA"),
    ],
)
def test_an_adapter_loads_with_hugging_face_peft_on_the_base(trained, verb, overrides, kind):
    run = trained(*overrides)
    code, _, err = verb("export", f"run={run}", "to=peft")
    assert code == 0, err
    folder = run / "export" / "peft"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == kind
    loaded = peft.PeftModel.from_pretrained(digits_mobilenetv2(), folder)
    expected = digits_mobilenetv2()
    if kind == "LORA":
        add_lora(expected)
    load_delta(expected, run / "delta.safetensors")
    assert not torch.equal(logits(expected), logits(digits_mobilenetv2()))
    torch.testing.assert_close(logits(loaded), logits(expected), rtol=1e-5, atol=1e-5)


def test_scales_and_shifts_are_merged_and_folded(trained, verb):
    run = trained("peft=ssf")
    code, _, err = verb("export", f"run={run}", "to=merged")
    assert code == 2
    assert "gives 52 layers a bias that MobileNetV2ForImageClassification has not" in err
    code, out, err = verb("export", f"run={run}", "to=folded")
    assert code == 0, err
    assert "merged on held-out inputs: largest error" in out
    record = json.loads((run / "export" / "folded" / "export.json").read_text())
    model = digits_mobilenetv2(pretrained=False)
    restructure(model, record["fold"]["folded"], record["added_bias"])
    model.load_state_dict(load_file(run / "export" / "folded" / "model.safetensors"))
    adapted = digits_mobilenetv2()
    add_ssf(adapted)
    load_delta(adapted, run / "delta.safetensors")
    assert not torch.equal(logits(adapted), logits(digits_mobilenetv2()))
    torch.testing.assert_close(logits(model), logits(adapted), rtol=1e-3, atol=1e-3)


def test_scales_and_shifts_merge_into_layers_with_biases(trained, verb):
    run = trained("peft=ssf", "model=hf_image")
    code, _, err = verb("export", f"run={run}", "batches=1")
    assert code == 0, err
    folder = run / "export" / "merged"
    model = ViTForImageClassification.from_pretrained(folder)
    adapted = ViTForImageClassification(model.config)
    parts = load_run(RunFolder(run))
    torch.testing.assert_close(
        logits(model, images(3)), logits(parts.model, images(3)), rtol=1e-4, atol=1e-4
    )
    assert set(model.state_dict()) == set(adapted.state_dict())


BARE = """
from torch import nn

def build(num_classes):
    norm = nn.LayerNorm(1024, elementwise_affine=False)
    return nn.Sequential(nn.Flatten(), norm, nn.Linear(1024, num_classes))
"""


def test_scales_that_the_architecture_has_not_are_not_lost_in_silence(
    trained, verb, tmp_path, monkeypatch
):
    (tmp_path / "bare_norm.py").write_text(BARE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("efftrain.config.allow._TRUSTED", frozenset({"bare_norm"}))
    run = trained("model=custom", "model._target_=bare_norm.build", "peft.add_affine=true")
    code, out, err = verb("export", f"run={run}")
    assert code == 0, err
    assert "leaves out the scales that peft.add_affine added" in out
    code, _, err = verb("export", f"run={run}", "to=peft")
    assert code == 2
    assert "use to=folded" in err


@pytest.mark.parametrize("method", ["full", "head", "ssf"])
def test_what_peft_has_no_format_for_says_what_it_has(trained, verb, method):
    run = trained(f"peft={method}")
    code, _, err = verb("export", f"run={run}", "to=peft")
    assert code == 2
    assert f"to=peft: this run (peft.method={method}) trained" in err
    assert "has formats for lora and for norms" in err
    assert not (run / "export" / "peft" / "adapter_config.json").exists()


def test_a_timm_model_folds_and_loads(trained, verb):
    run = trained("model=timm", "model.name=mobilenetv3_small_050", "model.pretrained=false")
    for form in ("merged", "folded"):
        code, out, err = verb("export", f"run={run}", f"to={form}", "batches=1")
        assert code == 0, err
    assert "folded 34 of 34 norms" in out
    expected = timm.create_model("mobilenetv3_small_050", num_classes=10)
    expected.load_state_dict(load_file(run / "export" / "merged" / "model.safetensors"))
    record = json.loads((run / "export" / "folded" / "export.json").read_text())
    model = timm.create_model("mobilenetv3_small_050", num_classes=10)
    restructure(model, record["fold"]["folded"])
    model.load_state_dict(load_file(run / "export" / "folded" / "model.safetensors"))
    given = images(3)
    torch.testing.assert_close(logits(model, given), logits(expected, given), rtol=1e-3, atol=1e-3)


def test_a_fold_that_is_not_equal_is_not_written(trained, verb, monkeypatch):
    run = trained()
    monkeypatch.setitem(
        __import__("efftrain.surgery.equality", fromlist=["x"]).TOLERANCES, torch.float32, 0.0
    )
    code, _, err = verb("export", f"run={run}", "to=folded", "batches=1")
    assert code == 5
    assert "to=folded: on given inputs the folded model is off by" in err
    assert not list((run / "export" / "folded").glob("*.safetensors"))


@pytest.mark.parametrize("run", ["nowhere", "."])
def test_a_run_that_is_not_there_is_refused_before_a_folder_is_made(verb, tmp_path, run):
    code, _, err = verb("export", f"run={run}")
    assert code == 4
    assert err.startswith("efftrain: run: ")
    assert list((tmp_path / "cwd").iterdir()) == []


def test_an_unknown_form_is_named_with_its_neighbour(verb, tmp_path):
    code, _, err = verb("export", "run=nowhere", "to=foldet")
    assert code == 2
    assert err == "efftrain: to=foldet is not a form; did you mean 'folded'?\n"


def test_a_run_has_to_be_named(verb):
    code, _, err = verb("export")
    assert code == 2
    assert "run: needs a value" in err
