"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from efftrain.errors import ConfigError
from efftrain.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 25_769_803_776),
        ("24GB", 24_000_000_000),
        ("1.5 MiB", 1_572_864),
        (".5kB", 500),
        ("1000", 1000),
        ("7B", 7),
    ],
)
def test_an_amount_is_read_in_its_own_unit(text: str, size: int) -> None:
    assert parse_bytes(text, "fit") == size


@pytest.mark.parametrize("text", ["24G", "lots", "", "-3GiB", "0GiB", "GiB", "1e9", "24 gib"])
def test_what_is_no_amount_is_refused_with_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"fit=.*such as 24GiB"):
        parse_bytes(text, "fit")
