"""Numbers, times and sizes as a person reads them."""

from __future__ import annotations

from datetime import datetime

MISSING = "—"


def duration(seconds: float) -> str:
    """4.2 s, 3 min 12 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def context(length: float | None) -> str:
    """A length in tokens as this field writes it: 512, 1K, 128K, 1M (powers of 1024)."""
    if length is None:
        return MISSING
    whole = int(length)
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if whole >= unit and whole % unit == 0:
            return f"{whole // unit}{letter}"
    return f"{whole:,}"


def size(amount: float) -> str:
    """Bytes in decimal units."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if amount >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount:.0f} B"


def figure(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def moment(iso: str) -> str:
    """An ISO 8601 time as 2026-11-20 10:00 UTC; as it is when it is none."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{when:%Y-%m-%d %H:%M} UTC"
