"""Numbers as people read them: three significant digits, thousands with commas, times in words.

Rule kept here: rounding is for the eye alone; results keep every digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def shown(value: float) -> str:
    """Three significant digits, without an exponent: `36,100`, `12.3`, `0.0421`."""
    if not math.isfinite(value):
        return "unbounded" if value > 0 else "unknown"
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if digits <= 0 else f"{rounded:,.{digits}f}"


def shown_interval(low: float, high: float) -> str:
    """`31,000 to 38,500`; one number if both read the same."""
    ends = shown(low), shown(high)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def shown_s(seconds: float) -> str:
    """A time that is left: `40 s`, `3 min`, `1 h 10 min`."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: float, noun: str) -> str:
    """`1 partition`, `2 partitions`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def sentence(parts: Sequence[str], end: str = "") -> str:
    """Parts as one sentence, with a capital and a full stop; empty if there are none."""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}{end}." if text else ""
