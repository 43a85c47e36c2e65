"""The short form of a scenario, with a fixed seed: what the tests of this folder run."""

from __future__ import annotations

from pathlib import Path

from rayfold.benchmarks.torture.contract import Findings, perform, scenario_named
from rayfold.benchmarks.torture.runner import context_of

SEED = 20_131_101


def held(name: str, folder: Path) -> Findings:
    """Run it; everything that it is about was looked at, and nothing was broken."""
    scenario = scenario_named(name)
    assert scenario is not None
    with context_of(scenario, SEED, "short", scenario.short_s, folder) as context:
        findings = perform(scenario, context)
    assert not findings.skipped, findings.skipped
    assert findings.violations == [], "\n".join(map(str, findings.violations))
    assert set(scenario.invariants) <= findings.checks.keys()
    return findings
