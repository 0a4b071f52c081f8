from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import torch

from efftrain.config.annotations import describe, fits, parameters


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (1, float, True),
        (1.5, int, False),
        (True, int, False),
        (True, float, False),
        ("1", int, False),
        ("x", str, True),
        (None, int, False),
        (None, Optional[int], True),  # noqa: UP045
        (None, int | None, True),
        ("abc", Union[float, torch.Tensor], False),  # noqa: UP007
        (0.1, Union[float, torch.Tensor], True),  # noqa: UP007
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (True, Literal[1], False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ([0.9, 0.999], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        ("ab", list[str], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": 1}, list[int], False),
        ("out", Path, True),
        ("anything", Any, True),
        ("text", torch.Tensor, False),
    ],
)
def test_a_value_fits_what_python_would_take(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_annotations_are_evaluated_where_they_are_strings():
    def target(count: "int", name: "str | None" = None) -> None: ...

    found = parameters(target)
    assert found["count"].annotation is int
    assert fits(None, found["name"].annotation)


def test_a_description_is_in_words():
    assert describe(int | None) == "int or null"
    assert describe(Literal["a", "b"]) == "one of a, b"
