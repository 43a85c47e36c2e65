"""Starting and stopping: everything that was started is ended, however it ends, and one runtime holds a directory."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rayfold import (
    Application,
    BlockingRuntime,
    CallerError,
    Envelope,
    InvalidMessage,
    Receipt,
    Rejected,
    StoreInUse,
    StoreMismatch,
    Unavailable,
    UnknownName,
)
from rayfold.benchmarks.harness.processes import processes_below
from tests.actors.conftest import Bank
from tests.bank import Account, BalanceOf, Balances, Deposit, Open, Turnover
from tests.support.driver import rays_own_programs, start_driver, wait_until_gone
from tests.support.log_walk import check_nothing_lost_nothing_twice, stored_events

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, sys
from rayfold import Envelope, Receipt, Runtime
from tests.bank import Account, Open, Turnover

async def main():
    async with Runtime(sys.argv[1], aggregates=[Account], projections=[Turnover], num_cpus=2) as bank:
        for one in (await bank.status()).partitions:
            print("partition", one.pid, flush=True)
        prefix = sys.argv[2] if len(sys.argv) > 2 else "a"
        numbers = (Envelope(Account, f"{prefix}{number}", Open(owner="x")) for number in range(1_000_000))
        async for envelope, outcome in bank.execute_all(numbers, in_flight=200):
            assert isinstance(outcome, Receipt), outcome
            print(outcome.partition, outcome.position, envelope.id, flush=True)

asyncio.run(main())
"""


def read_lines(driver: subprocess.Popen[str], count: int) -> list[list[str]]:
    assert driver.stdout is not None
    lines = []
    for _ in range(count):
        line = driver.stdout.readline()
        if not line:
            raise AssertionError(driver.communicate()[1])
        lines.append(line.split())
    return lines


def test_a_driver_killed_in_the_middle_leaves_its_acknowledged_events_and_no_process(tmp_path: Path) -> None:
    with start_driver("-c", PROGRAM, str(tmp_path / "data")) as driver:
        acknowledged = read_lines(driver, 3000)
        processes = processes_below(driver.pid)
        driver.kill()
        acknowledged += [line.split() for line in driver.communicate()[0].splitlines()]
    wait_until_gone(processes)
    events = stored_events(tmp_path / "data")
    for partition, position, account in (line for line in acknowledged if len(line) == 3):
        stored = events[int(partition)][int(position) - 1]
        assert (stored.stream.id, stored.version) == (account, 1)
    check_nothing_lost_nothing_twice(tmp_path / "data", [])


class Interrupted(NamedTuple):
    """What is known of a program that was interrupted in the middle of its work, once all its processes are gone."""

    data: Path
    exit_code: int
    errors: str
    listening: set[str]
    """While it ran: the addresses at which any of its processes listened."""
    programs: set[str]
    """While it ran: what of Ray's was started for it."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    data = tmp_path_factory.mktemp("interrupted") / "data"
    with start_driver("-c", PROGRAM, str(data)) as driver:
        read_lines(driver, 1000)
        processes = processes_below(driver.pid)
        listening, programs = listening_addresses(processes), rays_own_programs(processes)
        driver.send_signal(signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
    wait_until_gone(processes)
    return Interrupted(data, driver.returncode, errors, listening, programs)


def test_ctrl_c_stops_everything_and_loses_nothing(interrupted: Interrupted) -> None:
    assert interrupted.exit_code == -signal.SIGINT or interrupted.exit_code == 130, interrupted.errors
    assert interrupted.errors.strip().splitlines()[-1] == "KeyboardInterrupt"
    check_nothing_lost_nothing_twice(interrupted.data, [])


def test_a_local_runtime_listens_on_loopback_only_and_its_token_is_private(interrupted: Interrupted) -> None:
    assert interrupted.listening, "the runtime listens nowhere, so this test looked in the wrong place"
    assert {address for address in interrupted.listening if not address.startswith("127.")} == set()
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    assert token.stat().st_mode & 0o077 == 0
    assert interrupted.programs == {"gcs_server", "raylet"}, "and none of the programs that nothing here uses"


def test_a_directory_is_free_after_ctrl_c_and_its_second_runtime_is_refused_with_the_name_of_the_first(
    interrupted: Interrupted,
) -> None:
    with start_driver("-c", PROGRAM, str(interrupted.data), "b") as first:
        read_lines(first, 100)
        processes = processes_below(first.pid)
        with start_driver("-c", PROGRAM, str(interrupted.data)) as second:
            _, errors = second.communicate(timeout=60)
        assert second.returncode == 1
        told = errors.strip().splitlines()[-1]
        assert re.fullmatch(
            r"rayfold\.runtime\.errors\.StoreInUse: .*/data is in use by the runtime of process .*; share it with"
            r" connect\(path\), .* or stop that runtime first",
            told,
        )
        assert f"process {first.pid}" in told
        read_lines(first, 100)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    wait_until_gone(processes)


def listening_addresses(pids: set[int]) -> set[str]:
    """The IPv4 addresses, and mapped ones, of all listening TCP sockets that these processes hold."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if found := re.fullmatch(r"socket:\[(\d+)\]", target):
                inodes.add(found[1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                last_word = fields[1].split(":")[0][-8:]
                addresses.add(".".join(str(byte) for byte in reversed(bytes.fromhex(last_word))))
    return addresses


async def test_a_second_runtime_in_the_same_process_is_refused_as_well(bank: Bank) -> None:
    async with bank(projections=[]) as first:
        with pytest.raises(StoreInUse, match=rf"is in use by .*process {os.getpid()}"):
            await bank(projections=[]).start()
        assert (await first.execute(Account, "a", Open(owner="x"))).version == 1


async def test_a_stop_that_is_interrupted_tells_who_waits_and_sends_nothing_any_more(bank: Bank) -> None:
    async with bank(projections=[], partitions=1, timeout_s=60) as running:
        await running.execute(Account, "a", Open(owner="x"))
        [partition] = (await running.status()).partitions
        os.kill(partition.pid, signal.SIGSTOP)
        try:
            sent = [running._client.send(Envelope(Account, "a", Deposit(amount=1))) for _ in range(3)]
            stopping = asyncio.create_task(running._client.drain(60))
            await asyncio.sleep(0)
            stopping.cancel()
            await asyncio.wait({stopping})
            told = {str(outcome) for outcome in await asyncio.gather(*sent)}
            assert told == {"Account/a: the runtime was stopped before it was answered"}
            with pytest.raises(Unavailable, match="the runtime is stopped"):
                await running.execute(Account, "a", Deposit(amount=1))
        finally:
            os.kill(partition.pid, signal.SIGCONT)


def test_whatever_calls_ray_after_a_runtime_has_left_it_joins_no_other_ray(tmp_path: Path) -> None:
    program = (
        "import sys; from rayfold import BlockingRuntime; from tests.bank import Account\n"
        "with BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1, num_cpus=1): import ray\n"
        "ray.get_actor('missing')"
    )
    with start_driver("-c", program, str(tmp_path / "data")) as driver:
        try:
            told = driver.communicate(timeout=60)[1]
        finally:
            driver.kill()
    assert driver.returncode == 1
    assert "ray.init" in told.splitlines()[-1], told


async def test_another_event_loop_is_refused_by_name_and_nothing_is_sent(bank: Bank) -> None:
    async with bank(projections=[Balances]) as running:
        await running.execute(Account, "alice", Open(owner="Ada"))

        def elsewhere(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
            with pytest.raises(CallerError, match=r"another event loop, in thread 'MainThread', .*run_coroutine"):
                asyncio.run(call())

        async def listed() -> None:
            async for _ in running.execute_all([Envelope(Account, "alice", Deposit(amount=1))]):
                pass

        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: running.execute(Account, "alice", Deposit(amount=1)),
            lambda: running.session().execute(Account, "alice", Deposit(amount=1)),
            listed,
            lambda: running.ask(Balances, BalanceOf(account="alice")),
            running.caught_up,
            running.status,
            running.health,
            lambda: running.history(Account, "alice"),
            running.stop,
        ]
        for call in calls:
            await asyncio.to_thread(elsewhere, call)
        assert len(await running.history(Account, "alice")) == 1
        assert (await running.health()).ok


async def test_a_start_that_fails_halfway_leaves_the_directory_free(bank: Bank) -> None:
    async with bank(projections=[]) as running:
        data = running.store.partition_path(1) / "data.mdb"
    data.rename(data.with_suffix(".away"))
    with pytest.raises(Exception, match=r"the log of partition 1 of 2 is gone; restore it from a backup"):
        await bank(projections=[]).start()
    data.with_suffix(".away").rename(data)
    async with bank(projections=[]) as running:
        assert (await running.execute(Account, "a", Open(owner="x"))).version == 1


async def test_another_number_of_partitions_is_refused(bank: Bank) -> None:
    async with bank(projections=[], partitions=1):
        pass
    with pytest.raises(StoreMismatch, match=r"the store has 1 partitions, not 3; open it with 1"):
        await bank(projections=[], partitions=3).start()


async def test_wrong_arguments_are_named_before_anything_starts(bank: Bank) -> None:
    with pytest.raises(InvalidMessage, match="replicas: is 0; give a number from 1, or one for each projection"):
        bank(replicas=0)
    with pytest.raises(UnknownName, match=r"no projection is named 'Turnover'; known: Balances"):
        bank(projections=[Balances], replicas={Turnover: 2})
    with pytest.raises(InvalidMessage, match=r"Settings: timeout_s is 0; give a positive number"):
        bank(timeout_s=0)


def test_the_blocking_twin_does_the_same_without_await(bank: Bank, tmp_path: Path) -> None:
    with BlockingRuntime(tmp_path / "data", aggregates=[Account], projections=[Balances]) as running:
        receipt = running.execute(Account, "alice", Open(owner="Alice"))
        with pytest.raises(Rejected, match=r"already_open \(owner='Alice'\)"):
            running.execute(Account, "alice", Open(owner="Alice"))
        sent = [Envelope(Account, "alice", Deposit(amount=1)) for _ in range(1000)]
        outcomes = list(running.execute_all(sent, in_flight=100))
        assert [envelope for envelope, _ in outcomes] == sent
        assert all(isinstance(outcome, Receipt) for _, outcome in outcomes)
        assert running.ask(Balances, BalanceOf(account="alice"), after=running.heads()) == 1000
        assert receipt.partition in {one.partition for one in running.status().partitions}
    application = Application("bank", aggregates=[Account], projections=[Balances])
    with BlockingRuntime(tmp_path / "data", application) as running:
        assert running.ask(Balances, BalanceOf(account="alice"), after=receipt) == 1000


def waiting_in(running: BlockingRuntime, operation: str) -> bool:
    """Whether a call of another thread waits on the event loop of the runtime."""
    assert running._loop is not None
    return any(operation in repr(task.get_coro()) for task in asyncio.all_tasks(running._loop))


class Alarm(TimeoutError):
    """What the program's own limit of time raises."""


def ring(number: int, frame: object) -> None:
    raise Alarm("the program's limit")


def test_a_limit_of_the_programs_own_ends_a_call_that_waits(bank: Bank, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with BlockingRuntime(tmp_path / "data", aggregates=[Account], projections=[Balances]) as running:
            running.execute(Account, "alice", Open(owner="Alice"))
            [projector] = running.status().projectors
            assert projector.pid is not None
            os.kill(projector.pid, signal.SIGSTOP)
            with pytest.raises(Alarm):  # noqa: PT012 - the limit may end before the call begins, on a busy machine
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                running.ask(Balances, BalanceOf(account="alice"), timeout_s=100)
            os.kill(projector.pid, signal.SIGCONT)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_threads_that_wait_while_another_one_stops_the_runtime_are_told(bank: Bank, tmp_path: Path) -> None:
    running = BlockingRuntime(tmp_path / "data", aggregates=[Account], projections=[Balances]).start()
    running.execute(Account, "alice", Open(owner="Alice"))
    [projector] = running.status().projectors
    assert projector.pid is not None
    os.kill(projector.pid, signal.SIGSTOP)
    told: list[BaseException] = []

    def wait(doing: Callable[[], object]) -> None:
        try:
            doing()
        except BaseException as error:
            told.append(error)

    waits: list[Callable[[], object]] = [
        lambda: running.caught_up(timeout_s=100),
        lambda: running.execute(Account, "alice", Deposit(amount=1), until=Balances, timeout_s=100),
    ]
    threads = [threading.Thread(target=wait, args=(doing,), daemon=True) for doing in waits]
    for thread in threads:
        thread.start()
    while sum(running.heads().values()) < 2 or not waiting_in(running, "caught_up"):
        pass
    running.stop()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(told) == 2
    assert all(isinstance(error, Unavailable) for error in told), told
    with pytest.raises(CallerError, match="not running"):
        running.caught_up()


def test_classes_of_the_main_program_travel_to_the_actors(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from __future__ import annotations\n"
        + (Path(__file__).parents[2] / "bank.py").read_text().split("from __future__ import annotations")[1]
        + """
import sys
from rayfold import BlockingRuntime

with BlockingRuntime(sys.argv[1], aggregates=[Account, Vault], projections=[Balances, Turnover], partitions=1) as bank:
    bank.execute(Account, "a", Open(owner="x"))
    receipt = bank.execute(Account, "a", Deposit(amount=3))
    print(bank.ask(Balances, BalanceOf(account="a"), after=receipt), bank.ask(Balances, Richest(), after=receipt))
"""
    )
    with start_driver(str(program), str(tmp_path / "data")) as driver:
        answered, errors = driver.communicate(timeout=100)
    assert answered.splitlines()[-1:] == ["3 ['a']"], errors
    assert "Traceback" not in errors
