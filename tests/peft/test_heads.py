"""The head is found by what the model declares or does, on every library's models."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import find_head, find_heads


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),  # not the pretrained classifier.0
        ("vgg11", "classifier.6"),
        ("squeezenet1_0", "classifier.1"),  # a convolution
        ("densenet121", "classifier"),
        ("vit_b_16", "heads.head"),
        ("swin_t", "head"),
        ("convnext_tiny", "classifier.2"),  # behind a norm and a flatten
    ],
)
def test_torchvision(name: str, head: str) -> None:
    models = importlib.import_module("torchvision").models
    with torch.device("meta"):
        assert find_head(getattr(models, name)()) == head


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", ("fc",)),
        ("convnext_atto", ("head.fc",)),
        ("vit_tiny_patch16_224", ("head",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("efficientnet_b0", ("classifier",)),
        ("resmlp_12_224", ("head",)),
    ],
)
def test_timm(name: str, heads: tuple[str, ...]) -> None:
    timm = importlib.import_module("timm")
    with torch.device("meta"):
        assert find_heads(timm.create_model(name)) == heads


def test_a_timm_model_built_without_a_head_has_none() -> None:
    timm = importlib.import_module("timm")
    with torch.device("meta"):
        model = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(ConfigError, match=r"peft\.head: no head found in ResNet.*for example"):
        find_head(model)


@pytest.mark.parametrize(
    ("config", "kind", "head"),
    [
        ("Bert", "ForSequenceClassification", "classifier"),
        ("Bert", "ForMaskedLM", "cls.predictions.decoder"),
        ("Roberta", "ForSequenceClassification", "classifier"),  # dense and projection, both new
        ("Llama", "ForCausalLM", "lm_head"),
        ("Llama", "ForSequenceClassification", "score"),
        ("ViT", "ForImageClassification", "classifier"),
        ("ResNet", "ForImageClassification", "classifier.1"),
        ("MobileNetV2", "ForImageClassification", "classifier"),
        ("Bert", "ForQuestionAnswering", "qa_outputs"),
        ("PoolFormer", "ForImageClassification", "classifier"),  # not the last norm beside it
    ],
)
def test_transformers(config: str, kind: str, head: str) -> None:
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        model = getattr(transformers, config + kind)(getattr(transformers, f"{config}Config")())
    assert find_head(model) == head


def test_a_bare_backbone_has_no_head_and_the_message_names_candidates() -> None:
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1))
    with pytest.raises(ConfigError, match=r"peft\.head=<path>, for example pooler\.dense"):
        find_head(model)


def test_a_plain_model_ends_in_its_head(convnet) -> None:
    assert find_head(convnet()) == "fc"


def test_without_a_name_the_layer_of_the_declared_size_counts() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 7), "b": nn.Linear(7, 2), "c": nn.LayerNorm(2)})
    model.config = SimpleNamespace(num_labels=7)
    assert find_head(model) == "a"


def test_a_usual_name_with_another_size_is_not_believed() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 9), "out": nn.Linear(9, 3)})
    model.num_classes = 3
    assert find_head(model) == "out"


def test_the_user_has_the_last_word(convnet) -> None:
    assert find_head(convnet(), head="conv2") == "conv2"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("conv3", r"peft\.head=conv3 is not a module of Sequential; did you mean conv"),
        ("act", r"peft\.head=act has no parameters"),
        ("", r"peft\.head= is not a module"),
    ],
)
def test_a_wrong_path_is_an_error(convnet, head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_head(convnet(), head=head)
