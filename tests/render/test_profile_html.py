from collections import defaultdict
from html.parser import HTMLParser

import pytest
from torch import nn

from efftrain.render.profile_figure import draw_figures
from efftrain.render.profile_html import COLUMNS, profile_html
from efftrain.render.profile_totals import Total, find_totals
from tests.render.conftest import profile_of

VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each kind of element, and rows of the table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = defaultdict(list)
        self.rows: list[tuple[dict[str, str | None], list[dict[str, str | None]]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((dict(attrs), []))
        if tag == "td":
            self.rows[-1][1].append({**dict(attrs), "text": ""})
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]].append(data)
        if "td" in self.open:
            self.rows[-1][1][-1]["text"] += data


@pytest.fixture(scope="module")
def figures(timed):
    return draw_figures(timed)


@pytest.fixture(scope="module")
def page(timed, figures):
    return Page(profile_html(timed, figures, title="small & simple"))


def test_every_element_is_closed_where_it_was_opened(page):
    assert page.open == []
    assert page.text["h1"] == ["small & simple"]


def test_rows_without_children_add_up_to_the_whole_model(page):
    *rows, total = page.rows[1:]
    assert total[1][0]["text"].startswith("total")
    leaves = [cells for attributes, cells in rows if "data-leaf" in attributes]
    for number, column in enumerate(COLUMNS, 1):
        if column.figure is not None and column.shared:
            figure = [float(cells[number].get("data-value", 0)) for cells in leaves]
            assert sum(figure) == pytest.approx(float(total[1][number]["data-value"])), column.name


def test_the_tree_has_every_module_with_its_sum(page):
    rows = {attributes["data-path"]: cells for attributes, cells in page.rows[1:]}
    assert {"stem", "body.blocks.1.lin", "body.blocks.1.(itself)", "head"} <= rows.keys()
    assert rows["body.blocks"][5]["data-value"] == "48"  # MACs
    assert "--share:70.6%" in rows["body.blocks"][5]["style"]  # of 68
    assert rows["body.blocks.1"][5]["data-value"] == "16"


def test_each_figure_has_its_unit_origin_and_meaning(page, timed):
    totals = find_totals(timed)
    assert page.text["h3"] == [total.name for total in totals]
    assert [text for text in page.text["p"] if text in {t.meaning for t in totals}] == [
        total.meaning for total in totals
    ]
    for how in ("predicted", "estimated"):
        assert page.text["span"].count(how) == sum(total.how == how for total in totals) > 0
    assert len(page.text["figcaption"]) == 3
    assert [text for text in page.text["dt"] if text] == [column.name for column in COLUMNS]


def test_more_figures_stand_under_their_own_head(timed):
    extra = Total(
        "inference, measured", "latency", "1.2 ms", ("p99 2.0 ms",), "measured", "so long"
    )
    page = Page(profile_html(timed, {}, extra=[extra]))
    assert page.text["h2"][-2:] == ["Inference, measured", "Modules"]
    assert "measured" in page.text["span"]
    assert "figure" not in [tag for tag, _ in page.attributes]


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.attributes:
        assert tag not in {"link", "iframe", "object", "embed", "base", "image", "img"}
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    policy = [a["content"] for _, a in page.attributes if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]
    assert not [text for text in page.text["style"] if "url(" in text or "@import" in text]


def test_ids_are_given_once(page):
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_of_the_model_are_text_and_nothing_else():
    Evil = type("<b>x</b>", (nn.Linear,), {})
    model = nn.Sequential()
    model.add_module('"><script>alert(1)</script>', Evil(4, 4))
    model.add_module("' onclick='x", nn.Linear(4, 2))
    found = profile_of(model, 4)
    text = profile_html(found, draw_figures(found), title="<i>")
    page = Page(text)
    assert page.open == []
    tags = [tag for tag, _ in page.attributes]
    assert tags.count("script") == 1
    assert tags.count("b") == 3  # predicted, measured, estimated
    assert "i" not in tags
    assert not [a for _, a in page.attributes if any(name.startswith("on") for name in a)]
    assert page.rows[1][1][1]["text"] == "<b>x</b>"
    assert page.rows[1][0]["data-path"] == '"><script>alert(1)</script>'


def test_it_is_light_and_dark(timed, figures):
    text = profile_html(timed, figures)
    assert "prefers-color-scheme: dark" in text
    assert text.count("currentColor") > 10
