"""Subscriptions of a running system: catch-up and live, cancelled and resumed, in another process, and at its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rayfold import BlockingRuntime, CallerError, Receipt, Runtime, StreamId, Subscription, SubscriptionInUse
from rayfold.actors.cluster.ray_cluster import Cluster
from tests.bank import Account, Deposit, Deposited, Open, Opened, Vault

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

of_one_loop = pytest.mark.asyncio(loop_scope="module")

READS_ALONG = """
import sys
from itertools import islice
from rayfold import subscribe
from tests.bank import Account, Vault
for event, _ in islice(subscribe(sys.argv[1], aggregates=[Account, Vault], types=["Opened"]), int(sys.argv[2])):
    print(event.owner, flush=True)
assert "ray" not in sys.modules
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bank(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    """A runtime for all tests here, each of which has accounts of its own."""
    async with Runtime(tmp_path_factory.mktemp("subscriptions") / "bank-data", aggregates=[Account, Vault]) as running:
        yield running


async def deposit(bank: Runtime, account: str, *amounts: int) -> list[Receipt]:
    """Open the account if that is needed, and put amounts in."""
    receipts: list[Receipt] = []
    for amount in amounts:
        if not receipts and amount == 1:
            await bank.execute(Account, account, Open(owner=account))
        receipts.append(await bank.execute(Account, account, Deposit(amount=amount)))
    return receipts


async def amounts(subscription: Subscription, count: int) -> list[int]:
    found: list[int] = []
    async for event, _ in subscription:
        if isinstance(event, Deposited):
            found.append(event.amount)
        if len(found) == count:
            break
    return found


@of_one_loop
async def test_a_subscription_catches_up_and_goes_on_live(bank: Runtime) -> None:
    await deposit(bank, "live", 1, 2)
    async with bank.subscribe(types=[Deposited], streams=["Account/live"]) as subscription:
        assert await amounts(subscription, 2) == [1, 2]
        waiting = asyncio.create_task(amounts(subscription, 1))
        [receipt] = await deposit(bank, "live", 3)
        assert await waiting == [3]
        assert subscription.positions[receipt.partition] >= receipt.position
    assert [happened async for happened in subscription] == [], "it is closed"


@of_one_loop
async def test_nothing_is_lost_to_a_cancellation(bank: Runtime) -> None:
    await deposit(bank, "patient", *range(1, 21))
    async with bank.subscribe(types=[Deposited], streams=["Account/patient"]) as subscription:
        found: list[int] = []
        for turns in range(2_000):
            asking = asyncio.ensure_future(anext(subscription))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            if not asking.done():
                asking.cancel()
            [one] = await asyncio.gather(asking, return_exceptions=True)
            if not isinstance(one, BaseException):
                assert isinstance(one[0], Deposited)
                found.append(one[0].amount)
            if len(found) == 20:
                break
        else:
            found += await amounts(subscription, 20 - len(found))
    assert found == [*range(1, 21)]


@of_one_loop
async def test_acknowledged_by_hand_it_goes_on_after_the_last_one(bank: Runtime) -> None:
    await deposit(bank, "mail", 1, 2, 3)
    chosen = {"types": [Deposited], "streams": ["Account/mail"], "acknowledge": "by hand"}
    async with bank.subscribe("mailer", **chosen) as subscription:  # type: ignore[call-overload]
        await amounts(subscription, 1)
        _, second = await anext(subscription)
        await subscription.acknowledge(second)
        with pytest.raises(SubscriptionInUse, match="subscription 'mailer': member 0 of 1 is in use"):
            bank.subscribe("mailer")
    async for event, _ in bank.subscribe("mailer", **chosen):  # type: ignore[call-overload]
        assert event == Deposited(amount=3)
        break
    bank.subscribe("mailer").close()


@of_one_loop
async def test_batches_are_acknowledged_when_the_next_is_asked_for(bank: Runtime) -> None:
    await deposit(bank, "batched", 1, 2, 3)
    subscription = bank.subscribe("batcher", types=[Deposited], streams=["Account/batched"])
    sizes: list[int] = []
    async for batch in subscription.batches(max_items=2):
        sizes.append(len(batch))
        if sum(sizes) == 3:
            break
    assert sizes == [2, 1]
    subscription.close()
    async with bank.subscribe("batcher", types=[Deposited], streams=["Account/batched"]) as again:
        assert await amounts(again, 1) == [3]


@of_one_loop
async def test_a_process_of_its_own_reads_along_without_ray(bank: Runtime) -> None:
    await bank.execute(Account, "first", Open(owner="first"))
    opened = 1 + sum([1 async for _ in _so_far(bank)])
    reading = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", READS_ALONG, str(bank.store.path), str(opened)), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert reading.stdout is not None
    for _ in range(opened - 1):
        await reading.stdout.readline()
    await bank.execute(Account, "last", Open(owner="the last"))
    assert await reading.stdout.readline() == b"the last\n"
    assert await reading.wait() == 0


HOLDS = """
import sys
from rayfold import connect_blocking, subscribe
from tests.bank import Account, Vault
chosen = {"types": ["Deposited"], "streams": "Account/shared", "acknowledge": "by hand"}
if sys.argv[2] == "reads":
    events = subscribe(sys.argv[1], "shared", aggregates=[Account, Vault], **chosen)
else:
    bank = connect_blocking(sys.argv[1]).start()
    events = bank.subscribe("shared", **chosen)
print(next(events)[0].amount, flush=True)
sys.stdin.readline()
events.acknowledge()
print(next(events)[0].amount, flush=True)
sys.stdin.readline()
assert "ray" not in sys.modules
"""


@of_one_loop
async def test_programs_of_every_kind_share_the_names_of_a_store_and_their_places(bank: Runtime) -> None:
    await deposit(bank, "shared", *range(1, 8))
    chosen = {"types": [Deposited], "streams": ["Account/shared"], "acknowledge": "by hand"}
    expected = 1
    for kind in ("reads", "connects", "reads"):
        command = (sys.executable, "-c", HOLDS, str(bank.store.path), kind)
        program = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert program.stdin is not None
        assert program.stdout is not None
        assert await program.stdout.readline() == f"{expected}\n".encode()
        with pytest.raises(SubscriptionInUse, match=f"process {program.pid} on"):
            bank.subscribe("shared")
        program.stdin.write(b"\n")
        assert await program.stdout.readline() == f"{expected + 1}\n".encode()
        program.kill()
        await program.wait()
        async with bank.subscribe("shared", **chosen) as events:  # type: ignore[call-overload]
            assert await amounts(events, 1) == [expected + 1], "what it was at when it was killed"
            await events.acknowledge()
        expected += 2
    [status] = [one for one in await bank.subscriptions() if one.name == "shared"]
    assert (status.members, status.holders) == (1, {})
    assert await bank.forget_subscription("shared")
    assert not await bank.forget_subscription("shared")


async def _so_far(bank: Runtime) -> AsyncIterator[object]:
    """The accounts that are open by now."""
    async for event, _ in bank.events(types="Opened"):
        yield event


@of_one_loop
async def test_events_in_bulk_end_with_what_was_committed_at_the_call(bank: Runtime) -> None:
    await deposit(bank, "bulk", *range(1, 8))
    events = bank.events(streams=[StreamId("Account", "bulk")])
    heads = await bank.heads()
    await deposit(bank, "bulk", 8)
    assert [one async for one in events] == await bank.history(Account, "bulk", to_version=8)
    assert events.positions == heads
    async with bank.events(types=Deposited, since=events.positions) as rest:
        assert [batch async for batch in rest.batches(2)] == [(await bank.history(Account, "bulk", from_version=9))]


@of_one_loop
async def test_nothing_of_a_bulk_read_is_lost_to_a_cancellation(bank: Runtime) -> None:
    await deposit(bank, "long", *range(1, 21))
    events, found = bank.events(), list[object]()
    for turns in range(2_000):
        asking = asyncio.ensure_future(anext(events, None))
        for _ in range(turns % 4):
            await asyncio.sleep(0)
        if not asking.done():
            asking.cancel()
        [one] = await asyncio.gather(asking, return_exceptions=True)
        if one is None:
            break
        found += [] if isinstance(one, BaseException) else [one]
    found += [one async for one in events]  # a busy machine may have read nothing yet
    assert found == [one async for one in bank.events()]


def test_a_blocking_subscription_ends_with_its_runtime(cluster: Cluster, tmp_path: Path) -> None:
    with BlockingRuntime(tmp_path / "bank-data", aggregates=[Account], partitions=1) as bank:
        bank.execute(Account, "alice", Open(owner="Ada"))
        subscription = bank.subscribe("mailer")
        _, recorded = next(subscription)
        assert recorded.stream.id == "alice"
        bank.execute(Account, "alice", Deposit(amount=5))
        assert next(subscription)[0] == Deposited(amount=5)
        assert [event for event, _ in bank.events()] == [Opened(owner="Ada"), Deposited(amount=5)]
        events = bank.events()
        next(events)
    assert [event for event, _ in events] == [Deposited(amount=5)], "it only reads, and so outlives the runtime"
    assert list(subscription) == []
    with pytest.raises(CallerError, match="is not running"):
        bank.subscribe()
