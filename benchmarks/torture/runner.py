"""The runner of `rayfold torture`: scenario after scenario, the time shared out, everything kept that was found.

Rules kept here: the same seed and scenario give the same faults, whichever other scenarios run; Ctrl-C ends the
scenario that runs, cleanly, and what was found until then is shown; a scenario that fails by its own bug is named
as such and the others are run all the same, but the run has failed.

Time: a run of N minutes begins with nothing that it has no time for, and names what it leaves out; so it is over at
most one step of a scenario late. And every scenario ends: one that does not end by itself is ended as Ctrl-C would.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from .contract import INVARIANTS, Context, Findings, Invariant, NotReached, Scale, Scenario, perform

VERSION: Final = 1
"""Of the JSON report."""

LATE_FACTOR: Final = 4
"""How many times longer than planned a scenario may take before it is ended: a machine may have other work."""

LATE_S: Final = 180.0
"""And that much besides: what waits here for something that does not come gives up by itself after 60 to 180 s."""

_AGAIN_S: Final = 15.0
"""How long a scenario that was interrupted has to end what it had started, before it is interrupted again."""

_SHORT_SHARE: Final = 0.05
"""Of a run: what takes no more is left out by none, as long as they fit in together."""

_NO_TIME: Final = "no time for it: it takes about {:.0f} s. `--scenario {}` runs it alone, another seed chooses others"


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
    prefix = f"rayfold-torture-{scenario.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=directory, ignore_cleanup_errors=True) as folder:
        yield Context(own_seed, random.Random(own_seed), Path(folder), scale, time.monotonic() + seconds)


def perform_all(
    scenarios: Sequence[Scenario], seed: int, minutes: float, spectator: Spectator, directory: Path | None = None
) -> Run:
    """Run them one after the other. With `minutes` of 0 each in its short form; else the long forms share the time that
    is left, and those that there is no time for are skipped."""
    run = Run(seed, "long" if minutes else "short")
    end_s = time.monotonic() + minutes * 60
    chosen = fitting(scenarios, minutes * 60, seed) if minutes else list(scenarios)
    for number, scenario in enumerate(chosen):
        seconds = scenario.short_s
        if minutes:
            left_s = end_s - time.monotonic()
            if number and left_s < scenario.short_s:
                _skip(scenario, run, spectator)
                continue
            seconds = shares_s(chosen[number:], left_s)[0]
        spectator.begun(scenario, seconds)
        outcome = _performed(scenario, run, seconds, directory)
        run.outcomes.append(outcome)
        spectator.ended(outcome)
        if outcome.error == "interrupted":
            run.interrupted = True
            return run
    for scenario in scenarios:
        if scenario not in chosen:
            _skip(scenario, run, spectator)
    return run


def _skip(scenario: Scenario, run: Run, spectator: Spectator) -> None:
    without = Findings(skipped=_NO_TIME.format(scenario.short_s, scenario.name))
    run.outcomes.append(Outcome(scenario, without, 0.0))
    spectator.ended(run.outcomes[-1])


def fitting(scenarios: Sequence[Scenario], seconds: float, seed: int) -> list[Scenario]:
    """Those that a run of this length has time for, all if it is long enough, one at least. First come those that take
    a twentieth of it at most, as they are listed; the others in an order that is drawn from the seed, so that each has
    its turn though all of them take longer than it was thought."""
    short = [one for one in scenarios if one.short_s <= seconds * _SHORT_SHARE]
    long = [one for one in scenarios if one not in short]
    drawn = random.Random(seed)
    drawn.shuffle(long)
    if sum(one.short_s for one in short) > seconds:
        drawn.shuffle(short)
    chosen: list[Scenario] = []
    for scenario in [*short, *long]:
        if not chosen or scenario.short_s <= seconds:
            chosen.append(scenario)
            seconds -= scenario.short_s
    return chosen


def shares_s(left: Sequence[Scenario], left_s: float) -> list[float]:
    """How long each of those that are left has: its shortest time; if there is more, the time that makes its long form
    worth its while, or the same part of it for all; and of what is left then a share by its weight."""
    least, worth = (sum(times) for times in zip(*((one.short_s, _worth_s(one)) for one in left), strict=True))
    part = min(1.0, max(0.0, (left_s - least) / (worth - least))) if worth > least else 1.0
    rest_s = max(0.0, left_s - worth)
    weights = sum(one.weight for one in left) or 1.0
    return [one.short_s + part * (_worth_s(one) - one.short_s) + rest_s * one.weight / weights for one in left]


def _worth_s(scenario: Scenario) -> float:
    return max(scenario.short_s, scenario.long_s)


def _performed(scenario: Scenario, run: Run, seconds: float, directory: Path | None) -> Outcome:
    began_s, findings, error = time.monotonic(), Findings(), ""
    limit_s = (
        LATE_FACTOR * seconds + LATE_S if run.scale == "short" else seconds + LATE_FACTOR * scenario.short_s + LATE_S
    )
    too_late = threading.Event()
    try:
        with context_of(scenario, run.seed, run.scale, seconds, directory) as context, ended_after(limit_s, too_late):
            findings = perform(scenario, context)
    except KeyboardInterrupt:
        error = f"it did not come to its end within {limit_s:.0f} s" if too_late.is_set() else "interrupted"
    except NotReached as reason:
        findings, error = reason.findings, str(reason)
    except Exception:
        error = traceback.format_exc()
        if too_late.is_set():
            error = f"it did not come to its end within {limit_s:.0f} s; and then:\n{error}"
    return Outcome(scenario, findings, time.monotonic() - began_s, error)


@contextlib.contextmanager
def ended_after(limit_s: float, too_late: threading.Event) -> Iterator[None]:
    """End the block after so long as Ctrl-C would, and again if it does not end; `too_late` is set if this did.
    Of the main thread only: no other one gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        wait_s = limit_s
        while not over.wait(wait_s):
            too_late.set()
            os.kill(os.getpid(), signal.SIGINT)
            wait_s = _AGAIN_S

    watching = threading.Thread(target=watch, name="torture-deadline", daemon=True)
    watching.start()
    try:
        yield
    finally:
        try:
            over.set()
        finally:  # the signal may come just here, once
            over.set()
            watching.join()


def report(run: Run) -> dict[str, Any]:
    """The run as JSON: every scenario with its figures, how often each invariant was checked, and what broke it."""
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
