"""Couriers: each input is given once, each command sent once, whatever is lost, repeated, or ends in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import msgpack
import pytest

from rayfold.benchmarks.torture.shop import AGGREGATES, Fill, Fulfilment, Move, Order, Place, Sold, Stock, Wallet
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve, woken
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.outputs import Forget, Send, Wake
from rayfold.runtime.encoding.codec import decode_message
from rayfold.runtime.encoding.envelope import PackedCommand
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes import step
from rayfold.runtime.processes.places import COURIER
from rayfold.runtime.processes.process import Process, react
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from tests.support.process_world import World


def shop(**options: int) -> World:
    return World(AGGREGATES, [Fulfilment], **options)


def placed(world: World, count: int) -> None:
    for number in range(count):
        command = Place(wallet=f"w{number % 5}", item=f"i{number % 3}", total=1 + number % 7)
        outcome = world.execute(Order, f"o{number}", command)
        assert isinstance(outcome, Receipt), outcome


def test_an_order_is_charged_and_reserved() -> None:
    world = shop()
    world.execute(Wallet, "w0", Move(by=10))
    world.execute(Stock, "i0", Fill(pieces=1))
    placed(world, 1)
    world.run()
    assert world.state(Wallet, "w0").balance == 9  # type: ignore[attr-defined]
    assert world.state(Stock, "i0").pieces == 0  # type: ignore[attr-defined]
    one = world.state(Fulfilment, "o0")
    assert (one.sold, one.progress.ended) == (True, "sold")  # type: ignore[attr-defined]
    assert world.state(Order, "o0").how == "sold;"  # type: ignore[attr-defined]
    assert all(courier.agenda.open_count == courier.agenda.timers.count == 0 for courier in world.couriers)


def test_what_was_done_is_taken_back_when_something_is_refused() -> None:
    world = shop()
    world.execute(Wallet, "w0", Move(by=10))
    placed(world, 1)
    world.run()
    assert world.state(Wallet, "w0").balance == 10  # type: ignore[attr-defined]
    assert world.state(Fulfilment, "o0").progress.ended == "sold_out"  # type: ignore[attr-defined]
    assert world.state(Order, "o0").how == "sold_out;"  # type: ignore[attr-defined]


def check(world: World, orders: int, money: int, pieces: int) -> None:
    """Money and stock are conserved, each order is closed once."""
    sold = 0
    for number in range(orders):
        one = world.state(Fulfilment, f"o{number}")
        assert one.progress.ended is not None, (number, one)  # type: ignore[attr-defined]
        assert world.state(Order, f"o{number}").how == f"{one.progress.ended};"  # type: ignore[attr-defined]
        if one.sold:  # type: ignore[attr-defined]
            sold += 1
            money -= 1 + number % 7
    left = sum(world.state(Wallet, f"w{number}").balance for number in range(5))  # type: ignore[attr-defined]
    stock = sum(world.state(Stock, f"i{number}").pieces for number in range(3))  # type: ignore[attr-defined]
    assert (left, stock) == (money, pieces - sold)
    for courier in world.couriers:
        assert courier.idle
        assert (courier.agenda.open_count, courier.agenda.timers.count, courier.agenda.parked) == (0, 0, {})


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_lost_repeated_or_ended_money_and_goods_are_conserved(seed: int) -> None:
    world = shop(partitions=3, seed=seed)
    for number in range(5):
        world.execute(Wallet, f"w{number}", Move(by=25))
    for number in range(3):
        world.execute(Stock, f"i{number}", Fill(pieces=8))
    placed(world, 40)
    world.run(for_us=14 * 60_000_000)
    world.calm()
    check(world, 40, 125, 24)


def test_what_is_for_a_partition_that_is_away_waits_and_the_rest_goes_on() -> None:
    world = shop(partitions=4)
    for number in range(5):
        world.execute(Wallet, f"w{number}", Move(by=25))
    for number in range(3):
        world.execute(Stock, f"i{number}", Fill(pieces=100))
    placed(world, 40)
    world.away = {2}
    world.run()
    waiting = [courier.facts() for number, courier in enumerate(world.couriers) if number != 2]
    assert any(facts.waiting for facts in waiting)
    assert all("it is away" in one.why for facts in waiting for one in facts.waiting)
    done = [world.state(Fulfilment, f"o{number}").progress.ended for number in range(40)]  # type: ignore[attr-defined]
    assert 0 < sum(one is not None for one in done) < 40
    world.away = set()
    world.run()
    check(world, 40, 125, 300)


def test_a_timer_fires_once_it_is_due_and_never_before() -> None:
    world = shop()
    world.execute(Wallet, "w0", Move(by=10))
    world.execute(Stock, "i0", Fill(pieces=1))
    world.silent = {StreamId("Stock", "i0")}
    placed(world, 1)
    world.run(for_us=15 * 60_000_000 - 1)
    assert world.state(Fulfilment, "o0").progress.ended is None  # type: ignore[attr-defined]
    world.run(for_us=1)
    assert world.state(Fulfilment, "o0").progress.ending == "late"  # type: ignore[attr-defined]
    world.silent = set()
    world.run()
    assert world.state(Fulfilment, "o0").progress.ended == "late"  # type: ignore[attr-defined]
    assert world.state(Wallet, "w0").balance == 10  # type: ignore[attr-defined]
    assert world.state(Stock, "i0").pieces == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("partition", [0, 1, 2])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_after_a_restore_with_uneven_cuts_what_was_lost_is_given_again_and_nothing_is_charged_twice(
    partition: int, share: float
) -> None:
    world = shop(partitions=3)
    for number in range(5):
        world.execute(Wallet, f"w{number}", Move(by=250))
    for number in range(3):
        world.execute(Stock, f"i{number}", Fill(pieces=8))
    heads = [log.head() for log in world.logs]
    placed(world, 40)
    world.run()
    for number in range(3):
        world.save_places(number)
    cut = heads[partition] + int((world.logs[partition].head() - heads[partition]) * share)
    world.restore(partition, cut)
    for number in range(3):
        world.crash(number)
    world.run(for_us=16 * 60_000_000)
    charged: dict[bytes, int] = {}
    for log in world.logs:
        for record in log.read(0, 1 << 20):
            event = decode_record(record)
            if event.stream.type == "Wallet":
                charged[event.command_id] = charged.get(event.command_id, 0) + 1
    assert set(charged.values()) == {1}
    for number in range(40):
        if world.state(Order, f"o{number}").placed:  # type: ignore[attr-defined]
            one = world.state(Fulfilment, f"o{number}")
            progress = one.progress  # type: ignore[attr-defined]
            stopped = "was already used for a different command" in progress.parked  # it came to decide otherwise
            assert stopped or progress.ended is not None, one


def test_nothing_is_sent_again_by_a_courier_that_reads_its_log_anew() -> None:
    world = shop()
    world.execute(Wallet, "w0", Move(by=100))
    world.execute(Stock, "i0", Fill(pieces=100))
    placed(world, 20)
    world.run()
    heads = [log.head() for log in world.logs]
    for number in range(2):
        world.crash(number)
    world.run()
    own = sum(
        decode_record(record).stream == COURIER
        for log, head in zip(world.logs, heads, strict=True)
        for record in log.read(head, 1_000)
    )
    assert sum(log.head() for log in world.logs) == sum(heads) + own


def test_one_target_that_does_not_answer_stops_no_other() -> None:
    """... of its own partition either."""
    world = shop(partitions=1)
    for number in range(5):
        world.execute(Wallet, f"w{number}", Move(by=25))
    for number in range(3):
        world.execute(Stock, f"i{number}", Fill(pieces=100))
    world.silent = {StreamId("Wallet", "w1")}
    placed(world, 1_000)
    world.run()
    done = [world.state(Fulfilment, f"o{number}").progress.ended is not None for number in range(1_000)]  # type: ignore[attr-defined]
    assert done == [number % 5 != 1 for number in range(1_000)]
    assert [one.stream for one in world.couriers[0].facts().waiting] == ["Wallet/w1"]
    world.silent = set()
    world.run()
    assert world.couriers[0].facts().waiting == ()


class Give(Command):
    amount: int


class Given(Event):
    amount: int


class Take(Command):
    pass


class Taken(Event):
    pass


class Expired(Event):
    pass


class Gift(Aggregate, placement=Shared()):
    """An ordinary aggregate with consequences: money for a wallet, which is taken back unless it is taken in time."""

    amount: int = 0
    taken: bool = False
    expired: int = 0

    @decide
    def give(self, command: Give) -> Iterator[Given | Send | Wake]:
        yield Given(amount=command.amount)
        yield Send(Wallet, self.id, Move(by=command.amount))
        yield Wake("expired", after=timedelta(minutes=60))

    @decide
    def take(self, command: Take) -> Iterator[Taken | Forget]:
        yield Taken()
        yield Forget("expired")

    @woken("expired")
    def unclaimed(self) -> Iterator[Expired | Send]:
        yield Expired()
        yield Send(Wallet, self.id, Move(by=-self.amount))

    @evolve
    def given(self, event: Given) -> None:
        self.amount += event.amount

    @evolve
    def was_taken(self, event: Taken) -> None:
        self.taken = True

    @evolve
    def has_expired(self, event: Expired) -> None:
        self.expired += 1


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_what_ordinary_aggregates_send_and_wake_is_carried_out_once(seed: int | None) -> None:
    world = World([Gift, Wallet], [], partitions=3, seed=seed)
    for number in range(30):
        assert isinstance(world.execute(Gift, f"g{number}", Give(amount=number)), Receipt)
    world.run(for_us=30 * 60_000_000)
    for number in range(0, 30, 2):
        world.execute(Gift, f"g{number}", Take())
    world.run(for_us=29 * 60_000_000)
    assert [world.state(Gift, f"g{number}").expired for number in range(30)] == [0] * 30  # type: ignore[attr-defined]
    world.run(for_us=5 * 60_000_000)
    world.calm()
    for number in range(30):
        gift, wallet = world.state(Gift, f"g{number}"), world.state(Wallet, f"g{number}")
        assert gift.expired == number % 2, number  # type: ignore[attr-defined]
        assert wallet.balance == (0 if number % 2 else number), number  # type: ignore[attr-defined]


def test_a_timer_that_was_armed_again_is_not_fired_for_the_old_arming() -> None:
    world = World([Gift, Wallet], [], partitions=1)
    world.execute(Gift, "g", Give(amount=1))
    world.run(for_us=40 * 60_000_000)
    world.execute(Gift, "g", Give(amount=1))
    world.run(for_us=59 * 60_000_000)
    assert world.state(Gift, "g").expired == 0  # type: ignore[attr-defined]
    world.run(for_us=2 * 60_000_000)
    assert world.state(Gift, "g").expired == 1  # type: ignore[attr-defined]


class Unlucky(Process):
    """A process with a bug, of which one instance has all events."""

    @react(starts=True, one=lambda event: "all")
    def sold(self, event: Sold) -> None:
        raise ValueError("a bug")


def test_an_instance_in_which_too_much_waits_keeps_nothing_else_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "WAITING_MAX", 3)
    world = World(AGGREGATES, [Fulfilment, Unlucky], partitions=2)
    for number in range(5):
        world.execute(Wallet, f"w{number}", Move(by=1_000))
    for number in range(3):
        world.execute(Stock, f"i{number}", Fill(pieces=100))
    placed(world, 20)
    world.run()
    assert [world.state(Order, f"o{number}").how for number in range(20)] == ["sold;"] * 20  # type: ignore[attr-defined]
    parked = [stream for courier in world.couriers for stream in courier.agenda.parked]
    assert parked == [StreamId("Unlucky", "all")]
    assert any(one.stream == "Unlucky/all" for courier in world.couriers for one in courier.facts().waiting)


class Came(Event):
    text: str


class Noted(Event):
    text: str


class Sequence(Process):
    """Notes what comes, in order."""

    texts: list[str] = []

    @react(starts=True)
    def came(self, event: Came) -> Noted:
        return Noted(text=event.text)

    @evolve
    def noted(self, event: Noted) -> None:
        self.texts.append(event.text)


class Say(Command):
    text: str


class Mouth(Aggregate, placement=Shared()):
    @decide
    def say(self, command: Say) -> Came:
        return Came(text=command.text)

    @evolve
    def came(self, event: Came) -> None: ...


def test_an_event_that_is_newer_than_the_code_of_its_target_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World([Mouth], [Sequence], partitions=1)
    inputs = world.couriers[0]._reactions.inputs

    def of_newer_code(*arguments: object) -> list[PackedCommand]:
        found = inputs(*arguments)  # type: ignore[arg-type]
        return [newer(command) if b"second" in command.payload else command for command in found]

    def newer(command: PackedCommand) -> PackedCommand:
        fields = msgpack.unpackb(command.payload)
        head = msgpack.unpackb(fields["head"])
        head[6] = 2
        return command._replace(payload=msgpack.packb({**fields, "head": msgpack.packb(head)}))

    monkeypatch.setattr(world.couriers[0]._reactions, "inputs", of_newer_code)
    for text in ("first", "second", "third"):
        world.execute(Mouth, "m", Say(text=text))
    world.run()
    assert world.state(Sequence, "m").texts == ["first"]  # type: ignore[attr-defined]
    [waiting] = world.couriers[0].facts().waiting
    assert waiting.stream == "Sequence/m"
    assert "Came is only at version 1; deploy newer code" in waiting.why
    monkeypatch.setattr(Came, "schema_version", 2)
    monkeypatch.setattr(
        "rayfold.runtime.processes.step._event", lambda cls, head, payload: decode_message(cls, payload)
    )
    world.run()
    assert world.state(Sequence, "m").texts == ["first", "second", "third"]  # type: ignore[attr-defined]
    assert world.couriers[0].idle
