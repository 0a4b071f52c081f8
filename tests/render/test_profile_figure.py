import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from efftrain.errors import ConfigError
from efftrain.profiling import profile
from efftrain.profiling.roofline import Ceilings
from efftrain.render.profile_figure import draw_figures, figure_svg, write_figure
from efftrain.render.profile_figure_layers import end_of, groups_of
from efftrain.render.profile_kinds import find_kinds
from tests.render.conftest import Small, profile_of


def bars(axes):
    return [bar for container in axes.containers for bar in container if bar.get_height() > 0]


def texts(axes):
    return [text.get_text() for text in axes.texts]


class Image(nn.Module):
    """A stem, a depthwise and a pointwise convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.act = nn.ReLU6()
        self.wide = nn.Conv2d(8, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.act(self.deep(self.norm(self.stem(x)))))
        return self.head(self.pool(x).flatten(1))


@pytest.fixture(scope="module")
def image():
    return profile_of(Image(), 3, 16, 16)


def test_kinds_are_told_from_what_a_layer_runs(image):
    found = find_kinds(image)
    kinds = ("conv", "norm", "depthwise", "activation", "conv", "other", "linear")
    assert [found[name] for name, _ in Image().named_children()] == list(kinds)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert find_kinds(profile_of(attention, 4, 8))["self_attn"] == "attention"


def test_each_layer_that_makes_or_multiplies_has_a_bar(image):
    upper, lower = draw_figures(image)["layers"].axes
    # stem 8 x 8 x 8, deep 8 x 4 x 4, wide 16 x 4 x 4, pool 16, head 4
    activations = {
        round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars(upper)
    }
    assert activations == {0: 512, 1: 128, 2: 256, 3: 16, 4: 4}
    macs = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars(lower)}
    assert macs == {0: 512 * 27, 1: 128 * 9, 2: 256 * 8, 4: 64}


def test_the_peak_and_the_places_where_the_map_gets_smaller_are_marked(image):
    upper, lower = draw_figures(image)["layers"].axes
    # the stem's input 768 + its output 512
    assert texts(upper) == ["peak: 1.28 k alive at stem"]
    assert texts(lower)[:2] == ["1/2", "1/4"]
    assert [label.get_text() for label in lower.get_xticklabels()] == [
        "stem", "deep", "wide", "pool", "head",
    ]  # fmt: skip


def test_groups_are_as_fine_as_there_is_room_for():
    paths = ["stem", "body.0.a", "body.0.b", "body.1.a", "body.1.b", "head"]
    assert groups_of(paths, 9)[1] == ("body.0.a", 1, 1)
    assert groups_of(paths, 4) == [
        ("stem", 0, 0), ("body.0", 1, 2), ("body.1", 3, 4), ("head", 5, 5),
    ]  # fmt: skip
    deep = [f"layers.{n}.{part}" for n in range(80) for part in "abc"]
    found = groups_of(deep, 24)
    assert [name for name, _, _ in found[:3]] == ["layers.0", "layers.4", "layers.8"]
    assert len(found) == 20
    assert end_of("encoder.layers.encoder_layer_11") == "encoder_layer_11"
    assert end_of("a_name_without_any_end_to_it") == "..ut_any_end_to_it"


def test_dots_stand_on_the_roof(timed):
    upper, lower = draw_figures(timed)["roofline"].axes
    dots = {
        (round(float(x), 4), round(float(y), 2))
        for each in upper.collections
        if isinstance(each, PathCollection)
        for x, y in each.get_offsets()
    }
    # FLOP / bytes, and what that reaches: 1 kFLOP/s, or less below the ridge of 0.2
    assert dots == {
        (round(24 / 92, 4), 1000.0), (round(32 / 96, 4), 1000.0), (round(16 / 64, 4), 1000.0),
        (0.125, 625.0), (round(4 / 48, 4), round(5e3 * 4 / 48, 2)),
    }  # fmt: skip
    assert "ridge 0.200 FLOP/byte" in texts(upper)
    assert "float32: 1.00 kFLOP/s" in texts(upper)
    assert sum(bar.get_height() for bar in bars(lower)) == pytest.approx(184)
    assert {"bound by memory: 26 % of 184 ms", "bound by compute: 74 % of 184 ms"} <= set(
        texts(lower)
    )


def test_those_that_lose_most_to_memory_are_named_once_for_all_that_are_alike(timed):
    upper, _ = draw_figures(timed)["roofline"].axes
    # a sum takes 9.6 ms where computing takes 4, a ReLU 6.4 ms; there are three of each
    assert [text for text in texts(upper) if "alike" in text] == [
        "16.8 of 28.8: body.blocks.0 and 2 alike",
        "7.20 of 19.2: body.blocks.0.act and 2 alike",
    ]


def test_without_times_there_is_no_roofline(small):
    assert set(draw_figures(small)) == {"layers", "memory"}
    unknown = small.on(Ceilings("a machine", 2, {"int8": 1e3}, 5e3, "made up"))
    assert {"layers", "memory"} <= set(draw_figures(unknown))


def test_what_is_held_after_forward_is_filled_up_to_the_peak():
    found = profile(Small(), torch.zeros(2, 3), optimizer=torch.optim.AdamW)
    (axes,) = draw_figures(found)["memory"].axes
    forward = [bar for bar in bars(axes) if bar.get_y() < 0.5]
    backward = [bar for bar in bars(axes) if bar.get_y() > 0.5]
    unit = 1024
    peak = found.memory.peak.step_peak_bytes / unit
    assert axes.get_xlabel() == "memory (KiB)"
    assert sum(bar.get_width() for bar in forward) == pytest.approx(peak)
    # parameters, batch, state, gradients
    held = (296 + 24 + 620 + 296) / unit
    assert sum(bar.get_width() for bar in backward) == pytest.approx(held)
    assert texts(axes)[-1] == f"step peak {peak:.1f} KiB"


def test_a_model_without_gradients_or_activations_has_figures_too():
    frozen = Small().requires_grad_(False)
    assert set(draw_figures(profile_of(frozen, 3))) == {"layers", "memory"}
    empty = profile_of(nn.Identity(), 3)
    assert set(draw_figures(empty)) == {"layers", "memory"}


def test_one_file_holds_all_figures(timed, tmp_path):
    png = write_figure(timed, tmp_path / "profile.png")
    assert imread(png).shape[1] == 1500
    svg = write_figure(timed, tmp_path / "profile.svg").read_text()
    ElementTree.fromstring(svg)
    assert "Roofline of a machine" in svg
    assert svg == write_figure(timed, tmp_path / "again.svg").read_text()


def test_another_suffix_is_refused_with_those_that_work(small, tmp_path):
    with pytest.raises(ConfigError, match=r"profile\.pdf: a figure ends in \.png or \.svg"):
        write_figure(small, tmp_path / "profile.pdf")
    assert list(tmp_path.iterdir()) == []


def test_names_are_text_and_no_formulas_or_tags():
    model = nn.Sequential()
    model.add_module("$x^2$<b>&", nn.Linear(4, 4))
    found = profile_of(model, 4)
    peak = replace(found.activations, peak_layer="$x^2$<b>&")
    figure = draw_figures(replace(found, activations=peak))["layers"]
    svg = figure_svg(figure, "layers")
    assert "$x^2$&lt;b&gt;&amp;" in svg
    assert "<b>" not in svg
    ElementTree.fromstring(svg)


def test_figures_in_one_page_share_no_ids_and_take_its_colour(timed):
    figures = draw_figures(timed)
    ids = [
        {node.get("id") for node in ElementTree.fromstring(figure_svg(f, name)).iter()} - {None}
        for name, f in figures.items()
    ]
    assert not ids[0] & ids[1] | ids[1] & ids[2] | ids[0] & ids[2]
    svg = figure_svg(figures["memory"], "memory")
    assert "currentColor" in svg
    assert "http" not in svg.replace("http://www.w3.org", "")


def test_drawing_leaves_matplotlib_as_it_was(small):
    before = dict(mpl.rcParams)
    assert isinstance(draw_figures(small)["layers"], Figure)
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never():
    code = (
        "import sys, efftrain.render.profile_figure, efftrain.render.profile_table\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from efftrain.render import profile_figure_layers, profile_figure_memory\n"
        "from efftrain.render.profile_figure import figure_style, new_figure\n"
        "with figure_style():\n"
        "    profile_figure_memory, new_figure(1).savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
