"""A program that runs a store is killed while others use it: all notice it at once, and go on with the next one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rayfold import Receipt, Unavailable, connect
from rayfold.runtime.store.store_lock import holder_of
from tests.bank import Account, BalanceOf, Balances, Deposit, Open

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def owner(store: Path) -> AsyncIterator[Process]:
    """`rayfold run`, once it is ready."""
    command = [sys.executable, "-m", "rayfold.actors.cli", "run", str(store), "tests.bank_application:bank"]
    running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    try:
        assert running.stdout is not None
        line = await asyncio.wait_for(running.stdout.readline(), 240)
        assert b"is ready: 2 partitions" in line
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
        await asyncio.wait_for(running.wait(), 60)


def raylet_of(pid: int) -> int:
    """The daemon of the Ray that a process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name == "raylet" and int(rest.split()[1]) == pid:
                return int(stat.parent.name)
    raise AssertionError(f"{pid} has no raylet")


async def test_when_the_program_that_runs_a_store_is_killed_its_clients_are_told_at_once_and_go_on_with_the_next(
    tmp_path: Path,
) -> None:
    store = tmp_path / "bank-data"
    receipts: list[Receipt] = []
    async with owner(store) as first:
        bank = await connect(store).start()
        session = bank.session()
        receipts.append(await session.execute(Account, "a", Open(owner="x")))
        receipts += [await session.execute(Account, "a", Deposit(amount=1)) for _ in range(20)]
        holder = holder_of(store)
        assert holder is not None
        assert holder.pid == first.pid
        status = await bank.status()
        for pid in [*(one.pid for one in status.partitions), *(one.pid for one in status.projectors)]:
            os.kill(pid, signal.SIGSTOP)
        waiting = [
            asyncio.ensure_future(bank.execute(Account, "a", Deposit(amount=1), timeout_s=100)),
            asyncio.ensure_future(bank.ask(Balances, BalanceOf(account="a"), after=receipts[-1], timeout_s=100)),
            asyncio.ensure_future(bank.heads()),
        ]
        await asyncio.wait(waiting, timeout=0.1)
        assert not any(one.done() for one in waiting)
        os.kill(first.pid, signal.SIGKILL)
        lost = re.compile(rf"process {first.pid} \(on .*, which ran it, was lost at 20")
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        told = [one for one in answers if isinstance(one, Unavailable) and lost.search(str(one))]
        # The kernel continues a stopped process whose parent has ended: one may have answered before its own end.
        assert all(one in told or not isinstance(one, BaseException) for one in answers), answers
        with pytest.raises(Unavailable, match="this program connects again as soon as a program runs it"):
            await bank.execute(Account, "a", Deposit(amount=1))
        health = await bank.health()
        assert (health.ok, health.connected) == (False, False)
        assert f"process {first.pid}" in health.why
    async with owner(store) as second:
        while not (await bank.health()).ok:
            await asyncio.sleep(0)
        unknown = await session.ask(Balances, BalanceOf(account="a")) - 20
        assert unknown in (0, 1)
        assert unknown == 1 or answers[0] in told
        receipts += [await session.execute(Account, "a", Deposit(amount=1)) for _ in range(20)]
        assert await session.ask(Balances, BalanceOf(account="a")) == 40 + unknown
        versions = [receipt.version for receipt in receipts]
        assert versions == [*range(1, 22), *range(22 + unknown, 42 + unknown)]
        os.kill(raylet_of(second.pid), signal.SIGKILL)
        assert second.stderr is not None
        assert await asyncio.wait_for(second.wait(), 60) == 1
        last = (await second.stderr.read()).decode().strip().splitlines()[-1]
        assert last == "error: its Ray has ended (raylet); start this command again"
        assert holder_of(store) is None
    await bank.stop()
