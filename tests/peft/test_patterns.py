import pytest

from efftrain.errors import ConfigError
from efftrain.peft.patterns import did_you_mean, match_all, matches

NAMES = ("layer1.0.bn1.weight", "layer1.0.conv1.weight", "layer12.bn1.bias", "fc.weight")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("layer1", 2),  # a dotted prefix, not a prefix of letters: layer12 stays out
        ("layer1.0.bn1.weight", 1),
        ("layer*", 3),
        ("layer?.0", 2),
        ("*.bn1.*", 2),
        ("*.weight", 3),
        ("bn1", 0),
        ("LAYER1", 0),
    ],
)
def test_globs_and_dotted_prefixes(pattern: str, count: int) -> None:
    assert sum(matches(name, pattern) for name in NAMES) == count


def test_a_pattern_that_matches_nothing_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        match_all(NAMES, ["layer1", "layr1", "head"], "peft.include")
    assert len(caught.value.problems) == 2
    assert "peft.include=layr1 matches none of 4 names" in caught.value.problems[0]
    assert "did you mean layer1" in caught.value.problems[0]


def test_a_pattern_that_matches_only_what_is_left_out_says_so() -> None:
    with pytest.raises(ConfigError, match="matches 1 of 4 names, but none that the other choices"):
        match_all(NAMES[:3], ["fc"], "peft.include", NAMES)


def test_suggestions_only_where_something_is_close() -> None:
    assert did_you_mean("zzz", NAMES) == ""
    assert "norm_head" in did_you_mean("normhead", ["norm_head", "full"])
