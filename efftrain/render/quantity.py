"""Numbers with their units, for people."""

from __future__ import annotations

from efftrain.units import GIB, KIB, MIB

SECONDS_PER_MINUTE = 60


def bytes_text(count: int) -> str:
    """A size in the largest binary unit that it fills: "41.2 KiB"."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def duration_text(seconds: float) -> str:
    """Seconds, with minutes above one of them: "41.2 s", "3 min 07 s"."""
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), SECONDS_PER_MINUTE)
    return f"{minutes} min {rest:02d} s"
