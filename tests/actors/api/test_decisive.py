"""Decisive refusals in the real thing: in a partition, in an actor of its own, after a restart, and beside readers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from rayfold import BlockingRuntime, CommandIdReused, Envelope, Receipt, Rejected, Runtime, derived_id
from rayfold.actors.cluster.ray_cluster import Cluster
from tests.actors.conftest import Bank
from tests.actors.partition.test_own_actors import asked, own_actors
from tests.bank import Account, BalanceOf, Balances, Deposit, Open, Retrieve, Store, Vault, Withdraw

pytestmark = pytest.mark.slow

ASKED = derived_id("withdrawal", 1)


async def refusal(asked: Awaitable[object]) -> tuple[str, dict[str, object]]:
    """Reason and facts of the refusal that this gives."""
    try:
        outcome = await asked
    except Rejected as rejected:
        return rejected.reason, rejected.facts
    raise AssertionError(f"it was not refused: {outcome}")


async def test_a_decisive_refusal_is_permanent_and_readers_pass_over_it(bank: Bank) -> None:
    def withdraw(running: Runtime, *, decisive: bool) -> Awaitable[Receipt]:
        return running.execute(Account, "a", Withdraw(amount=50), command_id=ASKED, decisive=decisive)

    async with bank(partitions=1) as running:
        await running.execute(Account, "a", Open(owner="ada"))
        first = await refusal(withdraw(running, decisive=True))
        later = await running.execute(Account, "a", Deposit(amount=100))
        assert later.position == 3, "the refusal has a position of its own"
        assert await running.ask(Balances, BalanceOf(account="a"), after=later) == 100
        sent = [Envelope(Account, "a", Withdraw(amount=amount), ASKED, decisive=True) for amount in (50, 60, 50)]
        outcomes = [outcome async for _, outcome in running.execute_all(sent)]
        assert [type(outcome) for outcome in outcomes] == [Rejected, CommandIdReused, Rejected]
        last = await refusal(running.execute(Account, "a", Withdraw(amount=5_000), decisive=True))
        assert last[0] == first[0]
        await running.caught_up(Balances)
        assert len(await running.history(Account, "a")) == 2
        assert (await running.verify()).ok
    async with bank(partitions=1) as running:
        assert await refusal(withdraw(running, decisive=False)) == first
        session = running.session()
        assert await refusal(session.execute(Account, "a", Withdraw(amount=50), command_id=ASKED)) == first
        assert isinstance(await running.execute(Account, "a", Withdraw(amount=50)), Receipt)
        events = [event async for event in _all_events(running, 3)]
        assert events == ["Opened", "Deposited", "Withdrawn"]


async def _all_events(running: Runtime, count: int) -> AsyncIterator[str]:
    seen = 0
    async for event, _ in running.subscribe():
        yield type(event).__name__
        seen += 1
        if seen == count:
            return


async def test_it_is_the_same_in_an_actor_of_its_own_and_back_in_the_partition(bank: Bank) -> None:
    def retrieve(running: Runtime) -> Awaitable[Receipt]:
        return running.execute(Vault, "v", Retrieve(thing="ring"), command_id=ASKED, decisive=True)

    async with bank(partitions=1, projections=[]) as running:
        await running.execute(Vault, "v", Store(thing="crown"))
        await own_actors(running, bool, asked(running, "v"))
        first = await refusal(retrieve(running))
        assert first[0] == "not_there"
        await running.execute(Vault, "v", Store(thing="ring"))
        assert await refusal(retrieve(running)) == first
        sent = [
            Envelope(Vault, "v", Retrieve(thing="ring"), ASKED),
            Envelope(Vault, "v", Retrieve(thing="crown"), ASKED),
            Envelope(Vault, "v", Retrieve(thing="ring")),
        ]
        outcomes = [outcome async for _, outcome in running.execute_all(sent)]
        assert [type(outcome) for outcome in outcomes] == [Rejected, CommandIdReused, Receipt]
    async with bank(partitions=1, projections=[]) as running:
        assert await refusal(retrieve(running)) == first
        assert len(await running.history(Vault, "v")) == 3


def test_the_blocking_twins_take_it_too(tmp_path: Path, cluster: Cluster) -> None:
    with BlockingRuntime(tmp_path / "bank", aggregates=[Account], partitions=1) as running:
        running.execute(Account, "a", Open(owner="ada"))
        for execute in (running.execute, running.session().execute):
            try:
                execute(Account, "a", Withdraw(amount=50), command_id=ASKED, decisive=True)
            except Rejected:
                running.execute(Account, "a", Deposit(amount=100))
            else:
                raise AssertionError("it was not refused")
