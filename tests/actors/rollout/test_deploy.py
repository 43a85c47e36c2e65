"""An application that is deployed: left running, found by its name, given new code, brought back, taken down.

One cluster of two nodes; the application is a package in a folder of its own, deployed by the command line from there,
and used from elsewhere. The tests run in their order: each goes on with what the one before has left.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.cluster.test_local_cluster import left_over
from tests.support.commands import run_each
from tests.support.console import Console, Told, console
from tests.support.driver import start_driver

pytestmark = pytest.mark.slow

DOMAIN: Final = """
import os
from pydantic import BaseModel
from rayfold import Aggregate, Command, Event, Projection, Query, Recorded, Shared, answer, decide, evolve, project
from .rules import FEE

class Pay(Command):
    amount: int

class Paid(Event):
    amount: int

class Till(Aggregate, placement=Shared()):
    total: int = 0

    @decide
    def pay(self, command: Pay) -> Paid:
        return Paid(amount=command.amount - FEE)

    @evolve
    def paid(self, event: Paid) -> None:
        self.total += event.amount

class Slip(BaseModel):
    till: str
    total: int

class SlipOf(Query[Slip]):
    till: str

class Slips(Projection, version=1):
    totals: dict[str, int] = {}

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.totals[recorded.aggregate_id] = self.totals.get(recorded.aggregate_id, 0) + event.amount

    @answer
    def slip(self, query: SlipOf) -> Slip:
        return Slip(till=query.till, total=self.totals.get(query.till, 0))
"""

APP: Final = """
from rayfold import Application
from rayfold.actors.settings import Settings
from .domain import Slips, Till
settings = Settings(silent_s=8, timeout_s=60)
shop = Application("shop", aggregates=[Till], projections=[Slips], partitions=2, settings=settings)
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    folder = tmp_path_factory.mktemp("cluster")
    with LocalNodes(LocalCluster(nodes=2, cpus=1), folder, remember=True) as running:
        yield running
    assert left_over(running.folder) == []


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the application's package."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "shop").mkdir()
    write(folder, {"__init__.py": "", "rules.py": "FEE = 1\n", "domain.py": DOMAIN, "app.py": APP})
    return folder


class Visitor:
    """A connection by name that one test after the other uses, whatever is deployed meanwhile: each takes seconds."""

    def __init__(self, nodes: LocalNodes) -> None:
        self._nodes = nodes
        self._present = contextlib.ExitStack()
        self._shop: Console | None = None

    @property
    def shop(self) -> Console:
        if self._shop is None:
            self._shop = self._present.enter_context(console(self._nodes.address, name="shop", driver=True))
        return self._shop

    def leave(self) -> None:
        """Before what it is connected to ends; the next test has another connection."""
        self._shop = None
        self._present.close()


@pytest.fixture(scope="module")
def visitor(nodes: LocalNodes) -> Iterator[Visitor]:
    here = Visitor(nodes)
    yield here
    here.leave()


def write(project: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (project / "shop" / name).write_text(content)


def change(project: Path, name: str, old: str, new: str) -> None:
    before = (project / "shop" / name).read_text()
    assert old in before
    write(project, {name: before.replace(old, new)})


def rayfold(nodes: LocalNodes, project: Path, *arguments: str, code: int = 0) -> str:
    """What the command prints, both streams together."""
    command = [sys.executable, "-m", "rayfold.actors.cli", *arguments, "--address", nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=project)
    assert done.returncode == code, done
    return " ".join((done.stdout + done.stderr).split())


def pay(shop: Console, till: str, amount: int) -> int:
    """The total on the slip, which has what was just paid on it."""
    shop("(app := __import__('shop.domain', fromlist=['x'])) and None")
    shop(f"(paid := bank.execute(app.Till, {till!r}, app.Pay(amount={amount}))) and None")
    total: int = shop(f"bank.ask(app.Slips, app.SlipOf(till={till!r}), after=paid).total")
    return total


def generation(shop: Console) -> int:
    number: int = shop("bank._runtime._active._topology.generation")
    return number


LOOKING: Final = threading.Event()
"""Waited for between two polls of what is on its way: they would take the core from it."""

SUPERVISOR: Final = (
    "__import__('ray').get(bank._runtime._active._cluster.actor_named('shop/supervisor').alive.remote()).unwrap()"
)


def asked(shop: Console, what: str) -> dict[str, Any]:
    """What the supervisor answers to a question about the deployment."""
    asking = f"bank._runtime._active.ask(lambda one: one.{what})"
    answer: dict[str, Any] = shop(f"__import__('asyncio').run_coroutine_threadsafe({asking}, bank._loop).result(60)")
    return answer


def preparing(shop: Console) -> int:
    """The generation that is being prepared; 0 while there is none."""
    return int(asked(shop, "deploying")["preparing"])


def built(nodes: LocalNodes) -> set[str]:
    """The builds of read models that any node has a folder of."""
    return {build.name for node in nodes.nodes for build in (node.data / "shop" / "projections").glob("*")}


def test_an_application_runs_on_when_its_deployer_has_ended_and_is_found_by_its_name(
    nodes: LocalNodes, project: Path
) -> None:
    refused = rayfold(nodes, project, "deploy", "shop.app:shop", code=1)
    made = "a new, empty store with 2 partitions is made on node-0, node-1"
    assert refused == (
        f"error: shop: there is no store of that name on {nodes.address}: {made} with --create;"
        " nothing of the name shop runs"
    )
    ahead = rayfold(nodes, project, "deploy", "shop.app:shop", "--dry-run")
    assert ahead == (
        f"shop on {nodes.address}; nothing was changed - {made}"
        " - projection Slips version 1 is opened or built, by one projector - 2 partitions start - which needs --create"
    )
    assert not any((node.data / "shop").exists() for node in nodes.nodes)
    said = rayfold(nodes, project, "deploy", "shop.app:shop", "--create")
    assert said.startswith(f'shop runs on {nodes.address}, generation 1 of its code; connect("shop") in a program')
    with console(nodes.address, name="shop") as shop:
        assert pay(shop, "till", 10) == 9
        asked = "type(bank.ask(app.Slips, app.SlipOf(till='till'))) is app.Slip"
        assert shop(asked), "an answer of a class of the application's is of that class"
        assert [len(one["partitions"]) for one in shop("bank.status().nodes")] == [1, 1]


def epochs_of(shop: Console) -> list[int]:
    """Once all partitions answer: the status has the last known epoch of one that is being started again."""
    partitions = shop("bank.status().partitions")
    while not all(one["alive"] for one in partitions):
        LOOKING.wait(0.05)
        partitions = shop("bank.status().partitions")
    return [one["epoch"] for one in partitions]


def test_actors_run_the_code_that_was_deployed_whatever_the_files_hold_now(visitor: Visitor, project: Path) -> None:
    change(project, "rules.py", "FEE = 1", "FEE = 3")
    for one in visitor.shop("bank.status().partitions"):
        os.kill(one["pid"], signal.SIGKILL)
    assert pay(visitor.shop, "till", 10) == 18


def test_new_code_takes_over_one_actor_after_the_other_while_all_are_answered(
    nodes: LocalNodes, visitor: Visitor, project: Path
) -> None:
    shop = visitor.shop
    epochs = epochs_of(shop)
    over, paid = threading.Event(), 0
    failures: list[BaseException] = []

    def deploy() -> None:
        try:
            assert "generation 2" in rayfold(nodes, project, "deploy", "shop.app:shop")
        except BaseException as failure:
            failures.append(failure)
        over.set()

    deploying = threading.Thread(target=deploy)
    deploying.start()
    before = pay(shop, "counter", 1000)
    totals = [before]
    while not over.is_set():
        totals.append(pay(shop, "counter", 1000))
        paid += 1
        LOOKING.wait(0.02)
    deploying.join()
    assert failures == []
    assert paid > 5
    fees = [1000 - (later - earlier) for earlier, later in zip(totals, totals[1:], strict=False)]
    assert set(fees) <= {1, 3}
    assert fees == sorted(fees), "the old rule, and then the new one"
    assert pay(shop, "till", 10) == 25
    assert epochs_of(shop) == [epoch + 1 for epoch in epochs]
    assert generation(shop) == 2


def test_a_projection_of_a_higher_version_is_built_beside_the_one_that_serves(
    nodes: LocalNodes, visitor: Visitor, project: Path
) -> None:
    change(project, "domain.py", "version=1", "version=2")
    change(project, "domain.py", "total=self.totals.get(query.till, 0)", "total=-self.totals.get(query.till, 0)")
    assert "generation 3" in rayfold(nodes, project, "deploy", "shop.app:shop")
    shop = visitor.shop
    assert pay(shop, "till", 10) == -32
    assert {one["build"] for one in shop("bank.status().projectors")} == {"v2"}


HANDLER: Final = "def paid(self, event: Paid, recorded: Recorded) -> None:\n"
BROKEN: Final = "import os\nFEE = 3 if 'RAYFOLD_DATA' not in os.environ else 1 / 0"


@pytest.mark.parametrize(
    ("name", "old", "new", "told", "options"),
    [
        ("app.py", "partitions=2", "partitions=3", "shop: the store has 2 partitions, not 3; leave the number out", ()),
        ("rules.py", "FEE = 3", BROKEN, "cannot be loaded in an actor: ZeroDivisionError: division by zero", ()),
        ("domain.py", HANDLER, f"{HANDLER}        1 / 0\n", r"failed on event 1 of partition \d .*ZeroDivision", ()),
        (
            "domain.py",
            HANDLER,
            f"{HANDLER}        os._exit(1)\n",
            "failed 8 times|the process ended twice while it was applied",
            (),
        ),
        ("domain.py", HANDLER, f"{HANDLER}        __import__('time').sleep(2)\n", "was not ready within 1 s", ("1",)),
        ("domain.py", "Slip(till=query.till, ", "Slip(till=query.till + 1, ", "SlipOf.*TypeError", ()),
    ],
    ids=["partitions", "import", "handler raises", "handler exits", "too slow", "query fails"],
)
def test_what_cannot_be_deployed_is_refused_and_what_runs_goes_on(
    nodes: LocalNodes,
    visitor: Visitor,
    project: Path,
    name: str,
    old: str,
    new: str,
    told: str,
    options: tuple[str, ...],
) -> None:
    shop = visitor.shop
    while "Slips-v1.2" in built(nodes):  # an earlier build is removed once all programs have learnt of the later one
        LOOKING.wait(0.05)
    pay(shop, "another", 10)
    seats = "[one.pid for one in (*bank.status().partitions, *bank.status().projectors)]"
    before = shop(seats), built(nodes)
    change(project, name, old, new)
    try:
        within = [word for seconds in options for word in ("--within", seconds)]
        said = rayfold(nodes, project, "deploy", "shop.app:shop", *within, code=1)
    finally:
        change(project, name, new, old)
    assert re.search(told, said), said
    assert said.endswith("; generation 3 of shop runs on")
    assert generation(shop) == 3
    assert (shop(seats), built(nodes)) == before, "the same actors, and nothing is left of the others"
    pay(shop, "another", 10)


def test_a_second_deployer_is_refused_and_a_deployment_survives_its_supervisor_and_can_be_called_off(
    nodes: LocalNodes, visitor: Visitor, project: Path
) -> None:
    slow = f"{HANDLER}        __import__('time').sleep(1)\n"
    change(project, "domain.py", HANDLER, slow)
    try:
        shop = visitor.shop
        before = built(nodes)
        command = ("-m", "rayfold.actors.cli", "deploy", "shop.app:shop", "--address", nodes.address)
        with start_driver(*command, folder=project) as deployer:
            while not preparing(shop):
                assert deployer.poll() is None, deployer.communicate()
                LOOKING.wait(0.05)
            said = rayfold(nodes, project, "deploy", "shop.app:shop", code=1)
            assert re.search(r"shop: generation \d+ is being deployed \(.*\); wait for its end", said), said
            os.kill(shop(SUPERVISOR), signal.SIGKILL)
            while not preparing(shop):
                assert deployer.poll() is None, deployer.communicate()
                LOOKING.wait(0.05)
            assert "was called off" in rayfold(nodes, project, "deploy", "shop.app:shop", "--cancel")
            said = " ".join(deployer.communicate(timeout=60)[1].split())
        assert said == "error: the deployment: it was called off; generation 3 of shop runs on"
        assert deployer.returncode == 1
        assert (generation(shop), built(nodes)) == (3, before)
        pay(shop, "another", 10)
    finally:
        change(project, "domain.py", slow, HANDLER)


def test_an_earlier_version_of_a_projection_comes_back(nodes: LocalNodes, visitor: Visitor, project: Path) -> None:
    change(project, "domain.py", "version=2", "version=1")
    change(project, "domain.py", "total=-self", "total=self")
    ahead = rayfold(nodes, project, "deploy", "shop.app:shop", "--dry-run")
    assert "projection Slips version 1 goes back before version 2 and is built beside it, by one projector" in ahead
    assert "partition 1 on node-" in ahead
    shop = visitor.shop
    total = pay(shop, "till", 10)
    rayfold(nodes, project, "deploy", "shop.app:shop")
    assert pay(shop, "till", 10) == -total + 7


MISTYPED: Final = {
    "shop.app": "'shop.app' is not a MODULE:NAME; write it as in `rayfold deploy bank.app:bank`",
    "shop.ap:shop": "there is no module 'shop.ap' here, nor where Python looks for modules",
    "shop.app:shopp": "no Application in shop.app is named 'shopp'; known: shop",
    "shop.app:Till": "shop.app:Till is a ",
}
"""The error for each argument."""


def test_a_mistyped_application_is_told_in_one_line(nodes: LocalNodes, project: Path) -> None:
    ended = run_each(*(["deploy", name, "--address", nodes.address] for name in MISTYPED), folder=project)
    assert [one.code for one in ended] == [2] * len(MISTYPED)
    for (_, said), told in zip(ended, MISTYPED.values(), strict=True):
        assert said.startswith("error: ")
        assert told in said


def test_a_runtime_of_the_same_name_is_refused(nodes: LocalNodes) -> None:
    refused = pytest.raises(Told, match="StoreInUse: shop is in use by a system of that name on the cluster")
    with refused, console(nodes.address, path=Path("/elsewhere/shop")):
        raise AssertionError("it was started")


def test_a_deployment_whose_deployer_is_killed_comes_to_its_end_and_a_later_version_is_back_with_it(
    nodes: LocalNodes, visitor: Visitor, project: Path
) -> None:
    shop = visitor.shop
    total = pay(shop, "till", 10)
    change(project, "rules.py", "FEE = 3", "FEE = 5")
    change(project, "domain.py", "version=1", "version=2")
    change(project, "domain.py", "total=self", "total=-self")
    present = generation(shop)
    command = ("-m", "rayfold.actors.cli", "deploy", "shop.app:shop", "--address", nodes.address)
    with start_driver(*command, folder=project) as deployer:
        while not preparing(shop):
            assert deployer.poll() is None, deployer.communicate()
            LOOKING.wait(0.05)
        deployer.kill()
    while generation(shop) == present:
        LOOKING.wait(0.05)
    done = asked(shop, "deployed")
    assert done["done"] == done["total"]
    assert pay(shop, "killed", 10) == -5
    assert pay(shop, "till", 10) == -total - 5


def test_a_supervisor_that_is_killed_is_there_again_and_nobody_waits_for_it(visitor: Visitor) -> None:
    shop = visitor.shop
    supervisor = shop(SUPERVISOR)
    epochs = epochs_of(shop)
    os.kill(supervisor, signal.SIGKILL)
    pay(shop, "till", 10)
    assert epochs_of(shop) == epochs, "it goes on with what there is"
    assert shop(SUPERVISOR) != supervisor


def test_when_all_nodes_were_killed_the_application_resumes_without_a_hand_on_it(
    nodes: LocalNodes, visitor: Visitor
) -> None:
    before = pay(visitor.shop, "till", 10)
    visitor.leave()
    for number in range(2):
        nodes.kill_node(number)
    nodes.start()
    shop = visitor.shop
    assert pay(shop, "till", 10) == before - 5
    pay(shop, "counter", 10)
    while not all(one["alive"] for one in shop("bank.status().partitions")):
        LOOKING.wait(0.05)  # the status waits for those that do not answer
    assert shop("bank.verify().ok")


def test_an_application_that_is_taken_down_leaves_its_data_and_can_be_deployed_again(
    nodes: LocalNodes, visitor: Visitor, project: Path
) -> None:
    shop = visitor.shop
    total = pay(shop, "till", 10)
    pids = [one["pid"] for one in [*shop("bank.status().partitions"), *shop("bank.status().projectors")]]
    visitor.leave()
    assert rayfold(nodes, project, "down", "shop").startswith("shop was taken down; its data stays")
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    where = ["shop", "--address", nodes.address]
    again, asked = run_each(["down", *where], ["status", *where], folder=project)
    assert (again.code, asked.code) == (2, 2)
    assert "no application is named 'shop'; known: none" in again.said
    assert (
        "shop: there is no store here, nor an application of that name: shop: nothing of that name runs" in asked.said
    )
    assert "shop runs on" in rayfold(nodes, project, "deploy", "shop.app:shop")
    assert pay(visitor.shop, "till", 10) == total - 5


def test_status_history_backup_and_verify_take_the_name_of_an_application(
    nodes: LocalNodes, visitor: Visitor, project: Path, tmp_path: Path
) -> None:
    said = rayfold(nodes, project, "status", "shop", "--json", str(tmp_path / "status.json"))
    assert "node-0" in said
    assert "node-1" in said
    assert (tmp_path / "status.json").exists()
    assert rayfold(nodes, project, "verify", "shop").count("good") == 2
    folded = re.sub(r"(?<=\d),(?=\d)", "", rayfold(nodes, project, "verify", "shop", "shop.app:shop"))  # 1,234 events
    assert re.search(r"folded [1-9][0-9]* streams \([1-9][0-9]* events\).*: no difference", folded)
    assert "read models: not compared, they are saved on the nodes" in folded
    first = rayfold(nodes, project, "backup", "shop", str(tmp_path / "backup"))
    assert "events added" in first
    assert rayfold(nodes, project, "backup", "shop", str(tmp_path / "backup")).startswith("0 events added")
    pay(visitor.shop, "history", 10)
    pay(visitor.shop, "history", 20)
    assert rayfold(nodes, project, "history", "shop", "Till/history").count('"event": "Paid"') == 2
    assert rayfold(nodes, project, "history", "shop", "Till/history", "--from", "2").startswith('{"version": 2,')


def test_a_restored_store_put_into_a_data_folder_is_spread_from_there(
    nodes: LocalNodes, visitor: Visitor, project: Path, tmp_path: Path
) -> None:
    rayfold(nodes, project, "backup", "shop", str(tmp_path / "backup"))
    total = pay(visitor.shop, "afterwards", 10)
    visitor.leave()
    rayfold(nodes, project, "down", "shop")
    for node in nodes.nodes:
        (node.data / "shop").rename(tmp_path / f"old-{node.name}")
    restore = [sys.executable, "-m", "rayfold.actors.cli", "restore"]
    target = str(nodes.nodes[1].data / "shop")
    subprocess.run([*restore, str(tmp_path / "backup"), target], check=True, capture_output=True, timeout=60)
    rayfold(nodes, project, "deploy", "shop.app:shop")
    shop = visitor.shop
    assert pay(shop, "afterwards", 10) == total, "what was not in the backup is not there"
    assert {one["name"]: len(one["partitions"]) for one in shop("bank.status().nodes")} == {
        "node-0": 0,
        "node-1": 2,
    }
    assert len(shop("bank.rebalance()")) == 1
    assert shop("bank.verify().ok")
