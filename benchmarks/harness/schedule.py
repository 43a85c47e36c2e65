"""The schedule of an open loop: when each request is meant to be sent, whatever became of the ones before it.

Rule kept here: the schedule is a pure function of rate and time. It never looks at answers, so a slow system cannot
slow down the load that it is measured with, and a latency counted from the intended time holds the wait of
everything that queued behind a stall (coordinated omission).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ConstantPace"]


@dataclass(frozen=True, slots=True)
class ConstantPace:
    """Requests at equal distances: number `n`, counted from 0, is meant for `n / rate_per_s`."""

    rate_per_s: float
    seconds: float

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and math.isfinite(self.rate_per_s)):
            raise ValueError(f"a rate of {self.rate_per_s} requests/s sends nothing, or everything at once")
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"a schedule of {self.seconds} s has no end or no length")

    @property
    def total(self) -> int:
        """How many requests there are; at least one."""
        return max(1, round(self.rate_per_s * self.seconds))

    def intended_s(self, number: int) -> float:
        """When the request is meant to be sent, in seconds after the start."""
        return number / self.rate_per_s
