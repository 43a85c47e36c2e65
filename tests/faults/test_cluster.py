"""Clusters of several nodes, of real processes: what is killed comes back by itself, and nothing is lost or doubled.

Each test starts a cluster of its own with a deployed application, programs with load on every node, and ends by reading
the logs where they lie.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.benchmarks.torture.cluster.checking import Fault, longest_gap_s, note_gaps
from rayfold.benchmarks.torture.contract import Figure, Findings
from rayfold.benchmarks.torture.history import History
from tests.faults.short_form import held

pytestmark = pytest.mark.timeout(600)
"""Three nodes and twelve actors start in 12 s on two quiet cores, and in a minute where everything starts at once."""


def figures_of(name: str, folder: Path) -> dict[str, Figure]:
    """The short form, and what holds for all of them."""
    figures = held(name, folder).figures
    assert (figures["lost"], figures["twice"], figures["processes_left"]) == (0, 0, 0)
    return figures


@pytest.mark.slow
def test_single_processes_killed_are_there_again_and_only_their_own_work_waited(tmp_path: Path) -> None:
    figures = figures_of("kill-cluster-parts", tmp_path)
    for kind in ("SupervisorActor", "NodeAgent", "PartitionActor", "ProjectorActor"):
        assert figures[f"killed {kind}"] == 1


# What the figures mean


def test_a_gap_lasts_from_the_last_acknowledgement_before_a_fault_to_the_first_one_after_it() -> None:
    assert longest_gap_s([1.0, 2.0, 2.9, 7.0, 7.5], 3.0, float("inf")) == pytest.approx(4.1)


def test_a_gap_ends_with_the_next_fault_and_is_no_longer_for_what_comes_after() -> None:
    assert longest_gap_s([1.0, 2.0, 3.0, 20.0], 1.5, 3.5) == 1.0


def test_without_faults_nobody_has_waited() -> None:
    findings = Findings()
    note_gaps([], History(), findings)
    assert (findings.figures["unavailable_s_max"], findings.figures["others_gap_s_max"]) == (0, 0)
    note_gaps([Fault(1.0, frozenset({0}))], History(), findings)
    assert findings.figures["unavailable_s_max"] == 0
