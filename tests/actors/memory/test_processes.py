"""Processes in a system in memory: what follows from a command has happened when it is answered."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from examples.opt_in import Confirm, Deliver, Expired, Mailbox, OptIn, Request
from examples.shop import (
    Begun,
    Charge,
    Charged,
    Fill,
    Filled,
    Fulfilment,
    Order,
    Place,
    Stock,
    Supply,
    Wallet,
)
from rayfold import (
    Application,
    Ended,
    Envelope,
    Event,
    Process,
    Projection,
    Query,
    Receipt,
    Recorded,
    Retry,
    Send,
    Skip,
    Wake,
    answer,
    evolve,
    project,
    react,
    scheduled,
    woken,
)
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes import step
from rayfold.runtime.processes.progress import STEPPED
from rayfold.testing import MemoryRuntime, system, system_blocking

SHOP = (Order, Wallet, Stock, Fulfilment)


async def filled(shop: MemoryRuntime, wallets: int, pens: int) -> None:
    for number in range(wallets):
        await shop.execute(Wallet, f"w{number}", Fill(amount=100))
    await shop.execute(Stock, "pen", Supply(pieces=pens))


async def heads(shop: MemoryRuntime) -> list[int]:
    return [one.head for one in (await shop.status()).partitions]


async def test_money_and_pens_are_conserved_over_several_partitions() -> None:
    chance = random.Random(7)
    async with system(*SHOP, partitions=3) as shop:
        await filled(shop, wallets=4, pens=30)
        places = [Place(wallet=f"w{chance.randrange(4)}", item="pen", total=chance.randrange(1, 30)) for _ in range(60)]
        orders = [Envelope(Order, f"o{number}", place) for number, place in enumerate(places)]
        async for _, outcome in shop.execute_all(orders):
            assert isinstance(outcome, Receipt)
        states = [await shop.state_at(Order, f"o{number}") for number in range(60)]
        shipped = [place for place, order in zip(places, states, strict=True) if order.state == "shipped"]
        assert {order.state for order in states} == {"shipped", "cancelled"}
        left = sum([(await shop.state_at(Wallet, f"w{number}")).balance for number in range(4)])
        assert left == 400 - sum(place.total for place in shipped)
        assert (await shop.state_at(Stock, "pen")).pieces == 30 - len(shipped)


async def test_a_system_that_is_started_again_does_nothing_again() -> None:
    shop = system(*SHOP)
    async with shop:
        await filled(shop, wallets=1, pens=1)
        await shop.execute(Order, "1", Place(wallet="w0", item="pen", total=5))
        before = await heads(shop)
    async with shop:
        assert await heads(shop) == before
        await shop.execute(Order, "2", Place(wallet="w0", item="pen", total=5))
        assert (await shop.state_at(Wallet, "w0")).balance == 95


async def test_a_timer_that_was_armed_before_the_system_was_started_again_is_fired() -> None:
    letters = system(OptIn, Mailbox)
    async with letters:
        await letters.execute(OptIn, "ada", Request(token="7"))
    async with letters:
        letters.clock.advance(timedelta(minutes=60))
        assert (await letters.state_at(OptIn, "ada")).token == ""


async def test_a_timer_that_is_not_needed_any_more_is_not_fired() -> None:
    async with system(OptIn, Mailbox) as letters:
        await letters.execute(OptIn, "ada", Request(token="7"))
        await letters.execute(OptIn, "ada", Confirm(token="7"))
        letters.clock.advance(timedelta(days=1))
        state = await letters.state_at(OptIn, "ada")
        assert state.confirmed
        assert state.version == 2


class Ticked(Event):
    pass


class Ticking(Process):
    ticks: int = 0

    @react(starts=True)
    def filled(self, event: Filled) -> Wake:
        return Wake("tick", after=timedelta(hours=1))

    @woken("tick")
    def tick(self) -> Iterator[Ticked | Wake | Ended]:
        yield Ticked()
        if self.ticks < 23:
            yield Wake("tick", after=timedelta(hours=1))
        else:
            yield Ended("a day")

    @evolve
    def ticked(self, event: Ticked) -> None:
        self.ticks += 1


async def test_timers_are_fired_each_at_its_time_however_far_the_clock_is_moved() -> None:
    async with system(Wallet, Ticking) as day:
        await day.execute(Wallet, "ada", Fill(amount=1))
        day.clock.advance(timedelta(days=2))
        history = await day.history(Ticking, "ada")
        ticks = [recorded.recorded_at for event, recorded in history if type(event) is Ticked]
        assert ticks == [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in range(1, 25)]
        assert (await day.state_at(Ticking, "ada")).progress.ended == "a day"


async def test_a_clock_that_is_put_back_and_forth_fires_nothing_early_and_nothing_twice() -> None:
    async with system(Wallet, Ticking) as day:
        await day.execute(Wallet, "ada", Fill(amount=1))
        start = day.clock.now
        day.clock.advance(timedelta(minutes=90))
        day.clock.set(start - timedelta(hours=5))
        day.clock.set(start + timedelta(minutes=119))
        assert (await day.state_at(Ticking, "ada")).ticks == 1
        day.clock.set(start + timedelta(minutes=120))
        assert (await day.state_at(Ticking, "ada")).ticks == 2


class Nightly(Process):
    @scheduled(cron="0 3 * * *", zone="Europe/Berlin")
    def close(self, due: datetime) -> Send:
        return Send(Mailbox, "books", Deliver(text=f"closed {due:%d.%m. %H:%M}"))


async def test_a_schedule_is_due_at_its_times_also_where_clocks_change() -> None:
    async with system(Mailbox, Nightly, now=datetime(2026, 3, 28, 1, tzinfo=UTC)) as books:
        books.clock.advance(timedelta(hours=47))
        assert (await books.state_at(Mailbox, "books")).letters == ["closed 28.03. 02:00", "closed 29.03. 01:00"]


class Careless(Process):
    @react(starts=True)
    def filled(self, event: Filled) -> Ended:
        if event.amount == 13:
            raise ValueError("thirteen")
        return Ended("")


async def test_an_instance_that_is_parked_stops_alone_and_the_status_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with system(Wallet, Careless, partitions=1) as shop:
        await shop.execute(Wallet, "ada", Fill(amount=13))
        await shop.execute(Wallet, "bob", Fill(amount=1))
        assert (await shop.state_at(Careless, "bob")).progress.ended == ""
        [partition] = (await shop.status()).partitions
        assert partition.courier is not None
        assert partition.courier.parked == (("Careless/ada", "Careless.filled: ValueError: thirteen"),)
        mended = Careless.reactions["Filled"]._replace(function=lambda self, event: Ended("mended"))
        monkeypatch.setitem(Careless.reactions, "Filled", mended)
        await shop.execute(Careless, "ada", Retry(by="ada", reason="mended"))
        assert (await shop.state_at(Careless, "ada")).progress.ended == "mended"


class Endless(Process):
    @react(starts=True)
    def filled(self, event: Filled) -> Send:
        return Send(Wallet, self.id, Fill(amount=1))


async def test_processes_without_end_are_stopped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with system(Wallet, Endless) as shop:
            await shop.execute(Wallet, "ada", Fill(amount=1))
    assert "processes go on without end" in caplog.text


def test_the_clock_of_a_blocking_system_is_moved_from_the_thread_of_the_test() -> None:
    with system_blocking(OptIn, Mailbox) as letters:
        letters.execute(OptIn, "ada", Request(token="7"))
        letters.clock.advance(timedelta(minutes=60))
        assert letters.state_at(OptIn, "ada").token == ""


class Fragile(OptIn):
    @woken("expired")
    def expired(self) -> Expired:
        raise ValueError("expired")


async def test_a_timer_of_an_aggregate_whose_method_raises_is_counted_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with system(Fragile, Mailbox) as letters:
        await letters.execute(Fragile, "ada", Request(token="7"))
        letters.clock.advance(timedelta(minutes=90))
        couriers = [one.courier for one in (await letters.status()).partitions]
    assert sum(one.refused for one in couriers if one is not None) == 1
    assert "the timer expired of Fragile/ada is lost: Fragile.woken failed" in caplog.text


class Poisoned(Process):
    @react(starts=True)
    def filled(self, event: Filled) -> Wake:
        if event.amount == 13:
            raise ValueError("thirteen")
        return Wake("late", after=timedelta(minutes=event.amount))

    @woken("late")
    def late(self) -> Ended:
        return Ended("late")


async def test_a_timer_that_has_no_room_in_a_parked_instance_is_fired_once_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "WAITING_MAX", 1)
    async with system(Wallet, Poisoned) as bank:
        for amount in (5, 13):
            await bank.execute(Wallet, "ada", Fill(amount=amount))
        bank.clock.advance(timedelta(minutes=6))
        await bank.execute(Poisoned, "ada", Skip(by="ada", reason="ticket 7"))
        bank.clock.advance(timedelta(minutes=6))
        assert (await bank.state_at(Poisoned, "ada")).progress.ended == "late"


async def test_an_application_and_a_list_of_processes_are_taken_too() -> None:
    shop = Application("shop", aggregates=[Order, Wallet, Stock], processes=[Fulfilment], since="beginning")
    for made in (system(shop), system(Order, Wallet, Stock, processes=[Fulfilment])):
        async with made as running:
            await filled(running, wallets=1, pens=1)
            await running.execute(Order, "1", Place(wallet="w0", item="pen", total=5))
            assert (await running.state_at(Order, "1")).state == "shipped"


async def test_a_system_without_processes_has_no_courier() -> None:
    async with system(Wallet) as bank:
        await bank.execute(Wallet, "ada", Fill(amount=1))
        await bank.execute(Wallet, "ada", Charge(order="1", amount=1))
        assert all(one.courier is None for one in (await bank.status()).partitions)


class Seen(Query[list[str]]):
    pass


class Journal(Projection):
    names: list[str] = []

    @project
    def charged(self, event: Charged, recorded: Recorded) -> None:
        self.names.append(recorded.aggregate_type)

    @project
    def begun(self, event: Begun) -> None:
        self.names.append("Begun")

    @answer
    def seen(self, query: Seen) -> list[str]:
        return self.names


async def test_steps_are_passed_over_where_events_are_read_and_shown_in_a_history() -> None:
    async with system(*SHOP, Journal) as shop:
        await filled(shop, wallets=1, pens=1)
        await shop.execute(Order, "1", Place(wallet="w0", item="pen", total=5))
        assert sorted(await shop.ask(Journal, Seen())) == ["Begun", "Wallet"]
        followed = []
        async with asyncio.timeout(20):
            async for event, _ in shop.subscribe():
                followed.append(type(event).__name__)
                if len(followed) == 7:
                    break
        assert sorted(followed) == ["Begun", "Charged", "Filled", "Placed", "Reserved", "Shipped", "Supplied"]
        first, *_ = await shop.history(Fulfilment, "1")
        assert "Charge to Wallet/w0" in repr(first[0])


async def test_a_process_that_is_given_up_leaves_a_log_that_others_can_read() -> None:
    """Its own events and its type are retired; its steps need no word."""
    world = system(*SHOP)
    async with world:
        await filled(world, wallets=1, pens=1)
        await world.execute(Order, "1", Place(wallet="w0", item="pen", total=5))
    catalogue = Catalogue([Order, Wallet, Stock], retired=["Fulfilment", "Begun"])
    names = [record.name for log in world._logs.logs for record in map(decode_record, log.read(0, 100))]
    assert STEPPED in names
    for log in world._logs.logs:
        for record in log.read(0, 100):
            catalogue.decode_events(decode_record(record))
        assert not any(name == STEPPED for name, _ in log.holdings().events)
