"""The runner of `rayfold torture`: scenario after scenario, the time shared out, everything kept that was found.

Rules kept here: the same seed and scenario give the same faults, whichever other scenarios run; Ctrl-C ends the
scenario that runs, cleanly, and what was found until then is told; a scenario that fails by its own bug is told as
such and the others are run all the same, but the run has failed.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from .contract import INVARIANTS, Context, Findings, Invariant, Scale, Scenario, perform

__all__ = ["Outcome", "Run", "Spectator", "context_of", "perform_all", "report", "write_report"]

VERSION: Final = 1
"""Of the JSON report."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scenario that was run."""

    scenario: Scenario
    findings: Findings
    seconds: float
    error: str = ""
    """The trace of a bug of the scenario's own, or that it was interrupted; empty if it came to its end."""

    @property
    def verdict(self) -> str:
        """One word: `held`, `BROKEN`, `skipped`, or `FAILED` for a bug of the scenario's own."""
        if self.findings.violations:
            return "BROKEN"
        if self.error:
            return "stopped" if self.error == "interrupted" else "FAILED"
        return "skipped" if self.findings.skipped else "held"


@dataclass(slots=True)
class Run:
    """What came of a run."""

    seed: int
    scale: Scale
    outcomes: list[Outcome] = field(default_factory=list)
    interrupted: bool = False

    @property
    def violations(self) -> int:
        """Of all scenarios, those that are not listed too."""
        return sum(len(one.findings.violations) + one.findings.unlisted for one in self.outcomes)

    @property
    def failed(self) -> bool:
        """Whether anything is wrong: an invariant, or a scenario."""
        return any(one.verdict in ("BROKEN", "FAILED") for one in self.outcomes)


class Spectator(Protocol):
    """Who looks on while a run goes on."""

    def begun(self, scenario: Scenario, seconds: float) -> None:
        """A scenario begins; about how long it will take."""

    def ended(self, outcome: Outcome) -> None:
        """A scenario has ended, or was interrupted."""


@contextlib.contextmanager
def context_of(
    scenario: Scenario, seed: int, scale: Scale, seconds: float, directory: Path | None
) -> Iterator[Context]:
    """What a scenario is given: numbers from the run's seed and its own name, and a folder that is removed again."""
    own_seed = zlib.crc32(f"{seed}/{scenario.name}".encode())
    folder = Path(tempfile.mkdtemp(prefix=f"rayfold-torture-{scenario.name}-", dir=directory))
    try:
        yield Context(own_seed, random.Random(own_seed), folder, scale, time.monotonic() + seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def perform_all(
    scenarios: Sequence[Scenario], seed: int, minutes: float, spectator: Spectator, directory: Path | None = None
) -> Run:
    """Run them one after the other. With `minutes` of 0 each in its short form; else the long forms share the time
    that is left, each by its weight, and each at least so long as is worth its while."""
    run = Run(seed, "long" if minutes else "short")
    end_s = time.monotonic() + minutes * 60
    for number, scenario in enumerate(scenarios):
        seconds = _share_s(scenarios[number:], end_s - time.monotonic()) if minutes else scenario.short_s
        spectator.begun(scenario, seconds)
        outcome = _performed(scenario, run, seconds, directory)
        run.outcomes.append(outcome)
        spectator.ended(outcome)
        if outcome.error == "interrupted":
            run.interrupted = True
            break
    return run


def _share_s(left: Sequence[Scenario], left_s: float) -> float:
    """Of the first of those that are left. Where time is too short for all long forms, every one is cut alike."""
    least_s = sum(one.long_s for one in left)
    if left_s <= least_s:
        return max(1.0, left_s * left[0].long_s / least_s)
    return left[0].long_s + (left_s - least_s) * left[0].weight / sum(one.weight for one in left)


def _performed(scenario: Scenario, run: Run, seconds: float, directory: Path | None) -> Outcome:
    began_s, findings, error = time.monotonic(), Findings(), ""
    try:
        with context_of(scenario, run.seed, run.scale, seconds, directory) as context:
            findings = perform(scenario, context)
    except KeyboardInterrupt:
        error = "interrupted"
    except Exception:
        error = traceback.format_exc()
    return Outcome(scenario, findings, time.monotonic() - began_s, error)


def report(run: Run) -> dict[str, Any]:
    """The run as JSON: every scenario with its figures, how often each invariant was looked at, and what broke it."""
    checks: dict[Invariant, int] = dict.fromkeys(INVARIANTS, 0)
    for outcome in run.outcomes:
        for invariant, times in outcome.findings.checks.items():
            checks[invariant] += times
    return {
        "version": VERSION,
        "seed": run.seed,
        "scale": run.scale,
        "interrupted": run.interrupted,
        "violations": run.violations,
        "invariants": {name: {"means": INVARIANTS[name], "checks": times} for name, times in checks.items()},
        "scenarios": [_scenario_report(outcome) for outcome in run.outcomes],
    }


def _scenario_report(outcome: Outcome) -> dict[str, Any]:
    findings = outcome.findings
    return {
        "name": outcome.scenario.name,
        "title": outcome.scenario.title,
        "verdict": outcome.verdict,
        "seconds": round(outcome.seconds, 1),
        "figures": findings.figures,
        "checks": findings.checks,
        "broken": findings.broken,
        "violations": [one._asdict() for one in findings.violations],
        "unlisted": findings.unlisted,
        "skipped": findings.skipped,
        "error": outcome.error,
    }


def write_report(run: Run, file: Path) -> None:
    """The report, into a file."""
    file.write_text(json.dumps(report(run), indent=2) + "\n")
