"""Every norm is found once, with its parameters' names; published counts are met."""

import importlib
import warnings

import pytest
import torch
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.peft import find_norms
from efftrain.peft.norms import NormSite, survey


def only(model: nn.Module, **options) -> NormSite:
    (site,) = find_norms(model, **options)
    return site


@pytest.mark.parametrize(
    ("layer", "channels", "affine"),
    [
        (nn.BatchNorm1d(6), 6, True),
        (nn.BatchNorm2d(6), 6, True),
        (nn.BatchNorm3d(6), 6, True),
        (nn.BatchNorm2d(6, affine=False), 6, False),
        (nn.BatchNorm2d(6, track_running_stats=False), 6, True),
        (nn.SyncBatchNorm(6), 6, True),
        (nn.InstanceNorm1d(6), 6, False),
        (nn.InstanceNorm2d(6, affine=True), 6, True),
        (nn.GroupNorm(3, 6), 6, True),
        (nn.GroupNorm(3, 6, affine=False), 6, False),
        (nn.LayerNorm(6), 6, True),
        (nn.LayerNorm((2, 3)), 6, True),
        (nn.LayerNorm(6, elementwise_affine=False), 6, False),
        (nn.LayerNorm(6, bias=False), 6, True),
        (nn.RMSNorm(6), 6, True),
        (nn.RMSNorm(6, elementwise_affine=False), 6, False),
    ],
    ids=str,
)
def test_torchs_own_types(layer: nn.Module, channels: int, affine: bool) -> None:
    site = only(nn.ModuleDict({"n": layer}))
    names = tuple(f"n.{name}" for name, _ in layer.named_parameters())
    assert (site.path, site.kind) == ("n", type(layer).__name__)
    assert (site.channels, site.affine, site.parameters) == (channels, affine, names)
    running = {name for name, _ in layer.named_buffers()} >= {"running_mean", "running_var"}
    assert (site.running, site.offset, site.frozen) == (running, False, ())


@pytest.mark.parametrize(
    ("name", "count"),
    # He 2016, Sandler 2018, Dosovitskiy 2021, as torchvision builds them
    [("resnet50", 53_120), ("mobilenet_v2", 34_112), ("vit_b_16", 38_400)],
)
def test_norm_parameters_of_published_models(name: str, count: int) -> None:
    models = importlib.import_module("torchvision").models
    with torch.device("meta"):
        model = getattr(models, name)()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    names = [n for site in find_norms(model) for n in site.parameters]
    assert len(names) == len(set(names))
    assert sum(sizes[n] for n in names) == count


@pytest.mark.parametrize(
    ("config", "count"),
    # the same architectures in transformers: 53 batch norms, 25 LayerNorms of 768
    [("ResNet", 53_120), ("ViT", 38_400)],
)
def test_norm_parameters_of_the_same_models_in_transformers(config: str, count: int) -> None:
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        model = getattr(transformers, f"{config}ForImageClassification")(
            getattr(transformers, f"{config}Config")()
        )
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(sizes[n] for site in find_norms(model) for n in site.parameters) == count


@pytest.mark.parametrize(
    ("config", "options", "kind", "offset"),
    [
        ("Llama", {"num_hidden_layers": 1}, "LlamaRMSNorm", False),
        ("T5", {"num_layers": 1}, "T5LayerNorm", False),
        ("Gemma", {"num_hidden_layers": 1}, "GemmaRMSNorm", True),  # identity at w = 0
        ("Mamba2", {"num_hidden_layers": 1}, "MambaRMSNormGated", False),
        ("ConvNextV2", {}, "ConvNextV2GRN", True),
    ],
)
def test_transformers_own_classes(config: str, options: dict, kind: str, offset: bool) -> None:
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        model = getattr(transformers, f"{config}Model")(
            getattr(transformers, f"{config}Config")(**options)
        )
    found = [site for site in find_norms(model) if site.kind == kind]
    assert found
    assert {site.offset for site in found} == {offset}
    assert all(site.scale == f"{site.path}.weight" for site in found)


def test_timms_fused_and_own_layers() -> None:
    layers = importlib.import_module("timm").layers
    kinds = {
        "BatchNormAct2d": layers.BatchNormAct2d(8),
        "GroupNormAct": layers.GroupNormAct(8, group_size=4),
        "LayerNormAct2d": layers.LayerNormAct2d(8),
        "LayerNorm2d": layers.LayerNorm2d(8),
        "GroupNorm1": layers.GroupNorm1(8),
        "RmsNorm": layers.RmsNorm(8),
        "RmsNorm2d": layers.RmsNorm2d(8),
        "SimpleNorm": layers.SimpleNorm(8),
        "EvoNorm2dS0": layers.EvoNorm2dS0(8, group_size=4),
        "FilterResponseNormTlu2d": layers.FilterResponseNormTlu2d(8),
        "GlobalResponseNorm": layers.grn.GlobalResponseNorm(8),
    }
    sites = {site.path: site for site in find_norms(nn.ModuleDict(kinds))}
    assert set(sites) == set(kinds)
    for kind, site in sites.items():
        assert site.scale == f"{kind}.weight"
        assert site.bias == (f"{kind}.bias" if "bias" in kinds[kind]._parameters else None)


def test_a_norm_of_its_class_that_is_switched_off_still_counts() -> None:
    # without its activation, timm's EvoNorm S0 is a mere affine layer: alone it could not be told
    evo = importlib.import_module("timm").layers.EvoNorm2dS0
    model = nn.ModuleDict({"on": evo(8, group_size=4), "off": evo(8, apply_act=False)})
    assert [site.path for site in find_norms(model)] == ["on", "off"]


def test_what_only_resembles_a_norm_is_left_out() -> None:
    layers = importlib.import_module("timm").layers
    model = nn.ModuleDict(
        {"a": layers.LayerScale(8), "b": nn.PReLU(8), "c": nn.Conv2d(1, 8, 1), "d": nn.Linear(1, 8)}
    )
    assert find_norms(model) == []


class Frozen(nn.Module):
    """As detection models carry it: scale and bias beside the statistics, all of them buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in [("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)]:
            self.register_buffer(name, torch.full((width,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def test_a_frozen_batch_norm_is_a_norm_whose_scale_is_a_buffer() -> None:
    site = only(nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4)))
    assert (site.path, site.channels, site.affine, site.parameters) == ("1", 4, True, ())
    assert site.frozen == ("1.weight", "1.bias")
    assert not site.running


def test_timm_freeze_is_seen() -> None:
    # the trap: timm.freeze turns scale and bias into buffers, and nothing is left to train
    timm = importlib.import_module("timm")
    model = timm.create_model("test_resnet", pretrained=False)
    before = find_norms(model)
    timm.utils.freeze(model)
    after = find_norms(model)
    assert [site.path for site in after] == [site.path for site in before]
    assert all(site.frozen for site in after)


def test_a_shared_module_is_one_site_with_all_its_paths() -> None:
    norm = nn.LayerNorm(4)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(nn.Linear(4, 4), norm)})
    site = only(model)
    assert (site.path, site.scale, site.shared_with) == ("a", "a.weight", ("b.1",))


def test_a_shared_parameter_is_named_once_at_two_sites() -> None:
    model = nn.ModuleDict({"a": nn.LayerNorm(4), "b": nn.LayerNorm(4)})
    model["b"].weight = model["a"].weight
    first, second = find_norms(model)
    assert (first.scale, second.scale) == ("a.weight", "a.weight")
    assert (first.bias, second.bias) == ("a.bias", "b.bias")
    assert (first.shared_with, second.shared_with) == (("b",), ("a",))


class DyT(nn.Module):
    """Dynamic tanh (Zhu et al. 2025): in a norm's place, and no norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


def test_a_substitute_counts_where_the_user_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), DyT(4))
    assert find_norms(model) == []
    for name in ("DyT", f"{DyT.__module__}.DyT"):
        site = only(model, extra_norms=[name])
        assert (site.path, site.scale, site.bias) == ("1", "1.weight", "1.bias")


def test_an_extra_norm_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"peft\.extra_norms=DyTT names no class.*mean DyT\?"):
        find_norms(nn.Sequential(DyT(4)), extra_norms=["DyTT"])


class StrangeNorm(nn.Module):
    """Calls itself a norm and cannot be run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, cache: dict) -> Tensor:
        return x * cache["scale"] * self.weight


def test_suspects_are_reported_with_what_is_known_of_them() -> None:
    model = nn.ModuleDict({"x": StrangeNorm(), "norm1": DyT(4), "y": DyT(4)})
    sites, suspects = survey(model)
    assert sites == []
    assert [(one.path, one.kind, one.refuted) for one in suspects] == [
        ("x", "StrangeNorm", False),
        ("norm1", "DyT", True),
    ]


def test_a_lazy_layer_asks_for_a_batch_first() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older torch calls lazy modules a new feature
        lazy = nn.LazyBatchNorm2d()
    with pytest.raises(ConfigError, match="run one batch through the model first"):
        find_norms(nn.Sequential(lazy))


def test_a_site_is_plain_values_for_json() -> None:
    assert only(nn.Sequential(nn.LayerNorm(4))).to_dict() == {
        "path": "0", "kind": "LayerNorm", "channels": 4, "scale": "0.weight", "bias": "0.bias",
        "shared_with": (), "affine": True, "offset": False, "frozen": (), "running": False,
    }  # fmt: skip
