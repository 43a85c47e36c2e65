"""Processes killed in the middle of the work: every acknowledged event is there, once, and everything goes on."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from msgpack import unpackb

from rayfold import Envelope, Receipt, Rejected, Runtime, Unavailable, derived_id
from tests.actors.conftest import Bank
from tests.actors.partition.test_own_actors import asked, own_actors
from tests.bank import Account, BalanceOf, Balances, Deposit, EventsSeen, Open, Store, Turnover, Vault
from tests.support.log_walk import check_nothing_lost_nothing_twice, stored_events

pytestmark = pytest.mark.slow

ACCOUNTS, VAULTS, COMMANDS = 994, 6, 10_000


def envelopes() -> list[Envelope]:
    """10,000 commands to 1,000 aggregates: every account is opened first, and ten per cent of the load are vaults."""
    sent = [Envelope(Account, f"a{number}", Open(owner="x")) for number in range(ACCOUNTS)]
    for number in range(COMMANDS - ACCOUNTS):
        if number % 10:
            sent.append(Envelope(Account, f"a{number % ACCOUNTS}", Deposit(amount=1 + number % 7)))
        else:
            sent.append(Envelope(Vault, f"v{number // 10 % VAULTS}", Store(thing=str(number))))
    return sent


async def kill_one_of_each(running: Runtime) -> None:
    """A partition, an own actor and a projector, each by its process id."""
    status = await running.status()
    own = await own_actors(running, bool, asked(running, "v0"))
    for pid in (status.partitions[0].pid, own[0].pid, status.projectors[0].pid):
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0)


async def test_ten_thousand_commands_with_every_kind_of_process_killed_in_the_middle(bank: Bank) -> None:
    async with bank(timeout_s=30, replicas=2) as running:
        receipts: list[Receipt] = []
        async for _, outcome in running.execute_all(envelopes(), in_flight=512):
            assert isinstance(outcome, Receipt), outcome
            receipts.append(outcome)
            if len(receipts) == COMMANDS // 2:
                await kill_one_of_each(running)
        assert len(receipts) == COMMANDS
        heads = await running.heads()
        assert sum(heads.values()) == COMMANDS
        check_nothing_lost_nothing_twice(running.store.path, receipts)
        seen = [running.ask(Turnover, EventsSeen(), after=heads, timeout_s=30) for _ in range(8)]
        assert set(await asyncio.gather(*seen)) == {COMMANDS - (COMMANDS - ACCOUNTS + 9) // 10}
        deposits = [envelope.command for envelope in envelopes() if envelope.id == "a3"][1:]
        expected = sum(command.amount for command in deposits if isinstance(command, Deposit))
        answers = [running.ask(Balances, BalanceOf(account="a3"), after=heads) for _ in range(8)]
        assert set(await asyncio.gather(*answers)) == {expected}


async def test_a_partition_killed_again_and_again_keeps_its_promises(bank: Bank) -> None:
    async with bank(timeout_s=60, projections=[], partitions=1) as running:
        await running.execute(Account, "a", Open(owner="x"))
        receipts: list[Receipt] = []
        deposits = (Envelope(Account, "a", Deposit(amount=1)) for _ in range(3000))
        async for _, outcome in running.execute_all(deposits, in_flight=100):
            assert isinstance(outcome, Receipt), outcome
            receipts.append(outcome)
            if len(receipts) % 700 == 0:
                [partition] = (await running.status()).partitions
                os.kill(partition.pid, signal.SIGKILL)
        assert [receipt.version for receipt in receipts] == list(range(2, 3002))
        [partition] = (await running.status()).partitions
        assert partition.epoch == 5
        check_nothing_lost_nothing_twice(running.store.path, receipts)


async def test_a_projector_killed_while_events_arrive_catches_up_and_answers(bank: Bank) -> None:
    async with bank(projections=[Turnover]) as running:
        await running.execute(Account, "a", Open(owner="x"))
        deposits = (Envelope(Account, "a", Deposit(amount=1)) for _ in range(1000))
        count = 0
        async for _, outcome in running.execute_all(deposits, in_flight=50):
            count += isinstance(outcome, Receipt)
            if count == 500:
                [projector] = (await running.status()).projectors
                os.kill(projector.pid, signal.SIGKILL)
        assert await running.ask(Turnover, EventsSeen(), after=await running.heads(), timeout_s=30) == 1001


async def test_a_command_to_a_partition_that_stays_away_is_unavailable_and_may_be_sent_again(bank: Bank) -> None:
    async with bank(projections=[], partitions=1) as running:
        await running.execute(Account, "a", Open(owner="x"))
        [partition] = (await running.status()).partitions
        os.kill(partition.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match=r"Account/a: no answer in time; it may have taken effect"):
                await running.execute(Account, "a", Deposit(amount=1), command_id=derived_id(1), timeout_s=0.5)
        finally:
            os.kill(partition.pid, signal.SIGCONT)
        receipt = await running.execute(Account, "a", Deposit(amount=1), command_id=derived_id(1))
        assert receipt.version == 2
        with pytest.raises(Rejected):
            await running.execute(Account, "a", Open(owner="x"))
        assert len(stored_events(running.store.path)[0]) == 2


async def test_a_partition_whose_log_was_taken_over_ends_and_comes_back_with_a_later_epoch(bank: Bank) -> None:
    async with bank(projections=[], partitions=1, timeout_s=30) as running:
        await running.execute(Account, "a", Open(owner="x"))
        [before] = (await running.status()).partitions
        taker = running.store.open_log(0)
        assert taker.activate() == before.epoch + 1
        taker.close()
        receipt = await running.execute(Account, "a", Deposit(amount=1))
        [after] = (await running.status()).partitions
        assert (receipt.version, after.epoch) == (2, before.epoch + 2)
        assert after.pid != before.pid
        check_nothing_lost_nothing_twice(running.store.path, [receipt])


async def test_a_consumer_that_is_cancelled_in_an_outage_leaves_no_hole_behind(bank: Bank) -> None:
    async with bank(projections=[], partitions=1, timeout_s=30) as running:
        await running.execute(Account, "a", Open(owner="x"))
        killed = asyncio.Event()

        async def consume() -> None:
            sent = (Envelope(Account, "a", Deposit(amount=number)) for number in range(1, 20_001))
            async for envelope, outcome in running.execute_all(sent, in_flight=1000):
                assert isinstance(outcome, Receipt), outcome
                if isinstance(envelope.command, Deposit) and envelope.command.amount == 2000:
                    os.kill((await running.status()).partitions[0].pid, signal.SIGKILL)
                    killed.set()

        consuming = asyncio.ensure_future(consume())
        await killed.wait()
        await asyncio.sleep(0.2)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming
        path = running.store.path
    amounts = [unpackb(stored.payload)["amount"] for stored in stored_events(path)[0][1:]]
    assert len(amounts) >= 2000
    assert amounts == list(range(1, len(amounts) + 1))
