"""The curves that the report draws: the scalability law, the throughput frontier, the interference matrix.

**The Universal Scalability Law** is throughput against the number of workers, as three numbers with a meaning:

    X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1))

`lambda` is the throughput of one worker, `sigma` the share that is serial (contention: Amdahl's law), `kappa` the cost
of keeping every pair of workers in agreement (coherency: beyond sqrt((1 - sigma) / kappa) workers it slows down again).
N. J. Gunther, Guerrilla Capacity Planning, 2007; fitted by non-linear least squares with all three at least 0. A fit
states how well it is known: with as many points as parameters there is no standard error, and what lies beyond the
largest measured n is called an extrapolation, never a figure.

**The frontier** is after HATtrick (Milkai and others, How Good is My HTAP System?, SIGMOD 2022): how many queries are
left for so many commands. If the two did not disturb one another at all, it would be the bounding box of the best of
each alone; if they merely shared the machine, the straight line between those; below the line they harm one another.

**The matrix** has what load on one side does to the other, cell by cell. A cell is compared with the same load while
the other side is idle, never with the best of all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from .numbers import shown

POINTS_MIN: Final = 3
"""Different numbers of workers that a fit of three parameters needs."""


def throughput(workers: float, one: float, contention: float, coherency: float) -> float:
    """X(n) of the law."""
    return one * workers / (1.0 + contention * (workers - 1.0) + coherency * workers * (workers - 1.0))


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """The three numbers, each with its standard error (NaN where the points are too few)."""

    one: float
    one_error: float
    contention: float
    contention_error: float
    coherency: float
    coherency_error: float
    measured_max: float
    """The most workers that were measured: beyond them, `at` extrapolates."""
    points: int

    def at(self, workers: float) -> float:
        """The throughput that the fit gives."""
        return throughput(workers, self.one, self.contention, self.coherency)

    @property
    def known(self) -> bool:
        """Whether there are more points than parameters, so that the errors mean something."""
        return all(math.isfinite(error) for error in (self.one_error, self.contention_error, self.coherency_error))

    def sentence(self, beyond: int) -> str:
        """What it means, the extrapolation to `beyond` workers included and called by its name."""
        errors = f" ± {self.contention_error:.2f}" if self.known else ""
        kappa = f" ± {self.coherency_error:.3f}" if self.known else ""
        fit = f"USL fit: contention {self.contention:.2f}{errors}, coherency {self.coherency:.3f}{kappa}"
        if not self.known:
            fit += f" (three parameters through {self.points} points: no standard errors)"
        return (
            f"{fit}. Extrapolated, not measured: {shown(self.at(beyond))}/s at {beyond},"
            f" if nothing but these two limits it"
        )


def fit_scaling(workers: Sequence[float], rates: Sequence[float]) -> ScalingFit | None:
    """Fit the law to points; None where three different numbers of workers are not there, or nothing fits.

    Several points at one number of workers (the repetitions) are all used, which is what makes the errors honest.
    """
    counts, measured = np.asarray(workers, dtype=float), np.asarray(rates, dtype=float)
    if counts.shape != measured.shape:
        raise ValueError(f"{len(workers)} numbers of workers, but {len(rates)} rates")
    if len(set(counts.tolist())) < POINTS_MIN or not (measured > 0).all() or not (counts >= 1).all():
        return None
    guess = (float((measured / counts).max()), 0.1, 0.001)
    exact = len(counts) == POINTS_MIN
    bounds = ([0, 0, 0], [np.inf, 1, np.inf])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # no covariance: given as an error that is not known
            found, covariance = curve_fit(throughput, counts, measured, p0=guess, bounds=bounds, x_scale=guess)
    except (RuntimeError, ValueError):  # did not converge
        return None
    errors = np.full(3, np.nan) if exact else np.sqrt(np.diag(covariance))
    return ScalingFit(
        float(found[0]),
        float(errors[0]),
        float(found[1]),
        float(errors[1]),
        float(found[2]),
        float(errors[2]),
        float(counts.max()),
        len(counts),
    )


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


Cells = Mapping[tuple[str, str], float]
"""(own load, the other side's load) -> what was measured."""


def relative(cells: Cells) -> dict[tuple[str, str], float]:
    """Each cell as a multiple of the one with the same own load and the other side idle; without that, no cell."""
    found: dict[tuple[str, str], float] = {}
    for (own, other), value in cells.items():
        alone = cells.get((own, "idle"))
        if alone:
            found[own, other] = value / alone
    return found


def worst(multiples: Cells, *, lower_is_worse: bool) -> tuple[tuple[str, str], float] | None:
    """The cell that suffers most among those in which the other side is not idle."""
    disturbed = [(cell, value) for cell, value in multiples.items() if cell[1] != "idle"]
    if not disturbed:
        return None
    return (min if lower_is_worse else max)(disturbed, key=lambda one: one[1])
