"""The suites that start clusters of their own, and a run on a cluster that is there: real nodes, tiny sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayfold.actors.local_cluster import LocalCluster, LocalNodes
from rayfold.benchmarks.harness.contract import Case, Options, Sample
from rayfold.benchmarks.harness.results import load_run
from rayfold.benchmarks.suites import clients, nodes
from rayfold.benchmarks.suites.running import stop_shared_ray

ROOT = Path(__file__).resolve().parents[3]
BOTH = "clients/both?partitions=2&readers=1&replicas=1&writers=2"
MakeOptions = Callable[..., Options]


@pytest.fixture(autouse=True)
def no_ray_is_left() -> Iterator[None]:
    yield
    stop_shared_ray()


def case_of(cases: list[Case], name: str, **parameters: int) -> Case:
    [found] = [case for case in cases if case.name == name and parameters.items() <= case.parameters.items()]
    return found


async def measured(case: Case, options: Options) -> Sample:
    sample = await case.measure(options)
    assert sample.violations == []
    assert not list(options.directory.glob("case-*")), "the case has left its folder behind"
    return sample


@pytest.mark.timeout(120)
async def test_a_plain_runtime_is_the_measure_for_those_on_nodes(options: MakeOptions) -> None:
    run = options()
    sample = await measured(case_of(nodes.cases(run), "writes and freshness", nodes=0), run)
    assert {"commands_per_s", "visible_ms_p99"} <= sample.figures.keys()


@pytest.mark.timeout(120)
async def test_partitions_move_while_commands_arrive_at_half_of_what_is_possible(options: MakeOptions) -> None:
    run = options()
    sample = await measured(case_of(nodes.cases(run), "move at half load"), run)
    assert int(sample.notes["moves"]) > 0
    assert {"quiet_ms_p99", "moving_ms_p99", "move_s", "waited_ms"} <= sample.figures.keys()


@pytest.mark.timeout(120)
async def test_a_node_is_killed_and_comes_back_and_nothing_is_lost(options: MakeOptions) -> None:
    run = options()
    sample = await measured(case_of(nodes.cases(run), "node lost and back"), run)
    assert sample.figures["unavailable_s"].value >= sample.figures["back_to_writes_s"].value > 0


@pytest.mark.timeout(150)
def test_clients_of_their_own_write_and_read_on_a_cluster_that_was_joined(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    with LocalNodes(LocalCluster(nodes=2), tmp_path / "nodes") as local:
        program = [sys.executable, "-c", "from rayfold.actors.cli import main; main()", "bench", "clients", "--quick"]
        sizes = ["--repeat", "1", "--seconds", "0.2", "--partitions", "2", "--replicas", "1", "--only", BOTH]
        where = ["--address", local.address, "--json", str(results), "--directory", str(tmp_path)]
        done = subprocess.run(
            [*program, *sizes, *where], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=140
        )
        assert done.returncode == 0, done.stdout + done.stderr
        left = [path.name for node in local.nodes for path in node.data.iterdir() if path.name.startswith("bench-")]
    assert left == []
    [case] = load_run(results).cases
    assert {"commands_per_s", "queries_per_s"} <= case.figures.keys()


def test_a_run_has_one_client_alone_and_as_many_as_there_are_partitions(options: MakeOptions) -> None:
    run = options(partitions=(1, 2, 4), replicas=(0, 1, 2), quick=False)
    found = [(case.name, *case.parameters.values()) for case in clients.cases(run)]
    assert ("writes", 4, 0, 4, 0) in found
    assert ("writes", 4, 0, 1, 0) in found
    assert ("reads", 1, 2, 0, 2) in found
    assert [one for one in found if one[0] == "both"][-1] == ("both", 2, 2, 2, 2)
