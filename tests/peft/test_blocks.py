import importlib

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import find_blocks
from efftrain.peft.blocks import choose_blocks


def counts() -> list[tuple[str, str, int]]:
    # published depths: He 2016, Sandler 2018, Dosovitskiy 2021, Liu 2021 and 2022, Tan 2019
    return [
        ("torchvision", "resnet50", 16),
        ("torchvision", "mobilenet_v2", 17),
        ("torchvision", "vit_b_16", 12),
        ("torchvision", "swin_t", 12),
        ("torchvision", "convnext_tiny", 18),
        ("torchvision", "efficientnet_b0", 16),
        ("timm", "vit_tiny_patch16_224", 12),
        ("timm", "swin_tiny_patch4_window7_224", 12),
        ("timm", "efficientnet_b0", 16),
        ("timm", "resnet26", 8),
        ("timm", "legacy_xception", 12),  # no chain: block1 to block12 (Chollet 2017)
    ]


@pytest.mark.parametrize(("library", "name", "count"), counts())
def test_the_number_of_blocks_is_the_published_depth(library: str, name: str, count: int) -> None:
    package = importlib.import_module(library)
    with torch.device("meta"):
        model = package.create_model(name) if library == "timm" else getattr(package.models, name)()
    assert len(find_blocks(model)) == count


@pytest.mark.parametrize(
    ("config", "options", "first", "count"),
    [
        ("Bert", {"num_hidden_layers": 3}, "encoder.layer.0", 3),
        ("Llama", {"num_hidden_layers": 3}, "layers.0", 3),
        ("T5", {"num_layers": 2}, "encoder.block.0", 4),  # not their attention and feed-forward
        ("Qwen3Moe", {"num_hidden_layers": 2, "num_experts": 4}, "layers.0", 2),  # not the experts
        ("Swin", {}, "encoder.layers.0.blocks.0", 12),
    ],
)
def test_transformers_blocks(config: str, options: dict, first: str, count: int) -> None:
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        model = getattr(transformers, f"{config}Model")(
            getattr(transformers, f"{config}Config")(**options)
        )
    blocks = find_blocks(model)
    assert (blocks[0], len(blocks)) == (first, count)


def test_a_chain_of_plain_layers_has_no_blocks(convnet) -> None:
    assert find_blocks(convnet()) == ()


@pytest.mark.parametrize(
    ("blocks", "last_k", "chosen"),
    [
        ("0:1", None, (0,)),
        ("-1:", None, (1,)),
        ("0,1", None, (0, 1)),
        ("1,0", None, (0, 1)),  # in the model's order
        (":", None, (0, 1)),
        (None, 1, (1,)),
        (None, 2, (0, 1)),
    ],
)
def test_choices_of_blocks(transformer, blocks, last_k, chosen) -> None:
    paths = tuple(f"encoder.layers.{number}" for number in chosen)
    assert choose_blocks(transformer(), blocks, last_k) == paths


@pytest.mark.parametrize(
    ("blocks", "last_k", "message"),
    [
        ("5:", None, r"peft\.blocks=5: chooses none of the 2 blocks.*0 to 1"),
        ("first", None, r"peft\.blocks=first chooses none"),
        ("7", None, r"peft\.blocks=7 chooses none"),
        ("", None, r"peft\.blocks= chooses none"),
        (None, 0, r"peft\.last_k=0 is out of range: Sequential has 2 blocks, allowed is 1 to 2"),
        (None, 3, r"peft\.last_k=3 is out of range"),
        ("0", 1, r"exclude each other"),
    ],
)
def test_a_choice_of_nothing_is_an_error(transformer, blocks, last_k, message) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_blocks(transformer(), blocks, last_k)


def test_a_model_without_blocks_says_what_to_do_instead(convnet) -> None:
    with pytest.raises(ConfigError, match=r"no chain of repeated blocks.*peft\.include"):
        choose_blocks(convnet(), None, 1)


def test_alternatives_in_a_chain_are_no_blocks() -> None:
    expert = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model = nn.ModuleDict({"experts": nn.ModuleList([expert, expert])})
    assert find_blocks(model) == ()
