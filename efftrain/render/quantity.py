"""Numbers with their units, for people."""

from __future__ import annotations

import math

from efftrain.units import GIB, KIB, MIB

SECONDS_PER_MINUTE = 60

_THOUSANDS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def bytes_text(count: int) -> str:
    """A size in the largest binary unit that it fills: "41.2 KiB"."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def count_text(count: float, digits: int = 3) -> str:
    """A count in powers of 1000, to so many digits: "4.09 G"; exact below 1000."""
    if abs(count) < 1000:
        return f"{count:,.0f}"
    rounded = float(f"{count:.{digits - 1}e}")  # first: 999,999 is 1.00 M, not 1000 k
    unit, name = next((u, n) for u, n in _THOUSANDS if abs(rounded) >= u)
    return f"{_significant(rounded / unit, digits)} {name}"


def milliseconds_text(value: float) -> str:
    """Milliseconds to three digits, without the unit: "12.3", "0.0450"."""
    return _significant(value, 3)


def ratio_text(value: float) -> str:
    """A ratio to three digits: "1.24", "19.2", "402"."""
    return _significant(value, 3)


def duration_text(seconds: float) -> str:
    """Seconds, with minutes above one of them: "41.2 s", "3 min 07 s"."""
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), SECONDS_PER_MINUTE)
    return f"{minutes} min {rest:02d} s"


def _significant(value: float, digits: int) -> str:
    if not value:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{rounded:,.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)}f}"


def percent_text(share: float) -> str:
    """A percentage that is 0 or 100 only where it is exactly that: "0.21 %", "< 0.01 %"."""
    if 0 < share < 0.01:
        return "< 0.01 %"
    if 99.99 < share < 100:
        return "> 99.99 %"
    return f"{share:.0f} %" if share in (0, 100) else f"{share:.2f} %"
