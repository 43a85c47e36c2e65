"""The suites that start clusters of their own, and a run on a cluster that is there: real nodes, tiny sizes.

Each runs as a program of its own, as it does for a user: this process may be connected to the Ray that tests share, and
nothing is connected to two.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.benchmarks.harness.contract import Options
from rayfold.benchmarks.harness.results import CaseResult, load_run
from rayfold.benchmarks.suites import clients

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
BOTH = "clients/both?partitions=2&readers=1&replicas=1&writers=2"
MakeOptions = Callable[..., Options]


def measured(case: str, folder: Path, *arguments: str) -> CaseResult:
    """One round of one case of the command line, with its figures; nothing is left in its folder."""
    results, run = folder / "results.json", folder / "run"
    run.mkdir()
    program = [sys.executable, "-m", "rayfold.actors.cli", "bench", case.partition("/")[0]]
    sizes = ["--quick", "--repeat", "1", "--seconds", "0.2", "--only", case]
    done = subprocess.run(
        [*program, *sizes, *arguments, "--json", str(results), "--directory", str(run)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "never retrieved" not in done.stderr, done.stderr
    assert list(run.iterdir()) == []
    [found] = [one for one in load_run(results).cases if one.key == case]
    assert (found.violations, found.error) == ([], "")
    return found


def test_a_plain_runtime_is_the_measure_for_those_on_nodes(tmp_path: Path) -> None:
    case = measured("nodes/writes and freshness?nodes=0", tmp_path)
    assert {"commands_per_s", "visible_ms_p99"} <= case.figures.keys()


def test_partitions_move_while_commands_arrive_at_half_of_what_is_possible(tmp_path: Path) -> None:
    case = measured("nodes/move at half load?nodes=3", tmp_path)
    [sample] = case.samples
    assert int(sample.notes["moves"]) > 0
    assert {"quiet_ms_p99", "moving_ms_p99", "move_s", "waited_ms"} <= case.figures.keys()


def test_a_node_is_killed_and_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    figures = measured("nodes/node lost and back?nodes=3", tmp_path).figures
    assert figures["unavailable_s"].value >= figures["back_to_writes_s"].value > 0


def test_clients_of_their_own_write_and_read_on_a_cluster_that_was_joined(tmp_path: Path) -> None:
    with LocalNodes(LocalCluster(nodes=2), tmp_path / "nodes") as local:
        where = ["--partitions", "2", "--replicas", "1", "--address", local.address]
        figures = measured(BOTH, tmp_path, *where).figures
        left = [path.name for node in local.nodes for path in node.data.iterdir() if path.name.startswith("bench-")]
    assert left == []
    assert {"commands_per_s", "queries_per_s"} <= figures.keys()


def test_a_run_has_one_client_alone_and_as_many_as_there_are_partitions(options: MakeOptions) -> None:
    run = options(partitions=(1, 2, 4), replicas=(0, 1, 2), quick=False)
    found = [(case.name, *case.parameters.values()) for case in clients.cases(run)]
    assert ("writes", 4, 0, 4, 0) in found
    assert ("writes", 4, 0, 1, 0) in found
    assert ("reads", 1, 2, 0, 2) in found
    assert [one for one in found if one[0] == "both"][-1] == ("both", 2, 2, 2, 2)
