"""A projection that takes long to catch up delays its own queries only: the start of an application on a cluster.

One cluster of one node; the application is a package in a folder of its own. The tests run in their order.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.cluster.test_local_cluster import left_over
from tests.support.console import Console, console

pytestmark = pytest.mark.slow

EVENTS: Final = 120

APP: Final = """
import time
from rayfold import Aggregate, Application, Command, Event, Projection, Query, Shared, answer, decide, evolve, project
from rayfold.actors.settings import Settings

class Pay(Command):
    amount: int

class Paid(Event):
    amount: int

class Till(Aggregate, placement=Shared()):
    @decide
    def pay(self, command: Pay) -> Paid:
        return Paid(amount=command.amount)

    @evolve
    def paid(self, event: Paid) -> None:
        pass

class Total(Query[int]):
    pass

class Quick(Projection):
    total: int = 0

    @project
    def paid(self, event: Paid) -> None:
        self.total += event.amount

    @answer
    def asked(self, query: Total) -> int:
        return self.total

class Slow(Quick, name="Slow", version=1):
    @project
    def paid(self, event: Paid) -> None:
        if 0:
            time.sleep(0.5)
        self.total += event.amount

shop = Application("shop", aggregates=[Till], projections=[Quick], partitions=2, settings=Settings(timeout_s=60))
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    with LocalNodes(LocalCluster(nodes=1, cpus=2), tmp_path_factory.mktemp("cluster"), remember=True) as running:
        yield running
    assert left_over(running.folder) == []


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the application's package."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "shop.py").write_text(APP)
    return folder


def change(project: Path, old: str, new: str) -> None:
    text = (project / "shop.py").read_text()
    assert old in text
    (project / "shop.py").write_text(text.replace(old, new))


def rayfold(nodes: LocalNodes, project: Path, *arguments: str, code: int = 0) -> str:
    """What the command prints, both streams together."""
    command = [sys.executable, "-m", "rayfold.actors.cli", *arguments, "--address", nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=project)
    assert done.returncode == code, done
    return " ".join((done.stdout + done.stderr).split())


def totals(shop: Console) -> list[int]:
    """What the two projections answer."""
    shop("(app := __import__('shop')) and None")
    return [shop(f"bank.ask(app.{name}, app.Total())") for name in ("Quick", "Slow")]


def test_a_projection_that_reads_for_long_does_not_hold_the_start_and_says_how_far_it_is(
    nodes: LocalNodes, project: Path
) -> None:
    rayfold(nodes, project, "deploy", "shop:shop", "--create")
    with console(nodes.address, name="shop") as shop:
        shop("(app := __import__('shop')) and None")
        for number in range(EVENTS):
            shop(f"bank.execute(app.Till, 't{number}', app.Pay(amount=1)).version")
    rayfold(nodes, project, "down", "shop")
    change(project, "if 0:", "if True:")
    change(project, "projections=[Quick]", "projections=[Quick, Slow]")
    said = rayfold(nodes, project, "deploy", "shop:shop")
    assert "projection Slow is still catching up: " in said
    assert f" of {EVENTS} events; it answers from where it is" in said
    assert "Quick is" not in said
    with console(nodes.address, name="shop") as shop:
        quick, slow = totals(shop)
        assert quick == EVENTS
        assert 0 <= slow < EVENTS
        shop("(paid := bank.execute(app.Till, 't', app.Pay(amount=1))) and None")
        assert shop("bank.ask(app.Quick, app.Total(), after=paid)") == EVENTS + 1
        states = shop("{one.projection: one.state for one in bank.status().projectors}")
        assert states == {"Quick": "live", "Slow": "replaying"}


def test_a_deployment_waits_for_it_where_that_is_wanted(nodes: LocalNodes, project: Path) -> None:
    rayfold(nodes, project, "down", "shop")
    change(project, "version=1", "version=2")
    said = rayfold(nodes, project, "deploy", "shop:shop", "--within", "3", code=1)
    assert "error: projection Slow: its read model was not ready within 3 s: " in said
    assert f" of {EVENTS + 1} events; nothing of the name shop runs" in said
    change(project, "time.sleep(0.5)", "time.sleep(0.05)")
    change(project, "version=2", "version=3")
    assert "still catching up" not in rayfold(nodes, project, "deploy", "shop:shop", "--wait")
    with console(nodes.address, name="shop") as shop:
        assert totals(shop) == [EVENTS + 1] * 2
    rayfold(nodes, project, "down", "shop")


def test_one_that_stops_at_once_is_refused_all_the_same(nodes: LocalNodes, project: Path) -> None:
    change(project, "version=3", "version=4")
    change(project, "time.sleep(0.05)", "raise ValueError('not this one')")
    said = rayfold(nodes, project, "deploy", "shop:shop", code=1)
    assert "ValueError: not this one" in said
    assert "nothing of the name shop runs" in said
