"""How the tests run a storage scenario: its short form, with a fixed seed, and a look at what it counted."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from rayfold.benchmarks.torture.contract import Context, Findings, perform, scenario_named

SEED = 4


def context_in(folder: Path, seed: int = SEED) -> Context:
    return Context(seed, random.Random(seed), folder, "short", time.monotonic() + 90)


def short_form(name: str, folder: Path, seed: int = SEED) -> Findings:
    """What the scenario finds. Nothing, or the test fails with the first of it; skipped where the machine cannot."""
    scenario = scenario_named(name)
    assert scenario is not None
    findings = perform(scenario, context_in(folder, seed))
    if findings.skipped:
        pytest.skip(findings.skipped)
    assert findings.violations == [], f"{len(findings.violations)} violations"
    assert all(findings.checks.get(invariant) for invariant in scenario.invariants)
    return findings


def figure(findings: Findings, name: str) -> int:
    value = findings.figures[name]
    assert isinstance(value, int)
    return value
