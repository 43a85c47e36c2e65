"""Rebuilds that no caller notices: the old read model serves until the new one has caught up, whatever happens.

One runtime for most tests of this file: they run in order, each a later version of `Balances`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rayfold import (
    CallerError,
    Envelope,
    HandlerFailed,
    Projection,
    Query,
    RebuildCancelled,
    RebuildProgress,
    Receipt,
    Recorded,
    Runtime,
    answer,
    project,
)
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.system.local import LocalSystem
from tests.bank import Account, BalanceOf, Balances, Deposit, EventsSeen, Open, Opened
from tests.support.read_models import BalancesInMills, BrokenBalances, DividedBalances, SlowBalances

pytestmark = pytest.mark.slow

EVENTS = 1500


@pytest.fixture
async def bank(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Runtime]:
    """With enough in its log that a slow read model takes some seconds."""
    async with runtime(tmp_path) as running:
        await running.execute(Account, "a", Open(owner="x"))
        deposits = (Envelope(Account, "a", Deposit(amount=1)) for _ in range(EVENTS - 1))
        async for _, outcome in running.execute_all(deposits):
            assert isinstance(outcome, Receipt), outcome
        yield running


def runtime(path: Path, projection: type = Balances) -> Runtime:
    return Runtime(path / "bank-data", aggregates=[Account], projections=[projection], partitions=1, timeout_s=30)


def builds(bank: Runtime) -> list[str]:
    return sorted(folder.name for folder in (bank.store.path / "projections").iterdir())


async def balance(bank: Runtime) -> int:
    return await bank.ask(Balances, BalanceOf(account="a"), after=await bank.heads())


async def test_a_new_version_takes_over_between_two_queries_while_commands_arrive(
    bank: Runtime, tmp_path: Path
) -> None:
    answers: list[tuple[int, int]] = []
    over = asyncio.Event()

    async def use() -> None:
        """A cent more, and a query for the balance: in cents or in mills, and exact in either."""
        cents = EVENTS - 1
        while not over.is_set():
            receipt = await bank.execute(Account, "a", Deposit(amount=1))
            cents += 1
            answers.append((cents, await bank.ask(Balances, BalanceOf(account="a"), after=receipt)))

    using = asyncio.create_task(use())
    rebuild = bank.rebuild(BalancesInMills)
    with pytest.raises(CallerError, match="Balances cannot be rebuilt now: another change of it is under way"):
        bank.rebuild(BalancesInMills)
    done = await rebuild
    over.set()
    await using
    served_by_the_new = [answer == 10 * cents for cents, answer in answers]
    assert [answer for cents, answer in answers if answer not in (cents, 10 * cents)] == []
    assert served_by_the_new == sorted(served_by_the_new), "once the new one serves, the old one never does again"
    assert (served_by_the_new[0], done.serving) == (False, True)
    assert await balance(bank) == 10 * (EVENTS - 1 + len(answers))
    assert builds(bank) == ["Balances-v2"]
    with pytest.raises(CallerError, match="Balances version 1 is older than version 2, which serves"):
        bank.rebuild(Balances)
    await bank.stop()
    async with runtime(tmp_path, BalancesInMills) as again:
        assert await balance(again) == 10 * (EVENTS - 1 + len(answers))
        [projector] = (await again.status()).projectors
        assert projector.events_applied == 0, "it started from the checkpoint of the version that took over"


async def test_a_rebuild_tells_its_progress_and_survives_the_death_of_its_projector(bank: Runtime) -> None:
    rebuild = bank.rebuild(SlowBalances)
    seen: list[RebuildProgress] = []
    killed = False
    async for progress in rebuild:
        seen.append(progress)
        if progress.events and not killed:
            killed = True
            assert isinstance(bank._active, LocalSystem)
            [building] = bank._active.fleet.joining[0].projectors
            [place] = await bank._active.fleet.places([building])
            os.kill(place.pid, signal.SIGKILL)
    done = await rebuild
    assert (done.events, done.total, done.remaining_s, done.serving) == (EVENTS, EVENTS, 0.0, True)
    midway = [progress for progress in seen if 0 < progress.events < EVENTS]
    assert killed
    assert all(progress.total == EVENTS for progress in midway)
    assert any(progress.remaining_s and progress.events_per_s > 0 for progress in midway)
    assert not any(progress.serving for progress in midway)
    assert await balance(bank) == EVENTS - 1
    assert await bank.ask(SlowBalances, EventsSeen()) == 0, "all of them were marked as replayed"
    after = await bank.execute(Account, "a", Deposit(amount=1))
    assert await bank.ask(SlowBalances, EventsSeen(), after=after) == 1


async def test_a_cancelled_rebuild_leaves_nothing_and_the_old_read_model_serves_on(bank: Runtime) -> None:
    rebuild = bank.rebuild(SlowBalances)
    async for progress in rebuild:
        if progress.events:
            await rebuild.cancel()
    with pytest.raises(RebuildCancelled, match="the rebuild of Balances version 3 was cancelled; what served before"):
        await rebuild
    assert not rebuild.progress().serving
    assert builds(bank) == ["Balances-v1"]
    assert await balance(bank) == EVENTS - 1
    at_once = bank.rebuild(SlowBalances)
    await at_once.cancel()
    with pytest.raises(RebuildCancelled):
        await at_once
    assert builds(bank) == ["Balances-v1"]
    await bank.scale(Balances, replicas=1)


async def test_an_interrupted_rebuild_is_resumed_where_it_was(bank: Runtime, tmp_path: Path) -> None:
    rebuild = bank.rebuild(SlowBalances)
    reached = 0
    async for progress in rebuild:
        reached = progress.events
        if reached > EVENTS / 4:
            break
    await bank.stop()
    with pytest.raises(RebuildCancelled, match="was interrupted by the end of the runtime"):
        await rebuild
    async with runtime(tmp_path) as again:
        assert await balance(again) == EVENTS - 1
        assert builds(again) == ["Balances-v1", "Balances-v3"]
        resumed = again.rebuild(SlowBalances)
        first = await anext(progress async for progress in resumed if progress.total)
        assert first.events >= reached
        await resumed
        assert builds(again) == ["Balances-v3"]
        assert await balance(again) == EVENTS - 1


async def test_a_rebuild_that_fails_says_why_and_the_old_read_model_serves_on(bank: Runtime) -> None:
    with pytest.raises(HandlerFailed, match=r"BrokenBalances\.deposited failed on event 2 .*LookupError: a mistake"):
        await bank.rebuild(BrokenBalances)
    assert await balance(bank) == EVENTS - 1


async def test_a_rebuild_may_divide_a_read_model_into_parts(bank: Runtime) -> None:
    await bank.execute(Account, "b", Open(owner="x"))
    await bank.execute(Account, "b", Deposit(amount=7))
    await bank.rebuild(DividedBalances)
    assert await balance(bank) == EVENTS - 1
    assert await bank.ask(Balances, BalanceOf(account="b")) == 7
    assert [one.part for one in (await bank.status()).projectors] == [0, 1, 2]


async def test_the_same_version_is_built_anew_and_a_restart_goes_on_with_that(bank: Runtime, tmp_path: Path) -> None:
    assert (await bank.rebuild(Balances)).serving
    assert builds(bank) == ["Balances-v1.2"]
    assert await balance(bank) == EVENTS - 1
    await bank.stop()
    async with runtime(tmp_path) as again:
        assert await balance(again) == EVENTS - 1
        [projector] = (await again.status()).projectors
        assert projector.events_applied == 0


class Places(Query[list[tuple[int, int]]]):
    """Partition and position of each account, as the dict lists them."""


class Listed(Projection):
    places: dict[str, tuple[int, int]] = {}

    @project
    def opened(self, event: Opened, recorded: Recorded) -> None:
        self.places[recorded.aggregate_id] = (recorded.partition, recorded.position)

    @answer
    def all_places(self, query: Places) -> list[tuple[int, int]]:
        return list(self.places.values())


async def test_a_rebuilt_read_model_has_its_rows_by_partition_and_then_by_position(
    cluster: Cluster, tmp_path: Path
) -> None:
    del cluster
    directory = tmp_path / "bank-data"
    async with Runtime(directory, aggregates=[Account], projections=[Listed], partitions=3, timeout_s=30) as bank:
        live: list[tuple[int, int]] = []
        for number in range(24):
            receipt = await bank.execute(Account, f"account-{number}", Open(owner="x"), until=Listed)
            live.append((receipt.partition, receipt.position))
        assert await bank.ask(Listed, Places()) == live != sorted(live), "one partition after the other by chance"
        await bank.rebuild(Listed)
        assert await bank.ask(Listed, Places()) == sorted(live)
        with await bank.replica(Listed) as embedded:
            assert embedded.ask(Places()) == sorted(live)
        assert await bank.as_of(Listed, await bank.heads(), Places()) == sorted(live)
