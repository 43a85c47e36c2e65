"""The demo as it is run: through Ray, with processes killed, twice on one directory, and with Ctrl-C in the middle."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from rayfold import RayfoldError, Receipt, Rejected, StreamId, Unavailable
from rayfold.actors.client.sources import outcomes_of
from rayfold.actors.observe.status import OwnActorStatus, PartitionStatus, Status
from rayfold.benchmarks.flights import demo
from rayfold.benchmarks.flights.demo import DemoOptions, run_demo
from rayfold.benchmarks.flights.figures import WORST
from rayfold.benchmarks.flights.outage import Killer, Outage
from rayfold.benchmarks.flights.replay import IN_FLIGHT, Sending
from rayfold.benchmarks.flights.report import Report, as_tables, day_in_words, verdict
from rayfold.benchmarks.flights.run import Replay
from rayfold.benchmarks.flights.verification import Check, Ledger, LogFacts
from rayfold.benchmarks.harness.machine import filesystem_of
from rayfold.runtime.store.store import create_or_open_store

ROOT = Path(__file__).parents[2]
FLIGHTS = 8_000
"""Enough to last until the airports have moved into actors of their own, so that one can be killed."""

FEWER_FLIGHTS = 4_000
"""Enough that a partition is killed, if no airport has been."""

CLAIMS, FEWER_CLAIMS = (28, 21, 7), (22, 16, 6)
"""Of these flights: opened, paid, owed."""


def run(directory: Path, flights: int, figures: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmarks.demo_driver", str(directory), str(flights), str(figures)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_verifies_kills_and_recovers(tmp_path: Path) -> None:
    store, figures = tmp_path / "store", tmp_path / "figures.json"
    first = run(store, FLIGHTS, figures)
    shown, complaints = first.communicate()
    assert first.returncode == 0, shown + complaints
    told = json.loads(figures.read_text())
    assert told["verified"] is True
    assert told["flights"] == FLIGHTS
    assert told["commands"] == 23_903 == told["accepted"] + told["rejected"]
    assert told["events"] == told["accepted"] == 23_881
    assert told["duplicates"] == 0
    assert (told["claims"], told["claims_paid"], told["claims_owed"]) == CLAIMS
    assert sum(told["rejected_by_reason"].values()) == told["rejected"] == 22
    assert {one["what"] for one in told["killed"]} == {"airport", "partition"}
    assert told["recovered_s"] == max(one["recovered_s"] for one in told["killed"])
    assert told["machine"]["python"] == sys.version.split()[0]
    assert "kill -9    Airport/" in shown
    assert "recovered  partition 0" in shown
    assert "A worker died" not in shown
    assert "verified: every figure is that of the table" in shown


def _sent_again(store: Path, figures: Path, before: dict[str, Any]) -> None:
    again = run(store, FEWER_FLIGHTS, figures)
    shown, complaints = again.communicate()
    assert again.returncode == 0, shown + complaints
    told = json.loads(figures.read_text())
    assert told["verified"] is True
    assert told["events_before"] == told["events"] == before["events"]
    assert told["repeated"] == told["accepted"] == before["accepted"]
    assert told["claims"] == before["claims"]
    assert told["rejected"] == before["rejected"]
    assert "were stored already, by an earlier run" in shown


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_in_the_middle_of_an_outage_ends_every_process_the_next_run_goes_on_and_the_last_adds_nothing(
    tmp_path: Path,
) -> None:
    store, figures = tmp_path / "store", tmp_path / "figures.json"
    running = run(store, FEWER_FLIGHTS, figures)
    assert running.stdout is not None
    assert any(line.startswith("kill -9") for line in running.stdout)
    children = _descendants(running.pid)
    assert len(children) > 5
    running.send_signal(signal.SIGINT)
    _, complaints = running.communicate()
    assert running.returncode == 130
    assert complaints == f"stopped; the same command goes on where this one stopped: {store}\n"
    assert _gone(children)
    assert not figures.exists()
    onward = run(store, FEWER_FLIGHTS, figures)
    shown, complaints = onward.communicate()
    assert onward.returncode == 0, shown + complaints
    told = json.loads(figures.read_text())
    assert told["verified"] is True
    assert (told["claims"], told["claims_paid"], told["claims_owed"]) == FEWER_CLAIMS
    assert 0 < told["events_before"] < told["events"] == told["accepted"] == 11_923
    assert told["repeated"] >= told["events_before"]
    _sent_again(store, figures, told)


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found, fresh = set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def _gone(pids: set[int], within_s: float = 200.0) -> bool:
    """Whether they end in time. Another process's children cannot be awaited, only polled."""
    deadline_s, looking = time.monotonic() + within_s, threading.Event()
    while time.monotonic() < deadline_s:
        if not any(_alive(pid) for pid in pids):
            return True
        looking.wait(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what cannot be run is refused in one line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (DemoOptions(all=True, flights=5), "error: --all and --flights exclude each other"),
        (DemoOptions(flights=0), "error: --flights 0: the table has 1 to 336,776 flights"),
        (DemoOptions(flights=336_777), "error: --flights 336777: the table has 1 to 336,776 flights"),
        (DemoOptions(flights=5, partitions=0), "error: --partitions 0: at least one is needed"),
        (DemoOptions(flights=5, json=Path("/")), "error: --json /: cannot write a file there"),
        (DemoOptions(flights=5, json=Path("/none/x")), "error: --json /none/x: cannot write a file there"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(
    options: DemoOptions, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(options) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_store_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_or_open_store(tmp_path / "bank", 1)
    before = sorted(path.name for path in (tmp_path / "bank").iterdir())
    assert run_demo(DemoOptions(tmp_path / "bank", flights=5)) == 2
    told = f"error: {tmp_path / 'bank'} holds a store that is not of this demo; choose another directory\n"
    assert capsys.readouterr().err == told
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == before


def test_a_directory_of_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert run_demo(DemoOptions(tmp_path, flights=5)) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: the directory is not empty and holds no store")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_fewer_flights_than_a_store_holds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo._prepare(tmp_path / "store", 500, None)
    assert run_demo(DemoOptions(tmp_path / "store", flights=400)) == 2
    what = "holds the first 500 flights, more than the 400 asked for"
    told = f"error: {tmp_path / 'store'} {what}; use --flights 500, or choose another directory\n"
    assert capsys.readouterr().err == told


# --- the parts ----------------------------------------------------------------------------------------------------

EWR = StreamId("Airport", "EWR")


def receipt(stream: StreamId = EWR, partition: int = 0, position: int = 1, *, repeated: bool = False) -> Receipt:
    return Receipt(stream, partition, position, 1, bytes(16), repeated)


class TestLedger:
    def test_it_tells_accepted_repeated_refused_and_unanswered_apart(self) -> None:
        ledger = Ledger(4)
        outcomes: list[Receipt | RayfoldError] = [receipt(), receipt(position=2, repeated=True)]
        outcomes += [Rejected("no"), Unavailable("x", "y")]
        for number, outcome in enumerate(outcomes):
            ledger.note(number, outcome)
        assert (ledger.told, ledger.accepted, ledger.repeated) == (3, 2, 1)
        assert ledger.rejected_by_reason == {"no": 1}
        assert ledger.take_unanswered() == [3]
        assert ledger.unanswered == []

    def test_two_receipts_for_one_command_are_a_bug(self) -> None:
        ledger = Ledger(1)
        ledger.note(0, receipt())
        with pytest.raises(AssertionError, match="command 0 was answered twice"):
            ledger.note(0, receipt())


class Bank:
    """As much of a runtime as the killer asks."""

    def __init__(self, *own_actors: OwnActorStatus, pid: int = 0) -> None:
        self._status = Status([PartitionStatus(0, pid, 1, 0)], list(own_actors), [])

    async def status(self) -> Status:
        return self._status


class SwiftBank(Bank):
    """Which answers at once whatever it is sent: nothing else has a turn before the next commands are asked for."""

    async def execute_all(
        self, envelopes: Iterable[int], *, in_flight: int, timeout_s: float
    ) -> AsyncIterator[tuple[int, Receipt]]:
        def send(taken: Sequence[tuple[int, int]]) -> list[asyncio.Future[Receipt]]:
            answers = [asyncio.get_running_loop().create_future() for _ in taken]
            for answer, (_, number) in zip(answers, taken, strict=True):
                answer.set_result(receipt(position=number + 1))
            return answers

        async for page in outcomes_of(envelopes, in_flight, send):
            for one in page:
                yield one


class Numbers:
    """A feed of nothing but the numbers of its commands."""

    def __init__(self, commands: int) -> None:
        self._commands = commands

    def __len__(self) -> int:
        return self._commands

    def envelope(self, number: int) -> int:
        return number


class Onlooker:
    """Keeps the outages that it is called with."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def answered(self, commands: int) -> None: ...

    def killed(self, outage: Outage) -> None:
        self.told.append(f"{outage.name} was killed")

    def recovered(self, outage: Outage) -> None:
        self.told.append(f"{outage.name} is back")


class TestOutages:
    @pytest.mark.slow
    async def test_the_process_is_killed_with_signal_9(self) -> None:
        victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        bank: Any = Bank(OwnActorStatus(EWR, "name", victim.pid, 0))
        killer = Killer(300, armed=True)
        assert killer.take_due(99) is None
        assert killer.take_due(100) == "airport"
        assert killer.take_due(100) is None
        outage = await killer.kill("airport", bank, lambda: 120)
        assert outage is not None
        assert (outage.name, outage.pid, outage.after_commands) == ("Airport/EWR", victim.pid, 120)
        assert victim.wait() == -signal.SIGKILL
        victim.communicate()

    async def test_what_is_not_there_yet_is_due_again_later(self) -> None:
        killer = Killer(300, armed=True)
        bank: Any = Bank()
        assert killer.take_due(100) == "airport"
        assert await killer.kill("airport", bank, lambda: 110) is None
        assert killer.outages == []
        assert killer.take_due(116) is None
        assert killer.take_due(117) == "airport"

    async def test_nothing_is_killed_when_the_run_is_nearly_over(self) -> None:
        killer = Killer(300, armed=True)
        bank: Any = Bank(OwnActorStatus(EWR, "name", os.getpid(), 0))
        assert killer.take_due(280) == "airport"
        assert await killer.kill("airport", bank, lambda: 280) is None
        assert killer.outages == []

    @pytest.mark.slow
    async def test_a_kill_that_has_begun_is_waited_for_however_fast_the_commands_are_sent(self) -> None:
        victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        commands = 5 * IN_FLIGHT
        run = Replay(Ledger(commands), Killer(commands, armed=True))
        feed, bank, watcher = cast(Any, Numbers(commands)), cast(Any, SwiftBank(pid=victim.pid)), Onlooker()
        await Sending(bank, feed, run, cast(Any, watcher)).to_the_end()
        assert watcher.told == ["partition 0 was killed", "partition 0 is back"]
        assert run.ledger.told == commands
        [outage] = run.killer.outages
        assert outage.what == "partition"
        assert outage.after_commands <= run.killer.last_call
        assert victim.wait() == -signal.SIGKILL
        victim.communicate()

    def test_an_unarmed_killer_kills_nothing(self) -> None:
        assert Killer(300, armed=False).take_due(299) is None

    def test_only_a_later_command_to_what_was_killed_ends_an_outage(self) -> None:
        outage = Outage("airport", "Airport/EWR", 1, 100, time.monotonic())
        assert not outage.watch(99, receipt())
        assert not outage.watch(100, receipt(StreamId("Airport", "JFK")))
        assert outage.watch(100, receipt())
        assert not outage.watch(101, receipt())
        assert outage.recovered_s is not None

    def test_the_outage_of_a_partition_ends_with_any_of_its_aggregates(self) -> None:
        outage = Outage("partition", "partition 1", 1, 0, time.monotonic())
        assert not outage.watch(0, receipt(partition=0))
        assert outage.watch(1, receipt(StreamId("Aircraft", "N1"), 1))


def _report(*checks: Check) -> Report:
    rows = dict.fromkeys(("Punctuality", "Routes", "AirportHours", "Distances", "Delays", "Claims", WORST), ())
    return Report(
        flights=1,
        partitions=2,
        run=Replay(Ledger(0), Killer(0, armed=False), start_s=1, rows=rows),
        facts=LogFacts(),
        checks=list(checks),
        verify_s=0,
        size_bytes=0,
        filesystem="ext4",
    )


def _printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80)
    for table in as_tables(report, {}):
        console.print(table)
    console.print(verdict(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestReport:
    def test_a_failed_check_is_shown_with_what_differs(self) -> None:
        check = Check("read model Routes", "3 rows")
        for number in range(7):
            check.complain(f"row {number} [is] off")
        shown = _printed(_report(Check("another"), check))
        assert "✓  another" in shown
        assert "✗  read model Routes" in shown
        assert "row 4 [is] off" in shown
        assert "row 5" not in shown
        assert "and 2 more" in shown
        assert "not verified: 1 of 2 checks failed" in shown

    @pytest.mark.slow
    def test_a_failed_check_is_in_the_json(self) -> None:
        check = Check("read model Routes")
        check.complain("off by one")
        told = json.loads(json.dumps(_report(check).as_json()))
        assert told["verified"] is False
        assert told["checks"] == [{"name": "read model Routes", "passed": False, "problems": ["off by one"]}]
        assert told["recovered_s"] is None

    def test_tables_without_a_single_flight_can_be_shown(self) -> None:
        assert "verified" in _printed(_report())

    def test_days_are_told_in_words(self) -> None:
        assert day_in_words(12, 31) == "31 December"

    def test_a_file_system_is_told_by_its_kind(self) -> None:
        assert filesystem_of(Path("/proc/self")) == "proc"
