"""A config opens with the command that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

CONF = Path(__file__).parents[2] / "conf"


def without_command(conf: Path) -> list[str]:
    """Configs whose first three lines, after an optional `# @package`, hold no `# efftrain …`."""
    found = []
    for file in sorted([*conf.rglob("*.yaml"), *conf.rglob("*.yml")]):
        lines = file.read_text(encoding="utf-8").splitlines()
        if lines and lines[0].startswith("# @package"):
            del lines[0]
        if not any(line.startswith("# efftrain ") for line in lines[:3]):
            found.append(file.relative_to(conf).as_posix())
    return found


def test_every_config_opens_with_the_command_that_uses_it() -> None:
    assert (CONF / "train.yaml").is_file()  # an empty folder would pass
    assert without_command(CONF) == []


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("# efftrain train\nseed: 0\n", True),
        ("# The default job.\n#\n# efftrain train\n", True),
        ("# @package _global_\n# A job.\n#\n# efftrain train experiment=x\n", True),
        ("# one\n# two\n# three\n# efftrain train\n", False),
        ("seed: 0  # efftrain train\n", False),
        ("# see efftrain train\n", False),
        ("", False),
    ],
)
def test_a_missing_command_is_found(tmp_path: Path, text: str, is_good: bool) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "x.yaml").write_text(text)
    assert without_command(tmp_path) == ([] if is_good else ["group/x.yaml"])
