import re
from pathlib import Path

from efftrain.tags import NEEDS, TAGS, find_tag
from tests.conftest import CHECKOUT

UNITS = {
    "_ms": "ms", "_mib": "MiB", "_kib": "KiB", "_pct": "%", "_per_s": "1/s", "_gflop": "GFLOP",
    "_gflops": "GFLOP/s", "_j": "J", "_mj": "mJ",
}  # fmt: skip


def readme_rows() -> list[list[str]]:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    table = text.split("| tag | unit | how | meaning |\n", 1)[1].split("\n\n", 1)[0]
    lines = table.splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_readmes_table_is_that_of_the_code():
    assert readme_rows() == [[f"`{t.name}`", t.unit, t.how, t.meaning] for t in TAGS]


def test_names_are_unique_and_grouped_by_their_first_segment():
    names = [tag.name for tag in TAGS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_<>]+)+", name) for name in names)


def test_a_unit_is_named_where_there_is_one():
    for tag in TAGS:
        for suffix, unit in UNITS.items():
            assert not tag.name.endswith(suffix) or tag.unit == unit
        assert tag.needs in ("", *NEEDS)


def test_a_logged_name_finds_its_figure():
    assert find_tag("train/loss_step").name == "train/loss"
    assert find_tag("val/acc").name == "val/<metric>"
    assert find_tag("lr/norm").name == "lr/<group>"
    assert find_tag("time/step_ms").name == "time/step_ms"
    assert find_tag("params/trainable_pct").name == "params/trainable_pct"
    assert find_tag("params/trainable/norm").name == "params/trainable/<role>"
    assert find_tag("size/model_mib").name == "size/model_mib"
    assert find_tag("size/int8_mib").name == "size/<width>_mib"
    assert find_tag("memory/saved_measured_mib").name == "memory/saved_measured_mib"
    assert find_tag("memory/saved/norm_mib").name == "memory/saved/<cause>_mib"
    assert find_tag("speed/step_ms") is None


def test_every_tag_that_the_code_logs_is_in_the_table():
    sources = Path(CHECKOUT / "efftrain" / "callbacks").glob("*.py")
    logged = {
        tag for path in sources for tag in re.findall(r'"([a-z]+/[a-z0-9_]+)"', path.read_text())
    }
    assert logged
    assert all(find_tag(tag) for tag in logged)
