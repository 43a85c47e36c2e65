"""A read model that meets another history than the one it followed is made anew, and that is logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actors.conftest import Bank
from tests.bank import Account, BalanceOf, Balances, Deposit, Open

pytestmark = pytest.mark.slow


async def test_an_older_copy_of_a_log_raises_an_alarm_in_the_status(bank: Bank, tmp_path: Path) -> None:
    data = tmp_path / "bank-data" / "partition-00000" / "data.mdb"
    async with bank(projections=[Balances], partitions=1) as running:
        await running.execute(Account, "alice", Open(owner="Ada"))
    older = data.read_bytes()
    async with bank(projections=[Balances]) as running:
        receipt = await running.execute(Account, "alice", Deposit(amount=5))
        assert await running.ask(Balances, BalanceOf(account="alice"), after=receipt) == 5
        (before,) = (await running.status()).projectors
        assert before.alarms == ()
    data.write_bytes(older)
    async with bank(projections=[Balances]) as running:
        (projector,) = (await running.status()).projectors
        (alarm,) = projector.alarms
        assert (alarm.kind, alarm.subject) == ("checkpoint", "Balances, part 0")
        assert alarm.what == "the log of partition 0 is not the one that it followed up to 2"
        assert projector.alarms_raised == 1
