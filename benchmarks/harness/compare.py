"""The comparison: which figures of one run have moved beyond their intervals in another, and which way.

Two figures count as moved if their intervals have no point in common. How often that happens by chance to one that has
not changed is given with it: where the intervals span all n and m values (up to eight), it is 2 / C(n + m, n), which is
1 in 126 for five rounds against five, and 1 in 10 for three against three.

Rule kept here: a figure is better or worse only as its case defines; what is neither has `moved`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from .intervals import standing
from .machine import same_machine
from .results import CaseResult, FigureResult, GoalResult, Run

TRIMMED_FROM: Final = 9
"""Values from which on an interval leaves the outermost out (intervals.py)."""

Verdict = Literal["better", "worse", "moved", "same"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One side: a median and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Movement:
    """One figure in both runs, or one goal."""

    name: str
    """`write/saturated writes?…: commands_per_s`, or `goal: …`."""
    first: Reading
    second: Reading
    factor: float | None
    """Second median over first; None if that is 0."""
    verdict: Verdict
    marks: list[str]
    """Of either side."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side."""

    differences: list[str]
    """In what the machines differ; empty if they do not."""
    movements: list[Movement]
    only_first: list[str]
    """Cases with figures in the first run alone."""
    only_second: list[str]
    chance: float | None
    """That a figure which has not changed counts as moved; None with nine rounds or more, where it is below 1 %."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def compare(first: Run, second: Run) -> Comparison:
    """Set the second run against the first."""
    sides = [{case.key: case for case in run.cases if case.figures} for run in (first, second)]
    shared = [key for key in sides[0] if key in sides[1]]
    movements = [one for key in shared for one in _of_case(sides[0][key], sides[1][key])]
    movements += _of_goals(first.goals, second.goals)
    return Comparison(
        differences=same_machine(first.machine, second.machine),
        movements=movements,
        only_first=sorted(sides[0].keys() - sides[1].keys()),
        only_second=sorted(sides[1].keys() - sides[0].keys()),
        chance=_chance(*(_rounds(side.values()) for side in sides)),
    )


def _rounds(cases: Iterable[CaseResult]) -> int:
    """The fewest values that a figure of the run has."""
    return min((len(figure.values) for case in cases for figure in case.figures.values()), default=0)


def _chance(rounds: int, other: int) -> float | None:
    if not (rounds and other) or max(rounds, other) >= TRIMMED_FROM:
        return None
    return 2 / math.comb(rounds + other, rounds)


def _of_case(first: CaseResult, second: CaseResult) -> Iterator[Movement]:
    for name, figure in first.figures.items():
        other = second.figures.get(name)
        if other is not None:
            marks = sorted({*figure.marks, *other.marks})
            sides = (_reading(figure), _reading(other))
            yield _movement(f"{first.key}: {name}", *sides, figure.better, marks)


def _of_goals(first: list[GoalResult], second: list[GoalResult]) -> Iterator[Movement]:
    others = {goal.name: goal for goal in second}
    for goal in first:
        other = others.get(goal.name)
        sides = [
            Reading(one.value, one.low, one.high)
            for one in (goal, other)
            if one is not None and one.value is not None and one.low is not None and one.high is not None
        ]
        if other is not None and len(sides) == 2:
            marks = sorted({*goal.marks, *other.marks})
            yield _movement(f"goal: {goal.name}", sides[0], sides[1], "higher" if goal.at_least else "lower", marks)


def _reading(figure: FigureResult) -> Reading:
    return Reading(figure.value, figure.low, figure.high)


def _movement(name: str, first: Reading, second: Reading, better: str, marks: list[str]) -> Movement:
    how = standing(second.low, second.high, first.low, first.high)
    verdict: Verdict = "moved"
    if how == "together":
        verdict = "same"
    elif better != "neither":
        verdict = "better" if (how == "apart above") == (better == "higher") else "worse"
    return Movement(name, first, second, second.value / first.value if first.value else None, verdict, marks)
