"""A system in a process of its own: started by the first program, ended after the last, and by nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from rayfold import (
    InvalidMessage,
    LocalCluster,
    Runtime,
    Settings,
    StoreInUse,
    StoreMismatch,
    StoreMissing,
    Unavailable,
)
from rayfold.actors.system import lingering, lingering_process, relayed
from rayfold.actors.system.lingering import LingeringSystem
from rayfold.actors.system.lingering_plan import LingeringPlan
from rayfold.actors.system.lingering_process import LingeringProcess
from rayfold.runtime.store.store import open_or_create_store
from rayfold.runtime.store.store_lock import failure_of_last_start, holder_of
from tests.bank import Account
from tests.support.driver import ROOT

PROGRAM = """
import asyncio, sys
from examples.bank import Account, BalanceOf, Balances, Deposit
from rayfold import Aggregate, Command, Event, Projection, Runtime, decide, evolve
from rayfold.runtime.store.store_lock import failure_of_last_start, holder_of

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
    (tmp_path / "other" / "file").write_text("of another program")
    with pytest.raises(StoreMismatch, match="file"):
        await Runtime(tmp_path / "other", aggregates=[Account], linger=True).start()
    assert [one.name for one in (tmp_path / "other").iterdir()] == ["file"]


@pytest.mark.slow
async def test_who_waits_for_a_start_that_comes_to_nothing_tries_its_own_however_long_it_has_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "_STARTING_S", 0.0)
    store = open_or_create_store(tmp_path / "bank-data", 1, 1)
    with store.hold("a process that ends") as hold:
        hold.publish({})
        starting = asyncio.ensure_future(Runtime(store.path, aggregates=[Account], linger=True, partitions=2).start())
        await asyncio.wait([starting], timeout=0.5)
        assert not starting.done()
    with pytest.raises(StoreMismatch, match="partitions"):  # by its own process
        await starting


async def test_who_waits_for_a_start_that_fails_takes_its_error_unless_it_would_start_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, started = open_or_create_store(tmp_path / "bank-data", 1, 1), list[object]()

    def start(system: LingeringSystem) -> None:
        started.append(system._plan[-1])
        raise Unavailable("its own start", "it failed")

    def program(linger: int) -> LingeringSystem:
        made = Runtime(store.path, aggregates=[Account], linger=linger)._made()
        assert isinstance(made, LingeringSystem)
        return made

    monkeypatch.setattr(LingeringSystem, "_start_process", start)
    same, other = program(1), program(2)
    plan = LingeringPlan.now(store.path, same._packed_plan())
    with store.hold("a process whose start fails") as hold:
        starting = [asyncio.ensure_future(one.start()) for one in (same, other)]
        while not (same._waits and other._waits):
            await asyncio.sleep(0.01)
        hold.publish_failure(plan.failed_with(StoreMissing("here", "there is none")))
    with pytest.raises(StoreMissing, match="here: there is none"):
        await asyncio.wait_for(starting[0], 20)
    with pytest.raises(Unavailable, match="its own start"):
        await asyncio.wait_for(starting[1], 20)
    assert started == [2]
    with pytest.raises(Unavailable, match="its own start"):
        await program(1).start()
    assert started == [2, 1], "who comes later tries again"
    with store.hold("the next"):
        assert not failure_of_last_start(store.path)


@pytest.mark.slow
async def test_starts_end_where_the_lock_of_a_running_system_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "_IN_USE_MAX", 2)
    store = open_or_create_store(tmp_path / "bank-data", 1, 1)
    with store.hold("a runtime"):
        (store.path / "store.lock").unlink()
        with pytest.raises(StoreInUse, match="whose lock was removed"):
            await Runtime(store.path, aggregates=[Account], linger=True).start()


async def test_neither_the_loop_nor_the_end_of_a_program_waits_for_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = Event()
    monkeypatch.setattr(lingering.LingeringSystem, "_start_process", lambda _: over.wait(60))
    starting = asyncio.ensure_future(Runtime(tmp_path / "bank-data", aggregates=[Account], linger=True).start())
    await asyncio.wait([starting], timeout=0.1)
    starting.cancel()
    await asyncio.wait([starting])
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 20)
    over.set()


def a_process(linger_s: float, reported_to: int = -1) -> LingeringProcess:
    return LingeringProcess([os.devnull, {}, None, 2, None, None, linger_s, b""], reported_to)


async def test_it_runs_on_while_programs_are_connected_however_short_it_lingers_or_long_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lingering_process, "_LOOK_S", 0.001)
    monkeypatch.setattr(lingering_process, "_FIRST_S", 0.0)
    now = [0.0]
    monkeypatch.setattr(lingering_process, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for linger_s in (0.0, 0.001, 1.0):
        programs = {1}
        system = SimpleNamespace(relay=SimpleNamespace(programs=programs))
        waiting = asyncio.ensure_future(a_process(linger_s)._until_unused(system))  # type: ignore[arg-type]
        for _ in range(20):
            now[0] += 100  # it was stopped
            await asyncio.wait([waiting], timeout=0.002)
            assert not waiting.done()
        programs.clear()
        now[0] += 100  # and then again, for which it waits for its programs as long as ever
        await asyncio.wait([waiting], timeout=0.02)
        assert waiting.done() == (linger_s < 0.01)
        while not waiting.done():
            now[0] += 1
            await asyncio.sleep(0)
        assert waiting.result() == "no program uses it"


async def test_it_ends_with_its_ray_also_while_programs_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering_process, "ended_servers", lambda: ["raylet"])  # a real one: test_owner_ends.py
    system = SimpleNamespace(relay=SimpleNamespace(programs={1}))
    why = await a_process(10)._until_unused(system)  # type: ignore[arg-type]
    assert why == "its Ray has ended (raylet); a program that uses it starts it again"


def test_the_program_that_started_it_may_be_gone_when_it_is_ready() -> None:
    read, write = os.pipe()
    os.close(read)
    a_process(1.0, write)._report(None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)


async def test_its_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering_process, "_LOOK_S", 0.001)
    monkeypatch.setattr(lingering_process, "_LOG_BYTES_MAX", 100)
    process, log = a_process(10), tmp_path / "lingering.log"
    with log.open("ab") as printed:
        process._log = printed.fileno()
        system = SimpleNamespace(relay=SimpleNamespace(programs={1}))
        waiting = asyncio.ensure_future(process._until_unused(system))  # type: ignore[arg-type]
        for line in (b"x" * 200, b"y" * 50, b"z" * 40):
            os.write(printed.fileno(), line)
            await asyncio.wait([waiting], timeout=0.05)
        assert log.read_bytes() == b"y" * 50 + b"z" * 40
        process._end()
        assert await waiting == "it got SIGTERM"


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
