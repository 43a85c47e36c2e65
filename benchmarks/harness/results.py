"""Results: what a run came to, as one JSON document that can be read back, checked, compared and drawn.

The schema is versioned by its name: a reader refuses what it does not know, and names those that it knows. Every field
is documented here, and in docs/benchmarks.md for people.

Rule kept here: every value that was measured is in the file, by round, beside the median made from it; histograms are
stored whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA: Final = "rayfold-bench/1"

SIZE_MAX_BYTES: Final = 256 * 1024 * 1024
"""Of a file of results: a full run has some megabytes."""

Parameter = bool | int | float | str


class ResultsInvalid(Exception):
    """A file that holds no results, or none that this version reads. Its text has the file and what is wrong."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class FigureResult(_Stored):
    """One figure of one case over all rounds."""

    value: float = Field(allow_inf_nan=False)
    """The median."""
    low: float
    high: float
    confidence: float
    """That the true median lies between `low` and `high`; 0 after a single round."""
    unit: str
    better: Literal["higher", "lower", "neither"]
    values: dict[int, float]
    """By round."""
    marks: list[str]
    """Why not to trust it as it stands (marks.py): empty is good."""


class SampleResult(_Stored):
    """One call of a case."""

    round: int
    seconds: float
    """All it took, warm-up, start and checks included."""
    conditions: dict[str, float] | None
    """Of the machine meanwhile (conditions.py); None if it was not watched."""
    histograms: dict[str, str]
    """By name, in microseconds, in the encoding of HDR histograms."""
    violations: list[str]
    notes: dict[str, Parameter]


class CaseResult(_Stored):
    """One thing at one setting."""

    key: str
    suite: str
    name: str
    parameters: dict[str, Parameter]
    throughput: bool
    skipped: str
    """Why it was not measured; empty if it was."""
    error: str
    """What made it impossible; empty if nothing did."""
    violations: list[str]
    """Broken invariants: then there are no figures."""
    figures: dict[str, FigureResult]
    samples: list[SampleResult]


class GoalResult(_Stored):
    """One line of the goal table."""

    name: str
    at_least: bool
    bound: float
    value: float | None
    """None if the run lacks a side of it."""
    low: float | None
    high: float | None
    confidence: float
    verdict: Literal["met", "missed", "not measured"]
    certain: bool
    """Whether the whole interval is on the same side of the bound."""
    bounded_by: str
    marks: list[str]


class Run(_Stored):
    """One run."""

    schema_name: Literal["rayfold-bench/1"] = Field(alias="schema", default=SCHEMA)
    suites: list[str]
    started_at: str
    finished_at: str
    complete: bool
    """Whether every case was measured in every round that was asked for."""
    rounds: int
    """Asked for."""
    options: dict[str, Any]
    machine: dict[str, Any]
    """machine.py."""
    generator: dict[str, float]
    """The load generator's ceiling against a null system, by figure: `commands_per_s`, `queries_per_s`."""
    cases: list[CaseResult]
    goals: list[GoalResult]

    @property
    def broken(self) -> list[CaseResult]:
        """The cases that failed or whose invariants did."""
        return [case for case in self.cases if case.violations or case.error]

    def case(self, key: str) -> CaseResult | None:
        """By its key."""
        return next((case for case in self.cases if case.key == key), None)

    def cases_of(self, suite: str, name: str) -> list[CaseResult]:
        """All settings of one thing that have figures."""
        return [case for case in self.cases if case.suite == suite and case.name == name and case.figures]


def save_run(run: Run, path: Path) -> None:
    """Write it whole or not at all."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(run.model_dump(mode="json", by_alias=True), indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def load_run(path: Path) -> Run:
    """Read it back. Raises `ResultsInvalid`, with the first thing that is wrong."""
    try:
        if path.stat().st_size > SIZE_MAX_BYTES:
            raise ResultsInvalid(f"{path} is larger than any results: {path.stat().st_size:,} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsInvalid(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise ResultsInvalid(f"{path} is not JSON") from None
    named = document.get("schema") if isinstance(document, dict) else None
    if named != SCHEMA:
        raise ResultsInvalid(f"{path} holds {named or 'no benchmark results'}, and this version reads {SCHEMA}")
    try:
        return Run.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultsInvalid(f"{path} is not a {SCHEMA}: {where}: {first['msg']}") from None
