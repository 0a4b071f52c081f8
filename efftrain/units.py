"""The two counting rules of the project, and the units that its figures come in.

One multiply-accumulate is two floating point operations: 1 MAC = 2 FLOP. A figure named MACs counts
the multiply-accumulates of convolutions, linear layers, matrix products, attention and recurrent
cells; a figure named FLOPs is twice that plus every other arithmetic operation.

KiB, MiB and GiB are powers of 1024; kB, MB and GB are powers of 1000. They never mix, and a tag or a
variable carries its unit in its name.
"""

from __future__ import annotations

import re

from efftrain.errors import ConfigError

FLOPS_PER_MAC = 2

KIB = 1024
MIB = 1024**2
GIB = 1024**3

GIGA = 10**9

BYTES = {
    "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024**4,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": GIGA, "TB": 10**12, "B": 1,
}  # fmt: skip
"""Units of memory, as people write them."""

MS_PER_S = 1000.0
NS_PER_MS = 1e6


def parse_bytes(text: str, key: str) -> int:
    """Read an amount of memory.

    Args:
        text: A number and a unit, such as "24GiB" or "1.5 GB"; a number alone is bytes.
        key: Config key that it stands in, for the message.

    Returns:
        Bytes, rounded down.

    Raises:
        ConfigError: It is no such amount, or nothing at all.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([A-Za-z]*)", text.strip())
    unit = (match[2] or "B") if match else ""
    if match is None or unit not in BYTES or float(match[1]) == 0:
        raise ConfigError(f"{key}={text}: expected an amount of memory such as 24GiB or 512MB")
    return int(float(match[1]) * BYTES[unit])
