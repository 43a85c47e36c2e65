"""Latencies: an HDR histogram in microseconds, kept whole, from which every percentile can be read later.

Rule kept here: what is stored is the histogram, never percentiles alone: those of several repetitions cannot be put
together, histograms can. The encoding is the library's own (HdrHistogram V2, compressed, base64), known to other
tools.

Three significant digits from one microsecond to one hour: an error of at most 0.1 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from .contract import Figure

LONGEST_US: Final = 3_600_000_000
DIGITS: Final = 3
US_PER_MS: Final = 1_000.0

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
"""As they stand at the end of a figure's name."""


class Latencies:
    """Times that something took."""

    def __init__(self, histogram: Any = None) -> None:
        self._histogram = histogram or HdrHistogram(1, LONGEST_US, DIGITS)

    def record_us(self, microseconds: int) -> None:
        """Add one; below a microsecond counts as one, above an hour as an hour."""
        self._histogram.record_value(min(max(microseconds, 1), LONGEST_US))

    def record_s(self, seconds: float) -> None:
        """Add one."""
        self.record_us(round(seconds * 1e6))

    def add(self, other: Latencies) -> None:
        """Add all of another."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._histogram.get_total_count())

    def percentile_ms(self, percentile: float) -> float:
        """The time, in milliseconds, that so many percent took at most. Raises `ValueError` if nothing was recorded."""
        if not self.count:
            raise ValueError("nothing was recorded: there are no percentiles")
        return float(self._histogram.get_value_at_percentile(percentile)) / US_PER_MS

    def figures(self, name: str) -> dict[str, Figure]:
        """Its percentiles as figures: `figures("latency_ms")` has `latency_ms_p50`. Empty if nothing was recorded."""
        if not self.count:
            return {}
        return {
            f"{name}_{suffix}": Figure(self.percentile_ms(percentile), "ms", "lower")
            for suffix, percentile in PERCENTILES.items()
        }

    def encoded(self) -> str:
        """The whole histogram as text."""
        return bytes(self._histogram.encode()).decode("ascii")


def decoded(text: str) -> Latencies:
    """A stored histogram. Raises `ValueError` if the text is none."""
    try:
        return Latencies(HdrHistogram.decode(text.encode("ascii")))
    except Exception as error:  # the library raises whatever its parts raise: binascii, zlib, its own
        raise ValueError(f"not an HDR histogram: {error}") from None


def merged(texts: Iterable[str]) -> Latencies:
    """Stored histograms of one thing, as one."""
    together = Latencies()
    for text in texts:
        together.add(decoded(text))
    return together
