"""Aggregates with an actor of their own: an instant first answer, the take-over, the limit, and losing one."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import ray
import ray.util

from rayfold import (
    Aggregate,
    Command,
    Envelope,
    Event,
    OwnActor,
    Receipt,
    Rejected,
    Runtime,
    Unavailable,
    decide,
    derived_id,
    evolve,
)
from rayfold.actors.cluster.environment import OWN_ACTOR_SLOT
from rayfold.actors.cluster.rpc import Reply
from rayfold.actors.observe.status import OwnActorStatus
from rayfold.actors.partition.own_actor import PartitionLog
from rayfold.actors.settings import Settings
from rayfold.benchmarks.harness.processes import processes_below
from tests.actors.conftest import OWN_ACTORS, Bank
from tests.bank import Account, BalanceOf, Balances, Deposit, Open, Retrieve, Store, Vault
from tests.support.log_walk import check_nothing_lost_nothing_twice

pytestmark = pytest.mark.slow


def test_what_waits_for_its_partition_is_not_user_code_that_takes_long() -> None:
    seen: list[bytes] = []

    class Home:
        @property
        def secret(self) -> Any:
            return self

        def remote(self) -> Any:
            seen.append(log.in_hand.now())
            answer: Future[Reply[bytes]] = Future()
            answer.set_result(Reply(b"secret"))
            return SimpleNamespace(future=lambda: answer)

    plan: Any = SimpleNamespace(home=Home(), settings=Settings())
    log = PartitionLog(plan)
    log.in_hand.begin(bytes(16))
    assert log.secret() == b"secret"
    assert seen == [b""]
    assert log.in_hand.now() == bytes(16)


async def own_actors(
    running: Runtime,
    enough: Callable[[list[OwnActorStatus]], bool],
    again: Callable[[], Coroutine[Any, Any, object]],
) -> list[OwnActorStatus]:
    """The own actors, once there are enough of them; each look also lets the partitions hand over. `again`: a command
    to those that are awaited. A partition gives up on one that does not start for some seconds, as on a machine that is
    busy with more, and tries again no sooner than with a command to it."""
    looks = 0
    while not enough(own := (await running.status()).own_actors):
        await asyncio.sleep(0.05)
        looks += 1
        if not looks % LOOKS_BETWEEN:
            await again()
    return own


LOOKS_BETWEEN = 100
"""Polls of a partition, 5 s or more, after which it is given another command."""


def asked(running: Runtime, *vaults: str) -> Callable[[], Coroutine[Any, Any, object]]:
    """A command to each of these vaults of which nothing is stored."""

    async def ask() -> None:
        for vault in vaults:
            with pytest.raises(Rejected, match="not_there"):
                await running.execute(Vault, vault, Retrieve(thing="what is not stored"))

    return ask


async def things(count: int, vault: str = "v") -> AsyncIterator[Envelope]:
    for number in range(count):
        yield Envelope(Vault, vault, Store(thing=f"thing {number}"))


async def test_a_command_that_is_known_to_be_quick_is_answered_at_once_and_the_own_actor_takes_over_later(
    bank: Bank,
) -> None:
    async with bank(projections=[]) as running:
        await running.execute(Vault, "w", Store(thing="ring"))  # not known yet: it waits for its own actor
        [unknown] = await own_actors(running, bool, asked(running, "w"))
        for vault in ("v", "x", "y"):
            first = await running.execute(Vault, vault, Store(thing="ring"))
            if first.stream not in {one.stream for one in (await running.status()).own_actors}:
                break  # on a busy machine a first command may be a slow one
        else:
            pytest.fail("no first command was answered before there was an own actor")

        def there(own: list[OwnActorStatus]) -> bool:
            return first.stream in {one.stream for one in own}

        own = next(one for one in await own_actors(running, there, asked(running, vault)) if one.stream == first.stream)
        assert own.name != unknown.name
        assert own.pid not in {one.pid for one in (await running.status()).partitions}
        while named(vault) != [own.name]:  # those that were given up may take a moment to end
            await asyncio.sleep(0.05)
        second = await running.execute(Vault, vault, Store(thing="crown"))
        assert (second.version, second.position) == (2, first.position + 1)
    assert named(vault) == []


def named(vault: str) -> list[str]:
    """The names of the actors of a vault, as Ray knows them."""
    return [name for name in ray.util.list_named_actors() if f"Vault/{vault}" in name]


class Ponder(Command):
    """Take your time."""

    seconds: float


class Pondered(Event):
    """It did."""


class Ponderer(Aggregate, placement=OwnActor()):
    """Decides slowly."""

    @decide
    def ponder(self, command: Ponder) -> Pondered:
        threading.Event().wait(command.seconds)
        return Pondered()

    @evolve
    def pondered(self, event: Pondered) -> None:
        pass


async def test_an_own_actor_may_take_as_long_as_its_caller_waits_and_is_ended_after_that(tmp_path: Path) -> None:
    settings = Settings(attempt_timeout_s=0.3, timeout_s=60.0)
    async with Runtime(tmp_path / "store", aggregates=[Ponderer, Account], settings=settings, partitions=1) as running:
        ponder_briefly = partial(running.execute, Ponderer, "p", Ponder(seconds=0))
        await ponder_briefly()
        [own] = await own_actors(running, bool, ponder_briefly)
        before = (await ponder_briefly()).version
        slow = asyncio.create_task(running.execute(Ponderer, "p", Ponder(seconds=1.5)))
        await running.execute(Account, "alice", Open(owner="alice"))
        assert not slow.done()
        receipt = await slow
        assert (receipt.version, receipt.repeated) == (before + 1, False)
        assert [one.name for one in (await running.status()).own_actors] == [own.name]
        with pytest.raises(Unavailable):
            await running.execute(Ponderer, "p", Ponder(seconds=60), timeout_s=0.5)
        assert (await ponder_briefly()).version == before + 2


async def test_the_rules_and_the_repeats_are_the_same_in_an_own_actor(bank: Bank) -> None:
    async with bank(projections=[]) as running:
        before = await running.execute(Vault, "v", Store(thing="ring"), command_id=derived_id(1))
        await own_actors(running, bool, asked(running, "v"))
        later = await running.execute(Vault, "v", Store(thing="crown"), command_id=derived_id(2))
        ring = running.execute(Vault, "v", Store(thing="ring"), command_id=derived_id(1))
        crown = running.execute(Vault, "v", Store(thing="crown"), command_id=derived_id(2))
        assert list(await asyncio.gather(ring, crown)) == [
            before._replace(repeated=True),
            later._replace(repeated=True),
        ]
        sent = [
            Envelope(Vault, "v", Store(thing="ring"), derived_id(1)),
            Envelope(Vault, "v", Store(thing="ring")),
            Envelope(Vault, "v", Retrieve(thing="ring")),
            Envelope(Vault, "v", Store(thing="ring"), derived_id(3)),
            Envelope(Vault, "v", Store(thing="ring"), derived_id(3)),
        ]
        outcomes = [outcome async for _, outcome in running.execute_all(sent)]
        told = [
            outcome.reason if isinstance(outcome, Rejected) else getattr(outcome, "version", outcome)
            for outcome in outcomes
        ]
        assert told == [1, "already_there", 3, 4, 4]
        assert isinstance(outcomes[4], Receipt)
        assert outcomes[4].repeated


async def test_the_order_of_one_callers_commands_is_kept_across_the_move(bank: Bank) -> None:
    async with bank(projections=[]) as running:
        receipts: list[Receipt] = []
        moved = asyncio.ensure_future(own_actors(running, bool, asked(running, "v")))

        async def until_some_time_after_the_move() -> AsyncIterator[Envelope]:
            after = 0
            while after < 3000:
                after += moved.done()
                yield Envelope(Vault, "v", Store(thing=str(uuid4())))

        async for _, outcome in running.execute_all(until_some_time_after_the_move(), in_flight=64):
            assert isinstance(outcome, Receipt), outcome
            receipts.append(outcome)
        assert [receipt.version for receipt in receipts] == list(range(1, len(receipts) + 1))
        check_nothing_lost_nothing_twice(running.store.path, receipts)


async def test_an_own_actor_that_is_killed_loses_nothing_and_is_replaced(bank: Bank) -> None:
    async with bank(projections=[]) as running:
        await running.execute(Vault, "v", Store(thing="first"))
        [own] = await own_actors(running, bool, asked(running, "v"))
        receipts: list[Receipt] = []
        async for _, outcome in running.execute_all(things(3000), in_flight=64):
            assert isinstance(outcome, Receipt), outcome
            receipts.append(outcome)
            if len(receipts) == 1000:
                os.kill(own.pid, signal.SIGKILL)
        assert [receipt.version for receipt in receipts] == list(range(2, 3002))
        check_nothing_lost_nothing_twice(running.store.path, receipts)
        await running.execute(Vault, "v", Store(thing="last"))
        [new] = await own_actors(
            running, lambda own_now: bool(own_now) and own_now[0].pid != own.pid, asked(running, "v")
        )
        assert new.name != own.name


async def test_a_flood_of_aggregates_gets_no_more_own_actors_than_allowed(bank: Bank) -> None:
    async with bank(projections=[]) as running:
        sent = (Envelope(Vault, f"v{number}", Store(thing="ring")) for number in range(5000))
        outcomes = [outcome async for _, outcome in running.execute_all(sent)]
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        await own_actors(running, lambda own: len(own) >= OWN_ACTORS - 1, asked(running, "v0", "v1", "v2", "v3"))
        slots = int(ray.cluster_resources()[OWN_ACTOR_SLOT])  # more, where another test of this process started Ray
        allowed = min(slots, OWN_ACTORS * len((await running.status()).partitions))
        for _ in range(20):
            assert len((await running.status()).own_actors) <= allowed
        again = (Envelope(Vault, f"v{number}", Retrieve(thing="ring")) for number in range(5000))
        assert all([isinstance(outcome, Receipt) async for _, outcome in running.execute_all(again)])


async def test_a_flood_of_100_000_unknown_ids_costs_no_process_no_memory_and_no_trace(bank: Bank) -> None:
    async with bank(projections=[Balances]) as running:
        await running.execute(Account, "known", Open(owner="x"))
        status = await running.status()
        pids = [one.pid for one in status.partitions] + [one.pid for one in status.projectors]
        before, resident_kib = processes_below(os.getpid()), max(map(resident_kib_of, pids))
        commands = (
            Envelope(Vault, f"v{number}", Retrieve(thing="ring"))
            if number % 2
            else Envelope(Account, f"a{number}", Deposit(amount=1))
            for number in range(100_000)
        )
        told = Counter([getattr(outcome, "reason", "") async for _, outcome in running.execute_all(commands)])
        assert told == {"not_there": 50_000, "does_not_exist": 50_000}
        heads = await running.heads()
        for after, numbers in ((None, range(50_000)), (heads, range(50_000, 100_000))):
            queries = (BalanceOf(account=f"a{number}") for number in numbers)
            answers = Counter([answer async for _, answer in running.ask_all(Balances, queries, after=after)])
            assert answers == {0: 50_000}
        assert sum(heads.values()) == 1
        assert (await running.status()).own_actors == []
        assert len(processes_below(os.getpid()) - before) <= 2, "a worker that Ray starts ahead of need, or two"
        assert max(map(resident_kib_of, pids)) < resident_kib + 50_000


def resident_kib_of(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


async def test_an_idle_own_actor_gives_its_place_back_and_its_aggregate_goes_on(bank: Bank) -> None:
    async with bank(projections=[], settings=Settings(own_actor_idle_s=0.2)) as running:
        await running.execute(Vault, "v", Store(thing="ring"))
        await own_actors(running, bool, asked(running, "v"))
        while (await running.status()).own_actors:
            await asyncio.sleep(0.05)
        assert (await running.execute(Vault, "v", Retrieve(thing="ring"))).version == 2


async def test_without_room_for_own_actors_everything_stays_shared(bank: Bank) -> None:
    async with bank(projections=[], own_actors_max=0) as running:
        for number in range(3):
            assert (await running.execute(Vault, "v", Store(thing=str(number)))).version == number + 1
        assert (await running.status()).own_actors == []


async def test_shared_aggregates_never_get_an_actor(bank: Bank) -> None:
    async with bank(projections=[]) as running:
        for number in range(50):
            await running.execute(Account, f"a{number}", Open(owner="x"))
        assert (await running.status()).own_actors == []
        assert [name for name in ray.util.list_named_actors() if "Account/" in name] == []
