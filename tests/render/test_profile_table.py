import io
import re

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import nn

from efftrain.errors import ConfigError
from efftrain.profiling import profile
from efftrain.render.profile_table import ROWS, print_profile, shortened
from efftrain.render.quantity import count_text, milliseconds_text, ratio_text
from tests.render.conftest import Block, profile_of


def printed(found, width=200, terminal=False, **options):
    stream = io.StringIO()
    print_profile(found, Console(file=stream, width=width, force_terminal=terminal), **options)
    return stream.getvalue()


def table(text):
    """The cells of the table, by the name in the first column."""
    lines = text.splitlines()
    rule = next(n for n, line in enumerate(lines) if set(line.strip()) == {"─"})
    rows = {}
    for line in lines[rule + 1 :]:
        if re.match(r"One sample|\d+ of \d+ layers", line):
            break
        if line.strip():
            cells = re.split(r" {2,}", line.strip())
            rows.setdefault(cells[0], cells[1:])
    return re.split(r" {2,}", lines[rule - 1].strip()), rows


def test_the_tree_shows_sums_and_ends_with_the_whole_model(small):
    head, rows = table(printed(small))
    assert head[:4] == ["module", "type", "output", "params"]
    assert list(rows) == ["stem", "body.blocks.0-2", "lin", "act", "head", "total"]
    # params, MACs, activations, saved
    assert rows["stem"][:6] == ["Linear", "1x4", "16", "12", "4", "0 B"]
    assert rows["body.blocks.0-2"][:6] == ["3 x Block", "1x4", "48", "48", "24", "192 B"]
    assert rows["head"][:6] == ["Linear", "1x2", "10", "8", "2", "32 B"]
    assert rows["total"][:6] == ["Small", "1x2", "74", "68", "33", "224 B"]


def test_depth_cuts_the_tree_and_keeps_the_sums(small):
    _, rows = table(printed(small, depth=1))
    assert list(rows) == ["stem", "body.blocks.0-2", "head", "total"]
    assert rows["body.blocks.0-2"][2:4] == ["48", "48"]


def test_a_tree_without_a_given_depth_fits_a_screen():
    width = [4 + n % 3 for n in range(2 * ROWS)]  # no two neighbours alike
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, w), nn.Linear(w, 4)) for w in width))
    assert f"{ROWS} of" not in printed(profile_of(model, 4))
    assert "depth 1 of 2" in printed(profile_of(model, 4))
    few = nn.Sequential(*(nn.Sequential(nn.Linear(4, w), nn.Linear(w, 4)) for w in width[:5]))
    assert "depth 2 of 2" in printed(profile_of(few, 4))


@pytest.mark.parametrize(
    ("sort", "first", "last"),
    [
        ("macs", ["body.blocks.0.lin", "body.blocks.1.lin", "body.blocks.2.lin"], "head"),
        ("params", ["stem", "body.blocks.0.lin"], "head"),
        ("saved", ["body.blocks.0.lin", "body.blocks.0.act"], "head"),
    ],
)
def test_a_ranking_has_the_dearest_layer_first(small, sort, first, last):
    head, rows = table(printed(small, sort=sort))
    assert head[1] == "share"
    assert list(rows)[: len(first)] == first
    assert list(rows)[-1] == last


def test_a_ranking_states_shares_and_what_it_leaves_out(small):
    text = printed(small, sort="macs", rows=3)
    assert table(text)[1]["body.blocks.0.lin"][0] == "23.5 %"  # 16 of 68
    assert "3 of 5 layers by MACs; the others have 29.4 %." in text  # 20 of 68
    every = printed(small, sort="macs", rows=None)
    assert "5 of 5 layers by MACs." in every


def test_times_are_shown_where_they_are_known(small, timed):
    assert " ms" not in printed(small).split("Model, predicted")[0]
    text = printed(timed)
    head, rows = table(text)
    assert head[-2:] == ["bound", "ms"]
    assert rows["body.blocks.0-2"][-2:] == ["memory 33 %", "144"]
    assert rows["stem"][-2:] == ["compute", "24.0"]
    assert re.search(r"predicted latency +184 ms +on a machine, 2 threads", text)
    _, ranked = table(printed(timed, sort="predicted_ms"))
    assert next(iter(ranked)) == "body.blocks.0.lin"


def test_what_is_trained_has_a_column_where_modules_differ(small):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    model[2].requires_grad_(False)
    found = profile(model, torch.zeros(2, 4))
    head, rows = table(printed(found))
    assert head[4] == "trains"
    assert (rows["0"][3], rows["2"][3]) == ("20 %", "none")
    assert "trains" not in printed(small)
    assert "trainable 4 (13.33 %)" in printed(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "weight"}, "sort=weight: one of macs, params, activations, saved, bytes"),
        ({"sort": "predicted_ms"}, "no layer's time is predicted without a machine"),
        ({"depth": 0}, "depth=0: at least 1"),
        ({"rows": 0}, "rows=0: at least 1"),
    ],
)
def test_a_wish_that_cannot_be_met_is_an_error(small, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        printed(small, **options)


@pytest.mark.parametrize("options", [{}, {"sort": "saved"}, {"depth": 1}])
@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_but_the_last_line_is_wider_than_the_terminal(timed, width, options):
    model = nn.Sequential()
    model.add_module("a_module_with_a_name_of_many_words_that_nobody_would_shorten", Block())
    for found in (timed, profile_of(model, 4)):
        lines = printed(found, width, **options).splitlines()
        assert max(cell_len(line.rstrip()) for line in lines[:-1]) <= width


def test_a_narrow_terminal_says_which_columns_it_leaves_out(timed):
    narrow, wide = printed(timed, 60), printed(timed, 200)
    left_out = re.search(r"Too\s+narrow\s+for:\s+([^.]+)\.", narrow)
    assert left_out is not None
    assert "type" in left_out[1]
    assert "Too narrow" not in wide
    head, _ = table(narrow)
    assert {"MACs", "saved"} <= set(head)
    assert "moved" in table(printed(timed, 60, sort="bytes"))[0]


def test_what_is_no_terminal_gets_no_colours(small, monkeypatch):
    assert "\x1b" not in printed(small)
    assert "\x1b[1m" in printed(small, terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[3\d", printed(small, terminal=True))


def test_names_of_the_model_are_neither_markup_nor_commands_to_the_terminal():
    Odd = type("[red]x[/nope]\x1b[2J", (nn.Linear,), {})
    model = nn.Sequential()
    model.add_module("[bold]a", Odd(4, 4))
    model.add_module("\x1b[31mb", nn.Linear(4, 2))
    text = printed(profile_of(model, 4))
    assert "[bold]a" in text
    assert "[red]x[/nope]" in text
    assert "\x1b" not in text


def test_the_last_line_has_the_totals(small):
    assert printed(small).splitlines()[-1] == (
        "params 74 (trainable 100 %) || MACs 68 || activations 33 || saved 224 B"
        f" || step peak {small.memory.peak.step_peak_bytes} B"
    )


@pytest.mark.parametrize(
    ("name", "width", "text"),
    [
        ("conv1", 5, "conv1"),
        ("  conv1", 9, "  conv1"),
        ("layer1.0.downsample.conv", 14, "laye..ple.conv"),
        ("    layer1.downsample", 14, "    la..sample"),
    ],
)
def test_a_long_name_loses_its_middle(name, width, text):
    assert shortened(name, width) == text
    assert len(text) <= width


@pytest.mark.parametrize(
    ("count", "digits", "text"),
    [
        (0, 3, "0"), (999, 3, "999"), (1000, 3, "1.00 k"), (9408, 3, "9.41 k"),
        (999_949, 3, "1.00 M"), (999_400, 3, "999 k"), (25_557_032, 3, "25.6 M"),
        (4_089_184_256, 3, "4.09 G"), (4_089_184_256, 4, "4.089 G"), (2e15, 3, "2.00 P"),
    ],
)  # fmt: skip
def test_counts_have_three_digits_and_a_power_of_a_thousand(count, digits, text):
    assert count_text(count, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0455, "0.0455"), (1.239, "1.24"), (9.996, "10.0"), (402.4, "402"),
     (12345.6, "12,300")],
)  # fmt: skip
def test_ratios_and_times_have_three_digits(value, text):
    assert ratio_text(value) == milliseconds_text(value) == text
