"""Programs that are connected to an application, while the head of its cluster is lost and comes back.

One cluster of two nodes, and two programs as the workers of a web service are, which are drivers of Ray: attached to
the head's node, like each driver on its machine. The tests run in their order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from rayfold.actors.cluster.environment import node_environment
from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.cluster.test_local_cluster import left_over
from tests.actors.rollout.test_deploy import APP, DOMAIN, rayfold, write
from tests.support.console import Console, Told, console
from tests.support.driver import start_driver

PATIENCE_S: Final = 90.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    with LocalNodes(LocalCluster(nodes=2, cpus=1), tmp_path_factory.mktemp("cluster"), remember=True) as running:
        yield running
    assert left_over(running.folder) == []


@pytest.fixture(scope="module")
def workers(nodes: LocalNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Console]]:
    project = tmp_path_factory.mktemp("project")
    (project / "shop").mkdir()
    write(project, {"__init__.py": "", "rules.py": "FEE = 1\n", "domain.py": DOMAIN, "app.py": APP})
    rayfold(nodes, project, "deploy", "shop.app:shop", "--create")
    with (
        console(nodes.address, name="shop", driver=True) as one,
        console(nodes.address, name="shop", driver=True) as other,
    ):
        for worker in (one, other):
            worker("(app := __import__('shop.domain', fromlist=['x'])) and None")
        yield [one, other]


def until(true: Callable[[], Any]) -> Any:
    """What it returns, once that is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := true()):
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.1)
    return value


def pay(worker: Console, till: str, amount: int) -> dict[str, Any]:
    """The receipt."""
    expression = f"bank.execute(app.Till, {till!r}, app.Pay(amount={amount}), timeout_s=10)"
    worker(f"(paid := {expression}) and None")
    receipt: dict[str, Any] = worker("{'partition': paid.partition, 'position': paid.position}")
    return receipt


def told_by(worker: Console, expression: str) -> str:
    """The error that it raises; empty if it raises none."""
    try:
        worker(f"{expression} and None")
    except Told as told:
        return f"{told.kind} {told.text}"
    return ""


def is_paid(worker: Console, till: str) -> bool:
    return not told_by(worker, f"bank.execute(app.Till, {till!r}, app.Pay(amount=2), timeout_s=5)")


def tills(worker: Console) -> list[str]:
    """One of each partition."""
    known = "bank._runtime._store.partition_of(rayfold_stream('Till', f't{n}'))"
    found = worker(
        "(rayfold_stream := __import__('rayfold.runtime.log.format', fromlist=['x']).stream_id) and "
        f"{{{known}: f't{{n}}' for n in range(50)}}"
    )
    return [found[number] for number in sorted(found)]


def test_everything_serves_and_says_so(workers: list[Console]) -> None:
    for worker in workers:
        health = until(lambda worker=worker: (told := worker("bank.health()")) and told["ok"] and told)  # type: ignore[misc]
        assert health == {
            "ok": True,
            "connected": True,
            "partitions": {"0": "", "1": ""},
            "projections": {"Slips": ""},
            "why": "",
        }


def test_a_program_that_loses_the_head_says_so_at_once_and_goes_on_by_itself_when_it_is_back(
    nodes: LocalNodes, workers: list[Console]
) -> None:
    first, second = tills(workers[0])
    for worker in workers:
        worker("(follower := Follower(bank)) and None")
    before = pay(workers[0], first, 11)
    for worker in workers:
        worker(f"follower.wait_for({before['partition']}, {before['position']})")

    nodes.kill_node(0)
    for worker in workers:
        health = until(lambda worker=worker: not (told := worker("bank.health()"))["connected"] and told)  # type: ignore[misc]
        assert not health["ok"]
        assert health["why"].startswith("the node that this program was attached to has ended at ")
        assert all(health["partitions"].values())
        assert all(health["projections"].values())
        for till in (first, second):
            refused = told_by(worker, f"bank.execute(app.Till, {till!r}, app.Pay(amount=2))")
            assert refused.startswith(f"Unavailable Till/{till}: it was not sent: ")
            assert "the node that this program was attached to has ended at " in refused
        asked = told_by(worker, "bank.ask(app.Slips, app.SlipOf(till='t'))")
        assert asked.startswith("Unavailable Slips: it was not asked: the node that this program was attached to has")
        for call in ("bank.caught_up()", "bank.status()", "bank.heads()"):
            assert told_by(worker, call).startswith("Unavailable shop: the node that this program was attached to has")

    nodes.start_node(0)
    for worker in workers:
        for till in (first, second):
            until(lambda worker=worker, till=till: is_paid(worker, till))  # type: ignore[misc]
        health = until(lambda worker=worker: (told := worker("bank.health()"))["ok"] and told)  # type: ignore[misc]
        assert health["connected"]
    after = [pay(workers[0], till, 3) for till in (first, second)]
    for worker in workers:
        assert not told_by(worker, "bank.caught_up(timeout_s=20)")
        assert worker(f"bank.ask(app.Slips, app.SlipOf(till={first!r}), timeout_s=10).total") >= 10 + 2
        for one in after:
            worker(f"follower.wait_for({one['partition']}, {one['position']})")
        seen, errors = worker("follower.seen"), worker("follower.errors")
        assert errors == []
        for partition in (0, 1):
            positions = [position for where, position in seen if where == partition]
            assert positions == list(range(positions[0], positions[0] + len(positions)))
        assert worker.process.poll() is None


def test_a_command_on_its_way_and_one_source_of_many_outlive_the_loss(
    nodes: LocalNodes, workers: list[Console]
) -> None:
    worker = workers[0]
    first, second = tills(worker)
    before = worker(f"bank.ask(app.Slips, app.SlipOf(till={second!r})).total")
    worker("(load := __import__('tests.actors.api.test_reconnecting', fromlist=['x']).Paying(bank, app)) and None")
    worker(f"load.start({[first, second]!r})")
    worker("load.wait_for_more()")
    nodes.restart_node(0)
    worker("load.wait_for_more()")
    acknowledged, unknown = worker("load.stop()")
    worker("bank.caught_up(timeout_s=30)")
    total = worker(f"bank.ask(app.Slips, app.SlipOf(till={second!r}), timeout_s=10).total") - before
    assert acknowledged[1] <= total <= acknowledged[1] + unknown[1]


class Paying:
    """Payments of 2, of which 1 arrives, each sent until its deadline of 60 s: in the program."""

    def __init__(self, bank: Any, app: Any) -> None:
        self._bank, self._app = bank, app
        self._over = threading.Event()
        self._acknowledged: dict[str, int] = {}
        self._unknown: dict[str, int] = {}
        self._threads: list[threading.Thread] = []

    def start(self, tills: list[str]) -> None:
        for till in tills:
            self._acknowledged[till] = self._unknown[till] = 0
            self._threads.append(threading.Thread(target=self._pay, args=(till,), daemon=True))
            self._threads[-1].start()

    def wait_for_more(self) -> None:
        before, deadline_s = dict(self._acknowledged), time.monotonic() + PATIENCE_S
        while any(self._acknowledged[till] == before[till] for till in before):
            assert time.monotonic() < deadline_s, (before, self._acknowledged)
            self._over.wait(0.05)

    def stop(self) -> tuple[list[int], list[int]]:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return list(self._acknowledged.values()), list(self._unknown.values())

    def _pay(self, till: str) -> None:
        while not self._over.is_set():
            try:
                self._bank.execute(self._app.Till, till, self._app.Pay(amount=2), timeout_s=60)
                self._acknowledged[till] += 1
            except TimeoutError as error:
                self._unknown[till] += "it was not sent" not in str(error)
                self._over.wait(0.1)


STILL_THERE: Final = """
import sys, threading
from rayfold.actors.cluster.ray_cluster import Cluster
cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=sys.argv[1])
import ray
calls = 0
def call():
    global calls
    while True:
        calls += 1
        try:
            ray.get_actor("missing", "rayfold").anything.remote()
        except Exception:
            pass
threading.Thread(target=call, daemon=True).start()
threading.Event().wait(0.5)
cluster.leave_lost()
before = calls
threading.Event().wait(0.5)
print("still there", calls > before, ray.is_initialized(), flush=True)
__import__("os")._exit(0)  # the thread calls on
"""


def test_a_thread_that_calls_ray_while_it_is_taken_down_does_not_end_the_program(nodes: LocalNodes) -> None:
    program = start_driver("-c", STILL_THERE, nodes.address)
    out, told = program.communicate(timeout=60)
    assert out == "still there True False\n", told


def test_what_keeps_ray_from_ending_a_program_is_not_handed_on_to_nodes(tmp_path: Path) -> None:
    name = "RAY_gcs_rpc_server_reconnect_timeout_s"
    program = start_driver(
        "-c",
        "import os; from rayfold.actors.cluster.environment import prepare_environment; prepare_environment();"
        f" print(os.environ[{name!r}])",
    )
    value = program.communicate(timeout=60)[0].strip()
    assert int(value) > 24 * 3600
    assert name not in node_environment({name: value}, tmp_path, head=False, loopback=True)
    assert node_environment({name: "600"}, tmp_path, head=False, loopback=True)[name] == "600"


IN_PROCESSES = """
import os, pathlib, sys, tempfile
from rayfold import BlockingRuntime
from tests.bank import Account

def has(process):
    return b"RAY_gcs_rpc_server_reconnect_timeout_s" in (process / "environ").read_bytes()

with tempfile.TemporaryDirectory() as folder, BlockingRuntime(folder, aggregates=[Account], num_cpus=2):
    parents = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[process] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    ours = [process for process, parent in parents.items() if parent == os.getpid()]
    raylets = [process for process in ours if b"raylet/raylet" in (process / "cmdline").read_bytes()]
    below, above = [], raylets
    while above := [process for process, parent in parents.items() if parent in [int(one.name) for one in above]]:
        below += above
    print(len(raylets), len(below) > 2, any(map(has, raylets + below)), has(pathlib.Path("/proc/self")) or
          "RAY_gcs_rpc_server_reconnect_timeout_s" in os.environ)
"""


def test_ray_may_end_its_own_processes_after_a_program_that_was_killed() -> None:
    """They wait for what they have lost as long as Ray is set to, and not as long as a program that is connected."""
    program = start_driver("-c", IN_PROCESSES)
    out, told = program.communicate(timeout=100)
    assert out == "1 True False True\n", told
