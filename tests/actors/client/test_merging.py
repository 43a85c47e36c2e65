"""`merge=` functions beside the event loop: slow ones delay nothing else, and what they raise is reported."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rayfold import HandlerFailed, Projection, Query, Runtime, Unavailable, answer, project
from rayfold.actors.client.merging import THREADS_MAX, cannot_wait, merge_in_thread
from rayfold.actors.cluster.ray_cluster import Cluster
from tests.bank import Account, BalanceOf, Balances, Deposited, Open

pytestmark = pytest.mark.slow

GO_ON = threading.Event()


def waits(answers: list[int]) -> int:
    GO_ON.wait(30)
    return sum(answers)


class All(Query[int]):
    """Of all parts."""


class Parts(Projection, parts=2):
    """Its answers are merged by a function that waits."""

    count: int = 0

    @project
    def deposited(self, event: Deposited) -> None:
        self.count += 1

    @answer(merge=waits)
    def asked(self, query: All) -> int:
        return self.count


async def test_a_merge_that_waits_holds_its_own_query_alone(cluster: Cluster, tmp_path: Path) -> None:
    GO_ON.clear()
    async with Runtime(
        tmp_path / "store", aggregates=[Account], projections=[Parts, Balances], partitions=1
    ) as running:
        receipt = await running.execute(Account, "alice", Open(owner="Ada"))
        slow = asyncio.create_task(running.ask(Parts, All(), timeout_s=60))
        with pytest.raises(Unavailable, match="Parts All: its merge= did not return in time"):
            await running.ask(Parts, All(), timeout_s=0.5)
        assert await running.ask(Balances, BalanceOf(account="alice"), after=receipt) == 0
        assert not slow.done()
        GO_ON.set()
        assert await slow == 0


async def test_what_merges_raise_and_return_is_told_to_each(cluster: Cluster) -> None:
    del cluster

    def fails() -> Any:
        raise KeyError("part")

    def exits() -> Any:
        raise SystemExit(3)

    merges: list[Callable[[], Any]] = [partial(int, number) for number in range(50)]
    told = await asyncio.gather(*(merge_in_thread("All", merge, 30.0) for merge in (*merges, fails, exits)))
    assert told[:50] == list(range(50))
    assert [type(one) for one in told[50:]] == [HandlerFailed, HandlerFailed]


async def test_those_that_wait_hold_others_until_their_own_deadlines(cluster: Cluster) -> None:
    del cluster
    GO_ON.clear()
    slow = [asyncio.create_task(merge_in_thread("Slow", lambda: waits([1]), 30.0)) for _ in range(THREADS_MAX)]
    await asyncio.sleep(0)
    assert isinstance(await merge_in_thread("Quick", lambda: 7, 0.1), Unavailable)
    GO_ON.set()
    assert await asyncio.gather(*slow) == [1] * THREADS_MAX
    assert await merge_in_thread("Quick", lambda: 7, 30.0) == 7


def test_only_functions_of_pythons_own_on_numbers_are_called_in_the_event_loop() -> None:
    assert cannot_wait(sum, [1, 2.5])
    assert not cannot_wait(sum, [1, True])
    assert not cannot_wait(max, ["a", "b"])
    assert not cannot_wait(waits, [1])
    assert not cannot_wait(None, [1])
