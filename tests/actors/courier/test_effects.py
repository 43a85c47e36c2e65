"""Effects in the real thing: what is called, what is looked up, and what happens when processes end in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rayfold import Runtime, Settle
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.benchmarks.torture.outside import Bill, Pay, Paying, lines, paid
from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.store.verify import verify_store
from tests.support.driver import start_driver
from tests.support.letters import Letter, Mail, Mailing, Posting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster"), pytest.mark.asyncio(loop_scope="module")]

Payments = Callable[..., Runtime]
ADA: dict[str, Any] = {"by": "ada", "reason": "ticket 7"}


def runtime(directory: Path, **options: Any) -> Runtime:
    options.setdefault("effects", [Paying, Mailing])
    options.setdefault("timeout_s", 60.0)
    return Runtime(directory, aggregates=[Bill, Letter], **options)


@pytest.fixture
def payments(cluster: Cluster, tmp_path: Path) -> Payments:
    """Makes a runtime over one directory."""

    def make(name: str = "payments", **options: Any) -> Runtime:
        return runtime(tmp_path / name, **options)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    """One for tests that stop nothing, each with bills and letters of its own."""
    async with runtime(tmp_path_factory.mktemp("shared") / "payments") as running:
        yield running


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return tmp_path / "bank"


async def until(found: Callable[[], Awaitable[Any]], limit_s: float = 120.0) -> None:
    """Until this comes true."""
    end_s = time.monotonic() + limit_s
    while not await found():
        assert time.monotonic() < end_s, "it takes too long"
        await asyncio.sleep(0.05)


async def booked(running: Runtime, *bills: str) -> None:
    """Until these are booked, each once."""
    for bill in bills:

        async def has(bill: str = bill) -> bool:
            return bool((await running.state_at(Bill, bill)).booked)

        await until(has)
    for bill in bills:
        assert len((await running.state_at(Bill, bill)).booked) == 1


async def test_calls_are_made_once_and_their_results_are_commands(payments: Payments, bank: Path) -> None:
    bills = [str(number) for number in range(40)]
    async with payments() as running:
        for bill in bills:
            await running.execute(Bill, bill, Pay(bank=str(bank)))
        await booked(running, *bills)
        directory = running.store.path
    async with payments() as running:
        await booked(running, *bills)
        await running.execute(Bill, "more", Pay(bank=str(bank)))
        await booked(running, "more")
    assert paid(bank) == dict.fromkeys([*bills, "more"], 1)
    assert not [words for words in lines(bank) if words[0] == "look"]
    assert verify_store(directory).ok


@pytest.mark.parametrize("how", ["hang", "raise", "exit"])
async def test_a_call_that_worked_and_has_no_end_is_looked_up_and_not_made_again(
    shared: Runtime, bank: Path, how: str
) -> None:
    await shared.execute(Bill, how, Pay(bank=str(bank), how=how))
    await booked(shared, how)
    assert paid(bank) == {how: 1}
    assert [words[0] for words in lines(bank)] == ["call", "paid", "look"]
    assert len({words[1] for words in lines(bank)}) == 1


async def test_what_was_not_done_is_called_again_and_what_is_declined_is_not(shared: Runtime, bank: Path) -> None:
    await shared.execute(Bill, "refused", Pay(bank=str(bank), how="refuse"))
    await shared.execute(Bill, "declined", Pay(bank=str(bank), how="decline"))
    await booked(shared, "refused")
    assert [words[0] for words in lines(bank) if words[2] == "refused"] == ["call", "call", "call", "paid"]
    assert [words[0] for words in lines(bank) if words[2] == "declined"] == ["call"]


async def test_a_function_that_blocks_its_event_loop_holds_no_other_class(shared: Runtime, bank: Path) -> None:
    await shared.execute(Bill, "before", Pay(bank=str(bank)))
    await booked(shared, "before")
    await shared.execute(Bill, "blocked", Pay(bank=str(bank), how="block"))
    await shared.execute(Letter, "beside", Mail(bank=str(bank)))

    async def mailed() -> bool:
        return any(words[0] == "mail" for words in lines(bank))

    await until(mailed, limit_s=15)
    await shared.execute(Bill, "after", Pay(bank=str(bank)))
    await booked(shared, "blocked", "after")
    assert paid(bank) == {"before": 1, "blocked": 1, "after": 1}


async def test_a_call_that_ends_its_runner_each_time_holds_no_other_of_its_class(
    payments: Payments, bank: Path
) -> None:
    async with payments(effects=[Posting], partitions=1) as running:
        await running.execute(Letter, "bad", Mail(bank=str(bank), how="exit"))
        good = {str(number) for number in range(8)}
        for letter in good:
            await running.execute(Letter, letter, Mail(bank=str(bank)))

        async def posted() -> bool:
            return {words[2] for words in lines(bank) if words[0] == "posted"} == good

        await until(posted, limit_s=60)


async def test_without_a_look_an_unknown_end_waits_and_is_settled(shared: Runtime, bank: Path) -> None:
    await shared.execute(Letter, "lost", Mail(bank=str(bank), how="raise"))

    async def unknown() -> bool:
        return bool(await shared.effects(state="unknown"))

    await until(unknown)
    [call] = await shared.effects()
    assert (call.effects, call.id, call.state) == ("Mailing", "lost:1", "unknown")
    assert call.why == "unknown: attempt 1 of mail: ConnectionResetError: reset"
    directory = shared.store.path
    shown = await rayfold("effects", directory, "--json", directory / "shown.json")
    assert shown.returncode == 1, shown.stderr
    assert "Mailing/lost:1 is parked: unknown: attempt 1 of mail" in " ".join(shown.stdout.split())
    assert json.loads((directory / "shown.json").read_text())["parked"][0]["state"] == "unknown"
    who = "--by", "ada", "--reason", "seen"
    settled = await rayfold("effects", directory, "settle", "Mailing/lost:1", "done", *who)
    assert settled.returncode == 0, settled.stderr
    await until(lambda: nothing_parked(shared))
    with pytest.raises(Exception, match="no_call"):
        await shared.execute(Mailing, "lost:1", Settle(outcome="done", **ADA))
    shown = await rayfold("effects", directory)
    assert shown.returncode == 0, shown.stdout
    assert [words[0] for words in lines(bank)] == ["mail"]


async def nothing_parked(running: Runtime) -> bool:
    return not await running.effects()


async def rayfold(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What this command of the command line does."""
    command = [sys.executable, "-m", "rayfold.actors.cli", *map(str, arguments)]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)


async def test_a_partition_that_is_killed_in_the_middle_of_calls_makes_none_twice(
    payments: Payments, bank: Path
) -> None:
    bills = [str(number) for number in range(120)]
    async with payments() as running:
        for number, bill in enumerate(bills):
            await running.execute(Bill, bill, Pay(bank=str(bank), how="slow" if number % 3 == 0 else "ok"))
            if number in (40, 80, 119):
                for one in (await running.status()).partitions:
                    if one.alive and one.pid:
                        os.kill(one.pid, signal.SIGKILL)
        await booked(running, *bills)
    assert paid(bank) == dict.fromkeys(bills, 1)


async def waiting_switched_off(running: Runtime, calls: int) -> bool:
    """Whether so many calls wait for being switched on."""
    couriers = [part.courier for part in (await running.status()).partitions if part.courier is not None]
    return sum(one.waiting for courier in couriers for one in courier.calls if one.state == "off") == calls


async def test_a_store_that_was_restored_calls_nothing_until_it_is_switched_on(
    payments: Payments, bank: Path, tmp_path: Path
) -> None:
    async with payments() as running:
        await running.execute(Bill, "1", Pay(bank=str(bank)))
        await booked(running, "1")
        directory = running.store.path
    backup_store(directory, tmp_path / "backup")
    restore_store(tmp_path / "backup", tmp_path / "restored")
    async with payments("restored") as running:
        await running.execute(Bill, "2", Pay(bank=str(bank)))
        await running.execute(Bill, "3", Pay(bank=str(bank)))

        await until(lambda: waiting_switched_off(running, 2))
        assert paid(bank) == {"1": 1}
        who = "--by", "ada", "--reason", "the old store is gone"
        on = await rayfold("effects", running.store.path, "on", "Paying", *who)
        assert on.returncode == 0, on.stderr
        await booked(running, "2", "3")
        await running.switch_effects(Paying, False, **ADA)
    async with payments("restored") as running:  # what was switched stays so
        await running.execute(Bill, "4", Pay(bank=str(bank)))
        await until(lambda: waiting_switched_off(running, 1))
        assert "4" not in paid(bank)
        await running.switch_effects(Paying, True, **ADA)
        await booked(running, "4")
    assert paid(bank) == {"1": 1, "2": 1, "3": 1, "4": 1}


async def test_a_runtime_that_is_stopped_waits_for_calls_that_are_on_their_way(payments: Payments, bank: Path) -> None:
    async with payments() as running:
        await running.execute(Bill, "1", Pay(bank=str(bank), how="slow"))

        async def begun() -> bool:
            return bool(lines(bank))

        await until(begun)
    async with payments() as running:
        await booked(running, "1")
    assert [words[0] for words in lines(bank)] == ["call", "paid"], "it had its end, and was not looked up"


PROGRAM = """
import sys, time
from rayfold import BlockingRuntime
from rayfold.benchmarks.torture.outside import Bill, Pay, Paying
with BlockingRuntime(sys.argv[1], aggregates=[Bill], effects=[Paying], partitions=2) as running:
    for number in range(30):
        running.execute(Bill, f"b{number}", Pay(bank=sys.argv[2], how="slow" if number % 2 else "ok"))
    print("asked", flush=True)
    time.sleep(300)
"""


async def test_a_program_that_is_killed_has_its_calls_settled_by_the_next(
    payments: Payments, bank: Path, tmp_path: Path
) -> None:
    with start_driver("-c", PROGRAM, str(tmp_path / "payments"), str(bank)) as driver:
        assert driver.stdout is not None
        assert await asyncio.to_thread(driver.stdout.readline) == "asked\n"

        async def begun() -> bool:
            return len(paid(bank)) > 5

        await until(begun)
        driver.kill()
    async with payments(effects=[Paying]) as running:
        await booked(running, *(f"b{number}" for number in range(30)))
    assert paid(bank) == {f"b{number}": 1 for number in range(30)}
