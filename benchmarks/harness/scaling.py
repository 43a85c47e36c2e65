"""The Universal Scalability Law: throughput against the number of workers, as three numbers with a meaning.

    X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1))

`lambda` is the throughput of one worker, `sigma` the share that is serial (contention: Amdahl's law), `kappa` the cost
of keeping every pair of workers in agreement (coherency: beyond sqrt((1 - sigma) / kappa) workers it slows down again).
N. J. Gunther, Guerrilla Capacity Planning, 2007; fitted by non-linear least squares with all three at least 0.

Rule kept here: a fit says how well it is known. With as many points as parameters there is no standard error, and what
lies beyond the largest measured n is called an extrapolation, never a figure.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from .numbers import shown

__all__ = ["ScalingFit", "fit_scaling", "throughput"]

POINTS_MIN: Final = 3
"""Different numbers of workers that a fit of three parameters needs."""


def throughput(workers: float, one: float, contention: float, coherency: float) -> float:
    """X(n) of the law."""
    return one * workers / (1.0 + contention * (workers - 1.0) + coherency * workers * (workers - 1.0))


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """The three numbers, each with its standard error (NaN where the points are too few to tell)."""

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
        """What it says, the extrapolation to `beyond` workers included and called by its name."""
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
            warnings.simplefilter("ignore", OptimizeWarning)  # no covariance: told as an error that is not known
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
