"""The demo over the nodes of a cluster: one of them killed in the middle and started again, and visitors meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayfold import Unavailable, given, on
from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.actors.cluster.ray_cluster import NodeFacts
from rayfold.actors.observe.status import NodeStatus, OwnActorStatus, PartitionStatus, Status
from rayfold.benchmarks.flights.demo import DemoOptions, run_demo
from rayfold.benchmarks.flights.domain import Publish, Published, Timetable
from rayfold.benchmarks.flights.outage import Killer
from rayfold.benchmarks.flights.progress_watchdog import Loss, ProgressWatchdog
from rayfold.benchmarks.flights.quiet_ray import hidden_lines_about_the_lost
from rayfold.benchmarks.flights.screen import Screen
from rayfold.benchmarks.flights.visitors import GuestBook, Guests, GuestsOf, Sign, Signed
from rayfold.runtime.log.format import stream_id
from rayfold.runtime.store.store import read_manifest

ROOT = Path(__file__).parents[2]
FLIGHTS = 5_000
"""Enough to last until a node is killed as soon as the sending has begun."""

AIRPORTS = ("EWR", "JFK", "LGA", "ATL", "BOS", "DEN", "DFW", "LAX", "MCO", "MIA", "ORD", "PHL", "SEA", "SFO")
"""Enough that each partition has one, however a new store places them."""


def program(module: str, *arguments: str) -> subprocess.Popen[str]:
    """A program of the package, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"rayfold.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def visitor(name: str, airport: str, address: str) -> subprocess.Popen[str]:
    return program("benchmarks.flights.visitor", name, "--airport", airport, "--address", address)


@contextlib.contextmanager
def demo(address: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    with program("actors.cli", "demo", "--cluster", address, *options) as running:
        try:
            yield running
        finally:
            running.kill()  # if it has not ended


def line_with(part: str, running: subprocess.Popen[str]) -> str:
    """The next line that has this in it; fails if there is none to the end."""
    assert running.stdout is not None
    shown = []
    for line in running.stdout:
        shown.append(line)
        if part in line:
            return line
    raise AssertionError("".join(shown))


def ended(running: subprocess.Popen[str], code: int) -> str:
    """What it has printed since, in one line, once it has ended with this code."""
    shown, complaints = running.communicate()
    assert running.returncode == code, shown + complaints
    return " ".join((shown + complaints).split())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_is_killed_and_started_again_visitors_come_meanwhile_and_all_is_verified(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    asked = ("--flights", f"{FLIGHTS}", "--json", str(figures))
    with LocalNodes(LocalCluster(nodes=2), tmp_path / "cluster") as nodes:
        with demo(nodes.address, *asked) as running:
            line_with("sending commands", running)
            nodes.kill_node(1)
            gone = line_with("gone", running)
            what = r"partition (\d) is unavailable, the others go on"
            told = re.fullmatch(rf"gone +node node-1 at 127.0.0.1, since \d\d:\d\d:\d\d: {what}\n", gone)
            assert told is not None, gone
            _visits_while_it_is_gone(nodes, int(told[1]))
            nodes.start_node(1)
            line_with("back       node node-1, ", running)
            shown = ended(running, 0)
        assert "verified: every figure is that of the table, nothing is lost, nothing is there twice" in shown
        assert "visitors besides, 1 entry in the guest books" in shown
        assert f"gone node node-1, home of partition {told[1]}: back after " in shown
        _check_figures(json.loads(figures.read_text()), int(told[1]))
        with demo(nodes.address, "--flights", "500") as fewer:
            what = f"the store flights holds the first {FLIGHTS:,} flights, more than the 500 asked for"
            assert ended(fewer, 2).endswith(f"error: {what}; use --flights {FLIGHTS}")


def _visits_while_it_is_gone(nodes: LocalNodes, gone: int) -> None:
    """One visitor reads its own entry, one gets the reason why there is none; and a second demo is refused."""
    address, store = nodes.address, read_manifest(next(nodes.folder.rglob("store.json")).parent)
    at_home = {store.partition_of(stream_id("GuestBook", airport)): airport for airport in AIRPORTS}
    assert len(at_home) == 2, "no airport of one of the partitions"
    welcome, refused = visitor("Ada", at_home[1 - gone], address), visitor("Grace", at_home[gone], address)
    said = ended(welcome, 0)
    assert said.startswith(f"Ada signed the guest book of {at_home[1 - gone]} (partition {1 - gone}, position "), said
    assert said.endswith("; the last guests: Ada")
    said = ended(refused, 2)
    what = f"it was not sent: partition {gone}: its home, node node-1 at 127.0.0.1, has been down since "
    assert said.startswith(f"error: GuestBook/{at_home[gone]}: {what}"), said
    with demo(address, "--flights", f"{FLIGHTS}") as second:
        assert "error: flights is in use by a system of that name on the cluster" in ended(second, 2)


def _check_figures(told: dict[str, Any], gone: int) -> None:
    assert told["verified"] is True
    assert (told["flights"], told["nodes"], told["partitions"]) == (FLIGHTS, 2, 2)
    assert told["commands"] == told["accepted"] + told["rejected"]
    assert told["events"] == told["accepted"]
    assert (told["events_before"], told["duplicates"], told["signatures"]) == (0, 0, 1)
    assert told["log_bytes"] is None
    [lost] = told["lost"]
    assert (lost["node"], lost["partitions"]) == ("node-1", [gone])
    assert lost["back_after_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            DemoOptions(Path("store"), flights=5, cluster="auto"),
            "error: --cluster and --directory exclude each other: on a cluster the store is in the data folders of its"
            " nodes",
        ),
        (
            DemoOptions(flights=5, cluster="127.0.0.1:1"),
            "error: the Ray cluster '127.0.0.1:1': no process listens there: [Errno 111] Connection refused; see "
            "whether"
            " its head runs; `rayfold up` starts a cluster here",
        ),
        (
            DemoOptions(flights=5, cluster="one"),
            "error: the address of a Ray cluster is HOST:PORT or 'auto', not 'one'",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_one_line(
    options: DemoOptions, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(options) == 2
    assert capsys.readouterr().err == f"{line}\n"


# --- the parts ----------------------------------------------------------------------------------------------------


class TestProgressWatchdog:
    """Over nodes that are a list here, and a feed that moves when a test moves it."""

    def setup_method(self) -> None:
        self.moved, self.attached = 0, True
        self.up = {"node-0": True, "node-1": True, "node-2": True}
        self.told: asyncio.Queue[str] = asyncio.Queue()

    def nodes(self) -> list[NodeFacts]:
        return [NodeFacts(f"id of {name}", name, "", "10.0.0.1", up) for name, up in self.up.items()]

    def watchdog(self, patience_s: float = 60.0) -> ProgressWatchdog:
        watchdog = ProgressWatchdog(
            self.nodes,
            lambda: self.attached,
            lambda: self.moved,
            lambda loss: self.told.put_nowait(f"{loss.node} is gone, home of {loss.home_of}"),
            lambda loss: self.told.put_nowait(f"{loss.node} is back"),
            patience_s,
        )
        watchdog.homes = {"node-0": (0, 2), "node-1": (1,), "node-2": ()}
        return watchdog

    async def test_a_node_that_something_waits_for_is_told_of_once_and_again_when_it_is_back(self) -> None:
        async def doing() -> str:
            self.up |= {"node-0": False, "node-1": False, "node-2": False}
            told = {await self.told.get(), await self.told.get()}
            assert told == {"node-0 is gone, home of partitions 0, 2", "node-1 is gone, home of partition 1"}
            assert [loss.back_after_s for loss in watchdog.gone] == [None, None]
            self.up["node-1"] = True
            self.moved += 1  # of a node that was missed, its return is reported even if all moves on
            return await self.told.get()

        watchdog = self.watchdog()
        assert await watchdog.over(doing()) == "node-1 is back"
        assert [loss.node for loss in watchdog.gone] == ["node-0"]
        assert self.told.empty()
        assert watchdog.losses[1].back_after_s is not None

    async def test_what_is_unavailable_is_tried_again(self) -> None:
        tries = iter((Unavailable("partition 1", "gone"), Unavailable("partition 1", "gone"), None))

        async def doing() -> int:
            if error := next(tries):
                raise error
            return 7

        watchdog = self.watchdog()
        assert await watchdog.over(watchdog.patiently(doing)) == 7

    @pytest.mark.parametrize(
        ("up", "why"),
        [
            (True, ": partition 1: not today"),
            (False, ": node node-1 at 10.0.0.1, home of partition 1, is gone; start it again, and then this, which goes"
             " on where it stopped"),
        ],
    )  # fmt: skip
    async def test_nobody_waits_for_ever(self, up: bool, why: str) -> None:
        async def doing() -> None:
            raise Unavailable("partition 1", "not today")

        self.up["node-1"] = up
        watchdog = self.watchdog(patience_s=1.2)
        with pytest.raises(Unavailable) as error:
            await watchdog.over(watchdog.patiently(doing))
        assert str(error.value) == f"the demo: nothing has moved for 0.02 minutes{why}"

    async def test_a_program_whose_own_node_has_ended_does_not_wait_for_it(self) -> None:
        async def doing() -> None:
            self.attached = False
            await asyncio.Event().wait()

        with pytest.raises(Unavailable, match="the node that this program was attached to has ended; once it"):
            await self.watchdog().over(doing())

    async def test_an_error_of_what_is_done_is_told_at_once(self) -> None:
        async def doing() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await self.watchdog().over(doing())


class Bank:
    """As much of a runtime on a cluster as the killer asks."""

    def __init__(self, *addresses: str, gone: str = "") -> None:
        nodes = [
            NodeStatus(f"node-{number}", "", address, address != gone, "", (number,), False, "")
            for number, address in enumerate(addresses)
        ]
        partitions = [PartitionStatus(number, 0, 1, 0, node=f"node-{number}") for number in range(len(nodes))]
        own = [OwnActorStatus(stream_id("Airport", "EWR"), "name", 0, 0)]
        self._status: Status | None = Status(partitions, own, [], nodes=nodes)

    def away(self) -> Bank:
        """There is no status."""
        self._status = None
        return self

    async def status(self) -> Status:
        if self._status is None:
            raise Unavailable("flights", "its supervisor does not answer")
        return self._status


HERE, ELSEWHERE = "127.0.0.1", "192.0.2.1"


class TestWhoIsKilled:
    """No process here has the number 0, so that none is killed, and the kill is due again."""

    @pytest.mark.parametrize(
        ("bank", "spared"),
        [
            (Bank(HERE, HERE), []),
            (Bank(HERE, ELSEWHERE), ["airport"]),
            (Bank(ELSEWHERE, ELSEWHERE), ["airport", "partition"]),
            (Bank(HERE, ELSEWHERE, gone=ELSEWHERE), []),
            (Bank(HERE).away(), []),
        ],
    )
    async def test_nobody_who_may_be_on_another_machine(self, bank: Any, spared: list[str]) -> None:
        killer = Killer(100, armed=True)
        for what in ("airport", "partition"):
            assert await killer.kill(what, bank, lambda: 50) is None
        assert killer.spared == spared
        assert killer.outages == []


class TestScreen:
    """What it shows of nodes."""

    def setup_method(self) -> None:
        self.shown = io.StringIO()
        self.screen = Screen(Console(file=self.shown, width=200))

    def test_a_node_is_gone_and_back(self) -> None:
        loss = Loss("node-1", "10.0.0.1", (1, 3), noticed_s=0.0)
        self.screen.sending(10)
        self.screen.lost(loss)
        loss.back_after_s = 3.21
        self.screen.back(loss)
        lines = self.shown.getvalue().splitlines()
        assert re.sub(r"\d\d:\d\d:\d\d", "NOW", lines[1]) == (
            "gone       node node-1 at 10.0.0.1, since NOW: partitions 1, 3 are unavailable, the others go on"
        )
        assert lines[3] == "back       node node-1, 3.2 s after it was missed"

    def test_on_a_terminal_it_says_whom_it_waits_for(self) -> None:
        loss = Loss("node-1", "10.0.0.1", (1,), noticed_s=0.0)
        self.screen = Screen(Console(file=self.shown, width=200, force_terminal=True))
        self.screen.sending(10)
        self.screen.lost(loss)
        self.screen.waiting_for("verifying")
        assert self.shown.getvalue().count("waiting for node node-1 since ") > 0
        self.shown.truncate(self.shown.seek(0))
        self.screen.lost(loss)
        self.screen.rest()
        assert self.shown.getvalue().count("waiting for node node-1 since ") > 0

    def test_who_was_not_killed(self) -> None:
        self.screen.spared("airport")
        told = "not killed the process of an airport: it is on another machine, or may be\n"
        assert self.shown.getvalue() == told


def test_only_what_is_printed_about_the_lost_is_kept_off_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    ray: Any = importlib.import_module("ray._private.worker")
    printer = ray.print_worker_logs
    with hidden_lines_about_the_lost():
        for lines in (
            ["A worker died or was killed while"],
            ["node one is gone; it has partitions [1]", "a bad block"],
        ):
            ray.print_worker_logs({"lines": lines, "pid": 1, "ip": "10.0.0.1"}, sys.stderr)
    assert ray.print_worker_logs is printer
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("a bad block")


def test_a_guest_has_a_name_and_the_book_counts_its_entries() -> None:
    given(GuestBook, Signed(guest="Ada", entry=1)).when(Sign(guest="Grace")).then(Signed(guest="Grace", entry=2))
    given(GuestBook).when(Sign(guest="  ")).rejected("no_name")


def test_the_last_guests_of_an_airport_are_told_the_latest_first() -> None:
    guests = [on("EWR", Signed(guest=f"guest {number}", entry=number)) for number in range(1, 151)]
    book = given(Guests, *guests, on("JFK", Signed(guest="Ada", entry=1)))
    book.ask(GuestsOf(airport="EWR", limit=2)).answers(("guest 150", "guest 149"))
    assert len(guests) == 150
    book.ask(GuestsOf(airport="EWR", limit=500)).answers(tuple(f"guest {number}" for number in range(150, 50, -1)))
    book.ask(GuestsOf(airport="LGA")).answers(())


def test_a_timetable_only_grows() -> None:
    given(Timetable).when(Publish(flights=500)).then(Published(flights=500)).then_state(flights=500)
    given(Timetable, Published(flights=500)).when(Publish(flights=500)).then_nothing()
    given(Timetable, Published(flights=500)).when(Publish(flights=499)).rejected("more_are_published", flights=500)
