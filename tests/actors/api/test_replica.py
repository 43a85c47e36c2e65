"""Embedded replicas: a read model in the caller's own process, beside a running system."""

from __future__ import annotations

import pytest

from rayfold import CallerError, InvalidMessage, NotYetVisible, Unavailable, UnknownName
from tests.actors.conftest import Bank
from tests.bank import Account, BalanceOf, Balances, Deposit, EventsSeen, Open
from tests.support.read_models import DividedBalances

pytestmark = pytest.mark.slow


async def test_an_embedded_replica_has_what_was_there_and_follows_what_comes(bank: Bank) -> None:
    async with bank(projections=[Balances]) as running:
        await running.execute(Account, "alice", Open(owner="Alice"))
        before = await running.execute(Account, "alice", Deposit(amount=5))
        async with await running.replica(Balances) as replica:
            assert replica.positions[before.partition] == before.position
            assert replica.ask(BalanceOf(account="alice")) == 5
            receipt = before
            for balance in range(6, 26):
                receipt = await running.execute(Account, "alice", Deposit(amount=1))
                assert replica.ask(BalanceOf(account="alice"), after=receipt) == balance
            with replica.reading() as model:
                assert model.balances == {"alice": 25}
            with pytest.raises(UnknownName, match="EventsSeen"):
                replica.ask(EventsSeen())
            with pytest.raises(InvalidMessage, match=r"7: 1 is not a position in this store"):
                replica.ask(BalanceOf(account="alice"), after={7: 1})
            partition, head = receipt.partition, receipt.position
            told = f"position {head + 1} of partition {partition} is not visible yet, the replica is at {head}"
            with pytest.raises(NotYetVisible, match=told):
                replica.ask(BalanceOf(account="alice"), after={partition: head + 1}, timeout_s=0.05)
        with pytest.raises(Unavailable, match="this read model was closed"):
            replica.ask(BalanceOf(account="alice"))
        with pytest.raises(CallerError, match="cannot be embedded: it is kept in 3 parts"):
            await running.replica(DividedBalances)


async def test_an_embedded_replica_outlives_the_runtime_that_made_it(bank: Bank) -> None:
    async with bank(projections=[Balances]) as running:
        await running.execute(Account, "alice", Open(owner="Alice"))
        receipt = await running.execute(Account, "alice", Deposit(amount=5))
        replica = await running.replica(Balances)
    with replica:
        assert replica.ask(BalanceOf(account="alice"), after=receipt) == 5
