"""A file holds one noun: it stays short, and is named for what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 300
NAMELESS = {"utils", "util", "helpers", "common", "misc"}

# A path of the checkout, and why the file is better in one piece.
EXEMPT: dict[str, str] = {}


def python_files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in ("efftrain", "tests", "scripts"):
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root).as_posix(), file


def too_long(root: Path, exempt: dict[str, str]) -> list[str]:
    """Files over the limit that are not exempt, and exemptions that nothing needs."""
    lines = {name: len(file.read_bytes().splitlines()) for name, file in python_files(root)}
    long = {name for name, count in lines.items() if count > LIMIT}
    return [
        *(f"{name}: {lines[name]} lines, over {LIMIT}" for name in sorted(long - exempt.keys())),
        *(f"{name}: exempt without need" for name in sorted(exempt.keys() - long)),
    ]


def nameless(root: Path) -> list[str]:
    """Files, or folders they lie in, whose name says nothing."""
    return [
        name
        for name, _ in python_files(root)
        if NAMELESS & {part.strip("_") for part in Path(name).with_suffix("").parts}
    ]


def test_no_file_is_longer_than_a_person_reads_in_one_go() -> None:
    assert too_long(ROOT, EXEMPT) == []


def test_every_exemption_says_why() -> None:
    assert all(len(reason.split()) > 3 for reason in EXEMPT.values()), EXEMPT


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    assert nameless(ROOT) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, lines in {
        "efftrain/short.py": 300,
        "efftrain/peft/long.py": 301,
        "scripts/_utils.py": 1,
        "tests/common/test_x.py": 1,
        "docs/helpers.py": 999,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * lines)
    return tmp_path


def test_a_file_over_the_limit_is_found_and_one_at_the_limit_is_not(tree: Path) -> None:
    assert too_long(tree, {}) == ["efftrain/peft/long.py: 301 lines, over 300"]


def test_an_exemption_counts_only_while_it_is_needed(tree: Path) -> None:
    exempt = {"efftrain/peft/long.py": "one table", "efftrain/short.py": "once was long"}
    assert too_long(tree, exempt) == ["efftrain/short.py: exempt without need"]


def test_a_nameless_file_or_folder_is_found(tree: Path) -> None:
    assert nameless(tree) == ["tests/common/test_x.py", "scripts/_utils.py"]
