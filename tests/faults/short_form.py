"""The short form of a scenario, with a fixed seed, and a check of what it counted. The tests of this folder run it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from rayfold.benchmarks.torture.contract import Context, Findings, perform, scenario_named
from rayfold.benchmarks.torture.runner import context_of

SEED = 4
"""Of storage scenarios."""

SEED_OF_SYSTEMS = 20_131_101


def context_in(folder: Path, seed: int = SEED) -> Context:
    return Context(seed, random.Random(seed), folder, "short", time.monotonic() + 90)


def found(name: str, context: Context) -> Findings:
    """Run it; all that it is about was checked, and nothing was broken. Skipped where the machine cannot."""
    scenario = scenario_named(name)
    assert scenario is not None
    findings = perform(scenario, context)
    if findings.skipped:
        pytest.skip(findings.skipped)
    assert findings.violations == [], "\n".join(map(str, findings.violations))
    assert set(scenario.invariants) <= findings.checks.keys()
    return findings


def short_form(name: str, folder: Path, seed: int = SEED) -> Findings:
    """Of a storage scenario."""
    return found(name, context_in(folder, seed))


def held(name: str, folder: Path) -> Findings:
    """Of a scenario with a system, as `rayfold torture` runs it; it is skipped nowhere."""
    scenario = scenario_named(name)
    assert scenario is not None
    assert not scenario.needs
    with context_of(scenario, SEED_OF_SYSTEMS, "short", scenario.short_s, folder) as context:
        return found(name, context)


def figure(findings: Findings, name: str) -> int:
    value = findings.figures[name]
    assert isinstance(value, int)
    return value
