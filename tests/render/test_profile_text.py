import csv
import io

import pytest
from torch import nn

from efftrain.render.profile_text import CSV_COLUMNS, profile_csv, profile_markdown
from tests.render.conftest import profile_of


def rows_of(document, first):
    """The cells of the Markdown table whose head begins so."""
    lines = document.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


@pytest.fixture
def odd():
    """A model that is named to break documents."""
    Odd = type("<b>`x`|y", (nn.Linear,), {})
    model = nn.Sequential()
    model.add_module('a,b"c|d`e\n<i>', Odd(4, 4))
    return profile_of(model, 4)


def test_csv_reads_back_as_the_layers(timed):
    rows = list(csv.DictReader(io.StringIO(profile_csv(timed))))
    assert len(rows) == len(timed.layers)
    for row, layer in zip(rows, timed.layers, strict=True):
        expected = layer.to_dict()
        assert row["path"] == layer.path
        assert [int(n) for n in row["output_shape"].split("x")] == expected["output_shape"]
        for name in ("params", "trainable", "macs", "flops", "activations", "bytes"):
            assert int(row[name]) == expected[name]
        assert float(row["intensity"]) == expected["intensity"]
        assert float(row["predicted_ms"]) == expected["predicted_ms"]
        assert row["bound"] == expected["bound"]


def test_csv_has_the_keys_of_the_json_and_an_empty_cell_for_what_is_not_known(small, timed):
    assert list(CSV_COLUMNS) == list(timed.layers[0].to_dict())
    head, first, *_ = profile_csv(small).splitlines()
    assert head == ",".join(CSV_COLUMNS)
    assert first == "stem,Linear,1x3,1x4,16,16,12,24,4,92," + f"{24 / 92!r},,"


def test_csv_quotes_names(odd):
    (row,) = csv.DictReader(io.StringIO(profile_csv(odd)))
    assert row["path"] == 'a,b"c|d`e\n<i>'
    assert row["type"] == "<b>`x`|y"


def test_markdown_has_the_tree_with_sums_and_the_whole_model_last(small):
    rows = rows_of(profile_markdown(small), "module")
    assert [row[0] for row in rows] == [
        "`stem`", "`body.blocks.0-2`", "`body.blocks.0-2.lin`", "`body.blocks.0-2.act`", "`head`",
        "`total`",
    ]  # fmt: skip
    assert rows[1][1:7] == ["`3 x Block`", "1x4", "48", "48", "24", "192 B"]
    assert rows[-1][1:7] == ["`Small`", "1x2", "74", "68", "33", "224 B"]
    assert len(rows_of(profile_markdown(small, depth=1), "module")) == 4


def test_markdown_has_times_only_where_they_are_known(small, timed):
    assert "| ms |" not in profile_markdown(small)
    assert rows_of(profile_markdown(timed), "module")[-1][-2:] == ["memory 26 %", "184"]


def test_markdown_has_each_figure_with_its_origin(small):
    document = profile_markdown(small, title="resnet50")
    assert document.startswith("# resnet50\n\n`params 74 (trainable 100 %) || MACs 68 ||")
    assert ["parameters", "74", "trainable 74 (100 %); buffers 0", "predicted"] in rows_of(
        document, "figure"
    )
    assert "## Training step, batch 2\n" in document


def test_markdown_takes_no_name_for_a_tag_or_the_end_of_a_cell(odd):
    document = profile_markdown(odd)
    rows = rows_of(document, "module")
    # the newline is gone, the bars are escaped, the backticks do not end the code
    assert rows[0][:2] == [
        "`a,b\"c\\|d'e\N{REPLACEMENT CHARACTER}<i>`",
        "`<b>'x'\\|y`",
    ]
    outside = "".join(part for n, part in enumerate(document.split("`")) if not n % 2)
    assert "<i>" not in outside
    assert "<b>" not in outside
