"""Goals: each line of the goal table (`goals.csv`) against what was measured, and what bounds it.

Rule kept here: a ratio is of values of the same round (intervals.py); a goal whose interval lies on both sides of its
bound is met or missed by its median and marked as uncertain; one without figures is not measured, never met.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .intervals import Interval, median_interval, ratio_interval
from .results import CaseResult, FigureResult, GoalResult

CPU: Final = "cpu_s_per_1000_"
BUSY_SHARE: Final = 0.85
"""Of a core or of all cores, from which on it counts as the bound."""

Cases = Mapping[str, CaseResult]


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the goal table: a figure, or the ratio of two, against a bound."""

    name: str
    numerator: tuple[str, str]
    """Case key and figure name."""
    denominator: tuple[str, str] | None
    """None: the figure itself is compared with the bound."""
    bound: float
    at_least: bool
    """True: the value must be at least the bound; False: at most."""


def _read(table: Path) -> Iterator[Goal]:
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            against = (row["against"], row["figure of that"]) if row["against"] else None
            bound = float(row["at least"] or row["at most"])
            yield Goal(row["name"], (row["case"], row["figure"]), against, bound, bool(row["at least"]))


GOALS: Final = tuple(_read(Path(__file__).with_name("goals.csv")))
"""The table of what has to come out on two cores, all with an fsync before every acknowledgement."""


def judge(goals: Sequence[Goal], cases: Cases, cores: int) -> list[GoalResult]:
    """The table."""
    return [_judged(goal, cases, cores) for goal in goals]


def bounded_by(case: CaseResult, cores: int) -> str:
    """What bounds the throughput of a case, from its CPU time by role; empty if the case does not have it."""
    rate_name = next((name for name in ("commands_per_s", "queries_per_s") if name in case.figures), "")
    if not rate_name:
        return ""
    rate = case.figures[rate_name]
    if "generator" in rate.marks:
        return "perhaps the load generator: within 80 % of its ceiling"
    whole = CPU + rate_name.removesuffix("_per_s")
    if whole not in case.figures:
        return ""
    roles = {
        name.removeprefix(whole + "_"): figure.value * rate.value / 1000
        for name, figure in case.figures.items()
        if name.startswith(whole + "_")
    }
    total = case.figures[whole].value * rate.value / 1000
    most = max(roles, key=lambda role: roles[role], default="")
    share = f", most of it {most} ({roles[most]:.2f})" if most else ""
    if total >= BUSY_SHARE * cores:
        return f"the CPU: {total:.2f} of {cores} cores busy{share}"
    if most and roles[most] >= BUSY_SHARE:
        return f"{most}: {roles[most]:.2f} of a core, with {total:.2f} of {cores} cores busy"
    waits = "waiting, perhaps for the CPU time of other processes" if "busy" in rate.marks else "waiting"
    return f"{waits}: {total:.2f} of {cores} cores busy{share}"


def _judged(goal: Goal, cases: Cases, cores: int) -> GoalResult:
    sides = [_side(cases, side) for side in (goal.numerator, goal.denominator) if side is not None]
    figures = [figure for _, figure in sides if figure is not None]
    interval = _interval(figures) if len(figures) == len(sides) else None
    first = sides[0][0]
    return GoalResult(
        name=goal.name,
        at_least=goal.at_least,
        bound=goal.bound,
        value=interval.median if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        confidence=interval.confidence if interval else 0.0,
        verdict=_verdict(goal, interval.median) if interval else "not measured",
        certain=_certain(goal, interval) if interval else False,
        bounded_by=bounded_by(first, cores) if interval and first else "" if interval else _missing(goal, sides),
        marks=sorted({mark for figure in figures for mark in figure.marks}),
    )


Side = tuple[CaseResult | None, FigureResult | None]


def _side(cases: Cases, side: tuple[str, str]) -> Side:
    case = cases.get(side[0])
    return case, case.figures.get(side[1]) if case else None


def _interval(figures: Sequence[FigureResult]) -> Interval | None:
    if len(figures) == 1:
        return median_interval(list(figures[0].values.values()))
    return ratio_interval(figures[0].values, figures[1].values)


def _verdict(goal: Goal, value: float) -> Literal["met", "missed"]:
    return "met" if (value >= goal.bound if goal.at_least else value <= goal.bound) else "missed"


def _certain(goal: Goal, interval: Interval) -> bool:
    return interval.count > 1 and _verdict(goal, interval.low) == _verdict(goal, interval.high)


def _missing(goal: Goal, sides: Sequence[Side]) -> str:
    """Why there is no figure."""
    wanted = [side for side in (goal.numerator, goal.denominator) if side is not None]
    for (key, figure), (case, found) in zip(wanted, sides, strict=True):
        if case is None:
            return f"not in this run: {key}"
        if found is None:
            because = case.skipped or case.error or (case.violations[0] if case.violations else f"it has no {figure}")
            return f"{key}: {because}"
    return "no round has both sides"
