"""Goals: each line of the goal table against what was measured, and what bounds it.

Rule kept here: a ratio is of values of the same round (intervals.py); a goal whose interval lies on both sides of its
bound is met or missed by its median and marked as uncertain; one without figures is not measured, never met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


WRITE_1: Final = "write/saturated writes?depth=1024&keys=uniform&partitions=1&placement=shared"
WRITE_2: Final = "write/saturated writes?depth=4096&keys=uniform&partitions=2&placement=shared"
PLAIN: Final = "ceiling/plain program?batch=1024"
THEN_ASK: Final = "latency/open loop?load=0.5&operation=execute then ask"

GOALS: Final = (
    Goal("1 partition against the plain program", (WRITE_1, "commands_per_s"), (PLAIN, "commands_per_s"), 1.0, True),
    Goal("2 partitions against the plain program", (WRITE_2, "commands_per_s"), (PLAIN, "commands_per_s"), 1.0, True),
    Goal(
        "commands against eventsourcing on SQLite",
        (WRITE_2, "commands_per_s"),
        ("peers/eventsourcing save?store=sqlite", "commands_per_s"),
        12.0,
        True,
    ),
    Goal(
        "commands against UmaDB at 64 in flight",
        ("peers/rayfold?depth=64", "commands_per_s"),
        ("peers/umadb?depth=64", "commands_per_s"),
        2.0,
        True,
    ),
    Goal(
        "commands against UmaDB, one at a time",
        ("peers/rayfold?depth=1", "commands_per_s"),
        ("peers/umadb?depth=1", "commands_per_s"),
        1.0,
        True,
    ),
    Goal(
        "read your writes against eventsourcing",
        ("freshness/execute then ask after", "latency_ms_p50"),
        ("peers/eventsourcing save then wait?store=memory", "latency_ms_p50"),
        0.05,
        False,
    ),
    Goal(
        "one command at a time against a null call and a commit",
        ("latency/one at a time", "latency_ms_p50"),
        ("ceiling/null call and synced commit", "latency_ms_p50"),
        1.6,
        False,
    ),
    Goal(
        "one command against a null round trip and a synced commit",
        ("latency/one command beside a null round trip and a commit", "command_of_both_p50"),
        None,
        1.5,
        False,
    ),
    Goal(
        "one query alone against a null round trip",
        ("read/one query beside a null round trip", "query_ms_p50"),
        ("read/one query beside a null round trip", "null_ms_p50"),
        3.0,
        False,
    ),
    Goal(
        "one query beside 10,000 that wait",
        ("read/queries beside 10,000 that wait", "beside_ms_p50"),
        ("read/queries beside 10,000 that wait", "alone_ms_p50"),
        1.2,
        False,
    ),
    Goal(
        "queries pipelined, one replica",
        ("read/saturated reads?depth=4096&replicas=1", "queries_per_s"),
        None,
        150_000,
        True,
    ),
    Goal(
        "projection catch-up, one core",
        ("replay/projection rebuild?events=100000", "events_per_s"),
        None,
        200_000,
        True,
    ),
    Goal(
        "projection catch-up against eventsourcing in memory",
        ("replay/projection rebuild?events=100000", "events_per_s"),
        ("peers/eventsourcing catch-up?store=memory", "events_per_s"),
        2.0,
        True,
    ),
    Goal("ack to visible at half of saturation", ("freshness/visible?load=0.5", "visible_ms_p99"), None, 5.0, False),
    Goal("execute, then ask, at half of saturation, p50", (THEN_ASK, "latency_ms_p50"), None, 3.0, False),
    Goal("execute, then ask, at half of saturation, p99", (THEN_ASK, "latency_ms_p99"), None, 15.0, False),
    Goal(
        "queries beside saturated writes against queries alone",
        ("scale/interference?reads=saturated&writes=saturated", "queries_per_s"),
        ("scale/interference?reads=saturated&writes=idle", "queries_per_s"),
        0.5,
        True,
    ),
    Goal(
        "commands at the largest log against 100 thousand events",
        ("replay/commands after?size=largest", "commands_per_s"),
        ("replay/commands after?size=100000", "commands_per_s"),
        0.8,
        True,
    ),
)
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
