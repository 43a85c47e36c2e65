"""The schedule of an open loop: when each request is meant to be sent, whatever became of the ones before it.

Rule kept here: the schedule is a pure function of rate and time. It never looks at answers, so a slow system cannot
slow down the load that it is measured with, and a latency counted from the intended time holds the wait of
everything that queued behind a stall (coordinated omission).

After the pacer of vegeta (lib/pacer.go): asked with the time elapsed and the number sent, it says how long to wait.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

__all__ = ["ConstantPace", "poisson_times_s"]

_ROUNDING = 1e-9
"""Seconds: `n / rate` is compared with clocks, and 0.1 * 3 is not 0.3."""


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

    def due_by(self, elapsed_s: float) -> int:
        """How many should have been sent by now, all of them at most."""
        if elapsed_s < 0:
            return 0
        return min(self.total, math.floor((elapsed_s + _ROUNDING) * self.rate_per_s) + 1)

    def wait_s(self, elapsed_s: float, sent: int) -> float:
        """How long to wait before the next is sent; 0 if it is due or late, infinity if there is none."""
        if sent >= self.total:
            return math.inf
        return max(0.0, self.intended_s(sent) - elapsed_s)


def poisson_times_s(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Intended times of independent users, in order: exponential distances, the same for the same seed."""
    pace = ConstantPace(rate_per_s, seconds)
    chance, times, now = random.Random(seed), [], 0.0
    while (now := now + chance.expovariate(pace.rate_per_s)) < seconds:
        times.append(now)
    return times
