"""Programs that use an application on a cluster by way of a node of their machine: without Ray, with every verb.

One cluster of two nodes; the application is a package in a folder of its own, which the programs do not have. The tests
run in their order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.api.test_reconnecting import until
from tests.actors.cluster.test_local_cluster import left_over
from tests.actors.rollout.test_deploy import APP, DOMAIN, rayfold, write
from tests.support.console import Console, Told, console

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    with LocalNodes(LocalCluster(nodes=2, cpus=1), tmp_path_factory.mktemp("cluster"), remember=True) as running:
        yield running
    assert left_over(running.folder) == []


@pytest.fixture(scope="module")
def shop(nodes: LocalNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A program that stays connected."""
    project = tmp_path_factory.mktemp("project")
    (project / "shop").mkdir()
    write(project, {"__init__.py": "", "rules.py": "FEE = 1\n", "domain.py": DOMAIN, "app.py": APP})
    rayfold(nodes, project, "deploy", "shop.app:shop", "--create")
    with console(nodes.address, name="shop") as program:
        program("(app := __import__('shop.domain', fromlist=['x'])) and None")
        yield program


def run(program: str, *arguments: str, **environment: str) -> Any:
    """What a program prints last, as JSON. In a folder that has nothing of the application."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout.splitlines()[-1])


EVERY_VERB: Final = """
import json, sys
from rayfold import Envelope, connect_blocking
with connect_blocking("shop", address=sys.argv[1]) as shop:
    from shop.domain import Paid, Pay, SlipOf, Slips, Till
    tills = [f"t{number}" for number in range(20)]
    sent = [Envelope(Till, till, Pay(amount=11)) for till in tills]
    receipts = [receipt for _, receipt in shop.execute_all(sent)]
    session = shop.session()
    session.execute(Till, "t0", Pay(amount=6))
    again = shop.session(session.token())
    followed = iter(shop.subscribe(types=[Paid]))
    with shop.replica(Slips) as replica:
        replica.wait_for(receipts[0], 60)
        embedded = replica.ask(SlipOf(till="t0")).total
    shop.scale(Slips, replicas=2)
    scaled = len(shop.status().projectors)
    rebuild = shop.rebuild(Slips)
    rebuild.wait()
    moved = shop.move(0, shop.status().nodes[1].name)
    print(json.dumps({
        "versions": sorted({receipt.version for receipt in receipts}),
        "partitions": sorted({receipt.partition for receipt in receipts}),
        "session": again.ask(Slips, SlipOf(till="t0")).total,
        "after": shop.ask(Slips, SlipOf(till="t1"), after=receipts[1]).total,
        "asked": sum(slip.total for _, slip in shop.ask_all(Slips, [SlipOf(till=till) for till in tills])),
        "history": [event.amount for event, _ in shop.history(Till, "t0")],
        "state": shop.state_at(Till, "t0", version=1).total,
        "events": len(list(shop.events(types=[Paid]))),
        "followed": len([next(followed) for _ in range(21)]),
        "embedded": embedded >= 10,
        "heads": sum(shop.heads().values()),
        "verified": shop.verify().ok and shop.anchor() is not None,
        "scaled": scaled,
        "moved": moved.to,
        "drained": [one.to for one in shop.drain("node-1")],
        "used again": [*shop.drain("node-1", drained=False), *(one.to for one in shop.rebalance())],
        "healthy": shop.health().ok,
        "imported": sorted({"ray", "lmdb"} & set(sys.modules)),
    }))
"""


def test_a_program_without_ray_has_every_verb(nodes: LocalNodes, shop: Console) -> None:
    assert run(EVERY_VERB, nodes.address) == {
        "versions": [1],
        "partitions": [0, 1],
        "session": 15,
        "after": 10,
        "asked": 205,
        "history": [10, 5],
        "state": 10,
        "events": 21,
        "followed": 21,
        "embedded": True,
        "heads": 21,
        "verified": True,
        "scaled": 2,
        "moved": "node-1",
        "drained": ["node-0", "node-0"],
        "used again": ["node-1"],
        "healthy": True,
        "imported": [],
    }


REFUSED: Final = """
import json, sys
from rayfold import Unavailable, connect_blocking
try:
    connect_blocking("shop", address=sys.argv[1]).start()
except Unavailable as error:
    print(json.dumps([str(error), "ray" in sys.modules]))
"""


def test_the_command_line_takes_the_name_of_an_application_without_ray(
    nodes: LocalNodes, shop: Console, tmp_path: Path
) -> None:
    assert "Slips" in rayfold(nodes, tmp_path, "status", "shop")
    assert "Paid" in rayfold(nodes, tmp_path, "history", "shop", "Till/t0")
    assert "21 events" in rayfold(nodes, tmp_path, "backup", "shop", str(tmp_path / "kept"))


def test_a_program_without_the_token_of_the_cluster_is_refused(nodes: LocalNodes, shop: Console) -> None:
    told, imported = run(REFUSED, nodes.address, RAY_AUTH_TOKEN="f" * 64)
    assert "the cluster has a token, and this program has none or another one" in told
    assert not imported


DRIVER: Final = """
import json, sys
from rayfold.actors.cluster.ray_cluster import Cluster
cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=sys.argv[1])
import ray

def paid(address):
    from rayfold import connect_blocking
    with connect_blocking("shop", address=address) as shop:
        from shop.domain import Pay, Till
        return type(shop._runtime._running).__name__, shop.execute(Till, "driver", Pay(amount=2)).version

@ray.remote(num_cpus=0)
class Within:
    def pay(self, address):
        return paid(address)

print(json.dumps([paid(sys.argv[1]), ray.get(Within.remote().pay.remote(sys.argv[1]))]))
cluster.stop()
"""


def test_a_program_that_is_connected_to_ray_is_a_driver_as_before_also_inside_an_actor(
    nodes: LocalNodes, shop: Console
) -> None:
    assert run(DRIVER, nodes.address) == [["FoundSystem", 1], ["FoundSystem", 2]]


def paid(shop: Console, till: str) -> str:
    """The error; empty if it is paid."""
    try:
        shop(f"bank.execute(app.Till, {till!r}, app.Pay(amount=2), timeout_s=10) and None")
    except Told as told:
        return told.text
    return ""


def test_when_an_agent_ends_its_programs_go_on_at_another_one(nodes: LocalNodes, shop: Console) -> None:
    before = shop("bank._runtime._running._holder.pid")
    os.kill(before, signal.SIGKILL)
    assert shop("len(bank.heads())") == 2
    assert [paid(shop, f"t{number}") for number in range(8)] == [""] * 8
    assert shop("bank._runtime._running._holder.pid") != before
    until(lambda: shop("bank.health().ok"))


def test_without_the_head_a_program_goes_on_but_for_what_has_gone_and_a_new_one_comes_in(
    nodes: LocalNodes, shop: Console
) -> None:
    placed = {n: shop(f"bank.execute(app.Till, 't{n}', app.Pay(amount=2)).partition") for n in range(8)}
    homes = shop("{one.partition: one.node for one in bank.status().partitions}")
    lost = next(f"t{number}" for number, partition in placed.items() if homes[str(partition)] == "node-0")
    left = next(f"t{number}" for number, partition in placed.items() if homes[str(partition)] == "node-1")
    nodes.kill_node(0)
    assert paid(shop, left) == ""
    assert paid(shop, lost) != ""
    health = shop("bank.health(timeout_s=5)")
    assert (health["ok"], health["connected"]) == (False, True)
    with console(nodes.address, name="shop") as other:
        other("(app := __import__('shop.domain', fromlist=['x'])) and None")
        assert paid(other, left) == ""
        assert other("'ray' in __import__('sys').modules") is False
    nodes.start_node(0)
    until(lambda: shop("bank.health().ok"))
    assert (paid(shop, left), paid(shop, lost)) == ("", "")
    assert shop("'ray' in __import__('sys').modules") is False
