"""The summary: from what was measured to results: medians with intervals, marks, goals. Pure: no clock, no machine.

Rule kept here: a case that broke an invariant in any round has no figures at all. What it computed fast may be wrong,
and the rounds in which it went unnoticed were of the same program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .contract import Case, Figure
from .goals import GOALS, Goal, judge
from .intervals import median_interval
from .marks import case_marks, generator_marks
from .results import CaseResult, FigureResult, Run, SampleResult
from .rounds import Measured, Plan, Record

GENERATOR: Final = "load generator"
"""The name of the cases that measure the load generator against a null system."""


def summarize(
    plan: Plan,
    record: Record,
    *,
    suites: Sequence[str],
    options: Mapping[str, Any],
    machine: Mapping[str, Any],
    started_at: str,
    finished_at: str,
    goals: Sequence[Goal] = GOALS,
) -> Run:
    """The results of a run, whole or not."""
    ceilings = generator_ceilings(plan, record)
    cases = [_case(case, plan, record, str(machine.get("filesystem", "")), ceilings) for case in plan.all]
    measured = [case for case in plan.all if not case.skip]
    complete = not record.errors and all(len(record.measured.get(c.key, ())) == plan.rounds for c in measured)
    return Run(
        suites=list(suites),
        started_at=started_at,
        finished_at=finished_at,
        complete=complete,
        rounds=plan.rounds,
        options=dict(options),
        machine=dict(machine),
        generator=ceilings,
        cases=cases,
        goals=judge(goals, {case.key: case for case in cases}, int(machine.get("cores", 1))),
    )


def generator_ceilings(plan: Plan, record: Record) -> dict[str, float]:
    """What the load generator reaches against a null system, by figure."""
    found: dict[str, float] = {}
    for case in plan.all:
        calls = record.measured.get(case.key, [])
        if case.name != GENERATOR or any(one.sample.violations for one in calls):
            continue
        for name, (_, values) in _figures(calls).items():
            if name.endswith("_per_s"):
                found[name] = median_interval(list(values.values())).median
    return found


def _case(case: Case, plan: Plan, record: Record, filesystem: str, ceilings: Mapping[str, float]) -> CaseResult:
    calls = record.measured.get(case.key, [])
    violations = [f"round {one.round + 1}: {violation}" for one in calls for violation in one.sample.violations]
    marks = case_marks(filesystem, (one.conditions for one in calls), len(calls), plan.rounds)
    figures = {
        name: _figure(name, like, values, marks, ceilings if case.throughput else {})
        for name, (like, values) in _figures(calls).items()
    }
    return CaseResult(
        key=case.key,
        suite=case.suite,
        name=case.name,
        parameters=dict(case.parameters),
        throughput=case.throughput,
        skipped=case.skip,
        error=record.errors.get(case.key, ""),
        violations=violations,
        figures={} if violations else figures,
        samples=[_sample(one) for one in calls],
    )


def _figures(calls: Sequence[Measured]) -> dict[str, tuple[Figure, dict[int, float]]]:
    """By name: one of its kind, for unit and direction, and the values by round."""
    found: dict[str, tuple[Figure, dict[int, float]]] = {}
    for one in calls:
        for name, figure in one.sample.figures.items():
            found.setdefault(name, (figure, {}))[1][one.round] = float(figure.value)
    return found


def _figure(
    name: str, like: Figure, values: dict[int, float], marks: Sequence[str], ceilings: Mapping[str, float]
) -> FigureResult:
    interval = median_interval(list(values.values()))
    return FigureResult(
        value=interval.median,
        low=interval.low,
        high=interval.high,
        confidence=interval.confidence,
        unit=like.unit,
        better=like.better,
        values=values,
        marks=[*marks, *generator_marks(name, interval.median, ceilings)],
    )


def _sample(measured: Measured) -> SampleResult:
    return SampleResult(
        round=measured.round,
        seconds=round(measured.seconds, 3),
        conditions=measured.conditions.as_dict() if measured.conditions else None,
        histograms=dict(measured.sample.histograms),
        violations=list(measured.sample.violations),
        notes=dict(measured.sample.notes),
    )
