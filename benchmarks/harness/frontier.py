"""The throughput frontier: how many queries are left for so many commands, and how far that is from independence.

After HATtrick (Milkai and others, How Good is My HTAP System?, SIGMOD 2022), which draws the throughput of
transactions against that of queries. If the two did not disturb one another at all, the frontier would be the bounding
box of the best of each alone; if they merely shared the machine, the straight line between those; below the line they
harm one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Point", "frontier", "independence"]


class Point(NamedTuple):
    """One mix of load: what was reached on either side."""

    writes: float
    reads: float


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other is better than on both sides, by growing writes."""
    best: list[Point] = []
    for point in sorted(set(points), key=lambda one: (-one.writes, -one.reads)):
        if not best or point.reads > best[-1].reads:
            best.append(point)
    return best[::-1]


def independence(edge: Sequence[Point]) -> float | None:
    """The area below the frontier as a share of the box: 1 = undisturbed, 0.5 = they share the machine, less = harm.

    None if either side was never above 0, so that there is no box.
    """
    if not edge:
        return None
    writes, reads = max(point.writes for point in edge), max(point.reads for point in edge)
    if writes <= 0 or reads <= 0:
        return None
    corners = [Point(0.0, edge[0].reads), *edge, Point(edge[-1].writes, 0.0)]
    area = sum(
        (after.writes - before.writes) * (after.reads + before.reads) / 2
        for before, after in zip(corners, corners[1:], strict=False)
    )
    return area / (writes * reads)
