import importlib

import pytest
import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import METHODS, Selection, select


def test_norm_names_scale_and_bias_of_every_norm_and_changes_nothing(convnet) -> None:
    model = convnet()
    selection = select(model)
    assert selection.groups == {"norm": ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias")}
    # 4 + 4 + 6 + 6 of: 3*4*9; 8; 4*6*9 + 6; 12; 6*5 + 5
    assert (selection.trainable, selection.total) == (20, 108 + 8 + 222 + 12 + 35)
    assert selection.trainable_bytes == 80
    assert selection.frozen == {"conv1": 108, "conv2": 222, "fc": 35}
    assert selection.drifting == ("bn1", "bn2")
    assert all(p.requires_grad for p in model.parameters())
    assert "_efftrain_peft" not in model.__dict__


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("norm_scale", {"bn1.weight", "bn2.weight"}),
        ("norm_bias", {"bn1.bias", "bn2.bias"}),
        ("bias", {"bn1.bias", "conv2.bias", "bn2.bias", "fc.bias"}),
        ("head", {"fc.weight", "fc.bias"}),
        ("norm_head", {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias", "fc.weight", "fc.bias"}),
        ("norm_bias+head", {"bn1.bias", "bn2.bias", "fc.weight", "fc.bias"}),
        ("norm + bias", {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias", "conv2.bias", "fc.bias"}),
    ],
)  # fmt: skip
def test_methods_and_their_sums(convnet, method: str, names: set[str]) -> None:
    assert set(select(convnet(), method).names) == names


def test_every_name_is_in_one_group_by_its_role(convnet) -> None:
    groups = select(convnet(), "full").groups
    assert groups == {
        "norm": ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"),
        "bias": ("conv2.bias",),
        "head": ("fc.weight", "fc.bias"),
        "other": ("conv1.weight", "conv2.weight"),
    }


def test_biases_are_found_by_name_and_by_what_they_do(transformer) -> None:
    names = set(select(transformer(), "bias").names)
    assert "encoder.layers.0.self_attn.in_proj_bias" in names
    assert "encoder.layers.0.norm1.bias" in names
    # tokens that attention appends to its keys and values: called biases, added to nothing
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, add_bias_kv=True)})
    assert set(select(attention, "bias").names) == {"a.in_proj_bias", "a.out_proj.bias"}


def test_the_last_line_is_the_one_that_people_know(convnet) -> None:
    models = importlib.import_module("torchvision").models
    with torch.device("meta"):
        text = str(select(models.mobilenet_v2(), "norm"))
    assert text.splitlines()[-1] == (
        "trainable params: 34,112 || all params: 3,504,872 || trainable%: 0.9733"
    )
    assert "running statistics of 52 layers would move" in text
    assert "stays frozen: features 2,189,760, classifier 1,281,000" in text
    assert "133.2 KiB" in text  # 34,112 x 4 / 1024


def test_a_tied_tensor_counts_once_and_is_found_under_every_name() -> None:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=10, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    selection = select(model, "head")
    assert selection.names == ("model.embed_tokens.weight",)
    assert selection.heads == ("lm_head",)
    assert selection.total == sum(p.numel() for p in model.parameters())
    assert select(model, "full", include=["lm_head"]).names == selection.names


def test_blocks_cut_the_norms_and_leave_the_head(transformer) -> None:
    model = transformer()
    last = select(model, "norm+head", last_k=1)
    assert set(last.groups["norm"]) == {
        f"encoder.layers.1.{norm}.{name}"
        for norm in ("norm1", "norm2")
        for name in ("weight", "bias")
    }
    assert last.groups["head"] == ("head.weight", "head.bias")
    assert select(model, "norm", blocks="0").sizes == {"norm": 32}
    inside = [name for name, _ in model.named_parameters() if name.startswith("encoder.layers.1.")]
    assert set(select(model, "last_k", last_k=1).names) == set(inside)


def test_last_k_needs_its_number(transformer) -> None:
    with pytest.raises(ConfigError, match=r"peft\.method=last_k needs peft\.last_k"):
        select(transformer(), "last_k")


def test_patterns_narrow_and_add(convnet) -> None:
    model = convnet()
    assert select(model, include=["bn2"]).names == ("bn2.weight", "bn2.bias")
    assert select(model, include="*.weight").names == ("bn1.weight", "bn2.weight")
    assert select(model, exclude=["bn1", "*.bias"]).names == ("bn2.weight",)
    more = select(model, include=["bn2"], also=["conv1"])
    assert more.groups == {"norm": ("bn2.weight", "bn2.bias"), "other": ("conv1.weight",)}


def test_norms_are_narrowed_by_kind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert select(model, "norm+head", norm_kinds="Layer*").groups == {
        "norm": ("2.weight", "2.bias"),
        "head": ("3.weight", "3.bias"),
    }
    with pytest.raises(ConfigError, match=r"peft\.norm_kinds=GroupNorm matches none of 2"):
        select(model, "norm", norm_kinds=["GroupNorm"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "norms"}, r"peft\.method=norms is not a method; did you mean norm"),
        ({"method": "norm+lineer"}, r"allowed are norm, norm_head.*combinations such as norm\+head"),
        ({"include": ["layer9"]}, r"peft\.include=layer9 matches none of 9 names"),
        ({"include": ["fc"]}, r"matches 2 of 9 names, but none that the other choices leave in"),
        ({"exclude": ["bn3"]}, r"peft\.exclude=bn3 matches none.*did you mean bn"),
        ({"exclude": ["bn1", "bn2"]}, r"peft\.method=norm matched 0 of 9 parameters in Sequential"),
        ({"also": ["nothing"]}, r"peft\.also=nothing matches none"),
        ({"head": "fcc", "method": "norm"}, r"peft\.head=fcc is not a module.*did you mean fc"),
        ({"extra_norms": ["DyT"]}, r"peft\.extra_norms=DyT names no class"),
        ({"method": "ssf"}, r"matched 0 of 9.*add_ssf\(model\)"),
        ({"method": "norm", "also": ["conv1", "conv2", "fc"]}, r"selects all 9 parameters"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_meant_is_an_error(convnet, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        select(convnet(), **options)
    assert caught.value.exit_code == 2
    assert all("\n" not in problem for problem in caught.value.problems)


def test_full_may_select_everything(convnet) -> None:
    assert select(convnet(), "full").trainable_pct == 100


class Squash(nn.Module):
    """In a norm's place, and no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.weight * torch.tanh(x)


class OddNorm(Squash):
    def forward(self, x, cache):
        return x * cache["scale"]


def test_a_norm_that_is_not_recognised_is_an_error_that_names_its_class() -> None:
    model = nn.Sequential(nn.LayerNorm(4), OddNorm(), OddNorm(), nn.Linear(4, 2))
    with pytest.raises(
        ConfigError, match=r"OddNorm \(2, first at 1\); add peft\.extra_norms=\[OddN"
    ):
        select(model, "norm")
    assert len(select(model, "norm", extra_norms=["OddNorm"]).names) == 4
    assert select(model, "norm", exclude=["1", "2"]).names == ("0.weight", "0.bias")
    assert select(model, "head").names == ("3.weight", "3.bias")  # trains no norms: no matter


def test_what_is_called_a_norm_and_is_none_is_told_in_the_table() -> None:
    model = nn.ModuleDict({"a": nn.LayerNorm(4), "norm2": Squash(), "fc": nn.Linear(4, 2)})
    selection = select(model, "norm")
    assert selection.names == ("a.weight", "a.bias")
    assert "not counted as norms, as they do not normalise: Squash (1, first at norm2)" in str(
        selection
    )
    del model["a"]
    with pytest.raises(ConfigError, match=r"count them in with peft\.extra_norms=\[Squash\]"):
        select(model, "norm")


def test_every_method_has_a_line_of_documentation() -> None:
    assert all(method.__doc__ for method in METHODS.values())


def test_a_selection_is_plain_values_for_json(convnet) -> None:
    values = select(convnet(), "norm_head").to_dict()
    assert values["params"] == {"total": 385, "trainable": 55, "trainable_pct": 100 * 55 / 385}
    assert values["heads"] == ["fc"]
    assert [site["path"] for site in values["norms"]] == ["bn1", "bn2"]


def test_a_selection_cannot_be_changed(convnet) -> None:
    selection = select(convnet())
    assert isinstance(selection, Selection)
    with pytest.raises(AttributeError):
        selection.method = "full"
