"""A system in a process of its own: started by the first program, ended after the last, and by nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from rayfold import InvalidMessage, LocalCluster, Runtime, Settings, StoreMismatch
from rayfold.runtime.store.store_lock import holder_of
from tests.bank import Account
from tests.support.driver import ROOT

PROGRAM = """
import asyncio, sys
from examples.bank import Account, BalanceOf, Balances, Deposit
from rayfold import Aggregate, Command, Event, Projection, Runtime, decide, evolve
from rayfold.runtime.store.store_lock import holder_of

class Note(Command):
    text: str

class Noted(Event):
    text: str

class Diary(Aggregate):
    notes: list[str] = []
    @decide
    def note(self, command: Note) -> Noted:
        return Noted(text=command.text)
    @evolve
    def noted(self, event: Noted) -> None:
        self.notes.append(event.text)

async def main():
    made = [Runtime(sys.argv[1], aggregates=[Account, Diary], projections=[Balances], linger=1) for _ in range(2)]
    one, two = await asyncio.gather(*(runtime.start() for runtime in made))
    print(holder_of(one.store.path).pid)
    receipt = await one.execute(Account, "a", Deposit(amount=5))
    print(await two.ask(Balances, BalanceOf(account="a"), after=receipt))
    await two.execute(Diary, "d", Note(text="of __main__"))
    print((await one.state_at(Diary, "d")).notes)
    await asyncio.gather(one.stop(), two.stop())

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_that_start_at_once_one_process_runs_the_system_and_it_ends_after_the_last_program(
    tmp_path: Path,
) -> None:
    store = tmp_path / "bank-data"
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(store)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr
    pid, *lines = ran.stdout.splitlines()
    assert lines == ["5", "['of __main__']"]
    deadline_s, waiting = time.monotonic() + 100, Event()
    while holder_of(store) is not None or Path(f"/proc/{pid}/cwd").exists():
        assert time.monotonic() < deadline_s
        waiting.wait(0.1)
    log = (store / "lingering.log").read_text()
    assert log.count("ends, since no program uses it") == 1


@pytest.mark.slow
async def test_a_start_that_fails_is_raised_with_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("of somebody else")
    with pytest.raises(StoreMismatch, match="file"):
        await Runtime(tmp_path / "other", aggregates=[Account], linger=True).start()
    assert [one.name for one in (tmp_path / "other").iterdir()] == ["file"]


@pytest.mark.parametrize("linger", ["yes", -1, None, float("nan"), 1e9])
def test_a_time_that_cannot_be_is_refused(linger: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="give True, or a number of seconds up to a year"):
        Runtime(tmp_path, aggregates=[Account], linger=linger)  # type: ignore[arg-type]  # what is tested


def test_programs_that_want_no_sockets_do_not_linger(tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="linger needs sockets"):
        Runtime(tmp_path, aggregates=[Account], linger=True, settings=Settings(local_sockets=False))


def test_a_cluster_does_not_linger(tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="deploy the application on the cluster instead"):
        Runtime(tmp_path, aggregates=[Account], cluster=LocalCluster(), linger=True)
