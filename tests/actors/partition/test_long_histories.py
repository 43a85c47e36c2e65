"""An aggregate with a long history is loaded while its partition serves the others."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from rayfold import Receipt, Rejected
from rayfold.runtime.domain.messages import Event
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.stream import ANY, StreamId
from tests.actors.conftest import Bank
from tests.bank import Account, Deposit, Deposited, Open, Opened, Withdraw

pytestmark = pytest.mark.slow

EVENTS = 60_000


def history(folder: Path) -> None:
    """A store of one partition with an account of many deposits of one cent."""
    log = create_or_open_store(folder, 1).open_log(0)
    epoch = log.activate()

    def append(event: Event, number: int) -> None:
        new = (NewEvent(event.message_name, event.schema_version, encode_message(event)),) * number
        log.append(epoch, [Append(StreamId("Account", "hot"), ANY, new, os.urandom(16), bytes(16))])

    append(Opened(owner="Ada"), 1)
    for _ in range(EVENTS // 1_000):
        append(Deposited(amount=1), 1_000)
    log.close()


async def test_others_are_served_while_it_is_loaded_and_its_commands_keep_their_order(
    bank: Bank, tmp_path: Path
) -> None:
    history(tmp_path / "bank-data")
    done: list[str] = []

    async with bank(projections=[], partitions=1) as running:

        async def others() -> None:
            await running.execute(Account, "other", Open(owner="Bob"))
            for _ in range(20):
                await running.execute(Account, "other", Deposit(amount=1))
                done.append("other")

        async def hot(number: int) -> Receipt | Rejected:
            # Only in this order: 1 more than there is, then all of it, then what the next one has put in.
            if number % 2:
                outcome = await running.execute(Account, "hot", Withdraw(amount=EVENTS + 1 if number == 1 else 1))
            else:
                outcome = await running.execute(Account, "hot", Deposit(amount=1))
            done.append(f"hot {number}")
            return outcome

        first, *rest = await asyncio.gather(*(hot(number) for number in range(60)), return_exceptions=True)
        assert isinstance(first, Receipt), first
        assert done == [f"hot {number}" for number in range(60)]
        versions = [one.version for one in (first, *rest) if isinstance(one, Receipt)]
        assert versions == list(range(EVENTS + 2, EVENTS + 62))

    done.clear()
    async with bank(projections=[], partitions=1) as running:
        await asyncio.gather(hot(0), others())
        assert done.index("hot 0") >= 20, "20 commands, one after the other, were answered before it was loaded"
