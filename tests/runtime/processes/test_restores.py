"""Whatever is lost, repeated, ended and restored: nothing is charged or paid back twice, and nothing hangs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import msgpack
import pytest

from examples.shop import Fill, Fulfilment, Order, Place, Stock, Supply, Wallet
from rayfold.runtime.domain.messages import Event
from rayfold.runtime.encoding.error_codec import to_wire
from rayfold.runtime.errors import Rejected
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.processes.delivery import lost_input
from rayfold.runtime.processes.inputs import End, Input, Retry, Skip
from rayfold.runtime.processes.kinds import RESUME_INPUT
from rayfold.runtime.processes.progress import Progress
from rayfold.runtime.processes.step import retry, skip, take
from rayfold.runtime.processes.stored_step import Sent, step_in
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.residents import evolve_with
from tests.support.process_world import World

ORDERS = 30


def shop(seed: int) -> World:
    """Orders in three partitions, with faults, so far that some are in the middle."""
    chance = random.Random(seed)
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3, seed=seed)
    for number in range(4):
        world.execute(Wallet, f"w{number}", Fill(amount=60))
    for number in range(2):
        world.execute(Stock, f"p{number}", Supply(pieces=10))
    for number in range(ORDERS):
        place = Place(wallet=f"w{number % 4}", item=f"p{number % 2}", total=1 + number % 13)
        world.execute(Order, f"o{number}", place)
        if chance.random() < 0.2:
            world.run(for_us=chance.randrange(1_000_000))
    world.run(for_us=chance.randrange(20 * 60_000_000))
    return world


def restore_some(world: World, seed: int) -> None:
    """One of the logs is an older one, which ends with a whole command."""
    chance = random.Random(seed)
    partition = chance.randrange(3)
    commands = [decode_record(record).command_id for record in world.logs[partition].read(0, 1 << 20)]
    cut = chance.randrange(10, len(commands))
    while cut < len(commands) and commands[cut] == commands[cut - 1]:
        cut += 1
    for number in range(3):
        world.save_places(number)
    world.restore(partition, cut)
    for number in range(3):
        world.crash(number)


def end_of_command(world: World, partition: int, head: int) -> int:
    """The first position from there on at which a log can be cut."""
    commands = [decode_record(record).command_id for record in world.logs[partition].read(0, 1 << 20)]
    while 0 < head < len(commands) and commands[head] == commands[head - 1]:
        head += 1
    return min(head, len(commands))


def lost_commands(world: World) -> list[str]:
    """Commands that took effect by what an instance has stored, and that the log of the target does not have."""
    lost = []
    for log in world.logs:
        sent: dict[tuple[StreamId, int], Sent] = {}
        for record in log.read(0, 1 << 20):
            stored = decode_record(record)
            step = step_in(stored)
            if step is None or not step.is_process:
                continue
            sent |= {(step.stream, one.number): one for one in step.sends}
            if step.accepted is not None:
                one = sent[step.stream, step.accepted]
                if world.logs[world.partition_of(one.stream)].find_command(one.send_id) is None:
                    lost.append(f"{one.name} of {step.stream} to {one.stream}")
    return lost


def paid(world: World, name: str) -> Counter[str]:
    """How often each order was charged, or paid back."""
    stored = [decode_record(record) for log in world.logs for record in log.read(0, 1 << 20)]
    return Counter(msgpack.unpackb(one.payload)["order"] for one in stored if one.name == name)


@pytest.mark.parametrize("seed", range(6))
def test_an_order_is_charged_once_and_paid_back_once_whichever_log_is_an_older_one(seed: int) -> None:
    world = shop(seed)
    restore_some(world, seed)
    world.calm()
    world.run(for_us=40 * 60_000_000)
    assert set(paid(world, "Charged").values()) == {1}
    assert set(paid(world, "Refunded").values()) <= {1}
    for number in range(ORDERS):
        order, one = world.state(Order, f"o{number}"), world.state(Fulfilment, f"o{number}")
        assert isinstance(order, Order)
        assert isinstance(one, Fulfilment)
        assert not order.state or one.progress.ended is not None or one.progress.parked


@pytest.mark.parametrize("seed", range(6))
def test_an_order_is_paid_for_if_it_is_shipped_and_only_then(seed: int) -> None:
    world = shop(seed)
    world.calm()
    world.run(for_us=40 * 60_000_000)
    charged, refunded = paid(world, "Charged"), paid(world, "Refunded")
    for number in range(ORDERS):
        order = world.state(Order, f"o{number}")
        assert isinstance(order, Order)
        assert order.state in ("shipped", "cancelled")
        assert charged[f"o{number}"] - refunded[f"o{number}"] == (order.state == "shipped")


@pytest.mark.parametrize("seed", range(30))
def test_what_took_effect_by_an_instance_is_in_the_log_of_its_target_after_a_restore_with_uneven_cuts(
    seed: int,
) -> None:
    chance = random.Random(seed)
    world = shop(seed)
    world.run(for_us=chance.randrange(40 * 60_000_000))
    for number in range(3):
        if chance.random() < 0.8:
            world.save_places(number)
    heads = [log.head() for log in world.logs]
    whole = chance.randrange(3)
    cuts = [
        end_of_command(world, number, head if number == whole else chance.randrange(head // 3, head + 1))
        for number, head in enumerate(heads)
    ]
    world.restore_all(cuts)
    world.calm()
    world.run(for_us=40 * 60_000_000)
    parked = {stream for courier in world.couriers for stream in courier.agenda.parked}
    lost = [one for one in lost_commands(world) if not any(str(stream) in one for stream in parked)]
    assert lost == []
    for number in range(ORDERS):
        order, one = world.state(Order, f"o{number}"), world.state(Fulfilment, f"o{number}")
        assert isinstance(order, Order)
        assert isinstance(one, Fulfilment)
        overdue = one.progress.ended == "too_late" and order.state == "shipped"
        assert not overdue, "its timer was fired before the outcomes that it had were in again"
    assert set(paid(world, "Charged").values()) <= {1}
    assert set(paid(world, "Refunded").values()) <= {1}


def one_order() -> World:
    """An order that is shipped; its instance and its wallet are in two partitions."""
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3)
    world.execute(Wallet, "w0", Fill(amount=10))
    world.execute(Stock, "p0", Supply(pieces=1))
    world.execute(Order, "o1", Place(wallet="w0", item="p0", total=5))
    world.run(for_us=1_000)
    for number in range(3):
        world.save_places(number)
    assert world.state(Fulfilment, "o1").progress.ended == "shipped"  # type: ignore[attr-defined]
    assert partition_of_wallet(world) != world.partition_of(StreamId("Fulfilment", "o1"))
    return world


def partition_of_wallet(world: World) -> int:
    return world.partition_of(StreamId("Wallet", "w0"))


def test_a_command_that_was_lost_and_is_refused_now_parks_its_instance_though_that_has_ended() -> None:
    world = one_order()
    heads = [log.head() for log in world.logs]
    heads[partition_of_wallet(world)] = 0
    world.restore_all(heads)
    world.run(for_us=1_000)
    one = world.state(Fulfilment, "o1")
    assert one.progress.parked == (  # type: ignore[attr-defined]
        "Charge to Wallet/w0 had taken effect, and the log of its target has lost it; sent again: "
        "Wallet/w0 refused Charge: no_money (balance=0)"
    )
    courier = world.couriers[world.partition_of(StreamId("Fulfilment", "o1"))]
    assert courier.facts().parked_count == 1
    world.execute(Fulfilment, "o1", Skip(by="ada", reason="charged by hand"))
    world.run(for_us=1_000)
    assert (courier.facts().parked_count, courier.idle) == (0, True)
    world.restore_all([log.head() for log in world.logs])  # found once
    world.run(for_us=1_000)
    assert all(not courier.agenda.parked for courier in world.couriers)


def test_a_partition_that_comes_back_with_an_older_log_is_sent_again_what_it_has_lost() -> None:
    world = one_order()
    gone = partition_of_wallet(world)
    world.away = {gone}
    world.execute(Order, "o2", Place(wallet="w0", item="p0", total=5))
    world.run(for_us=1_000)
    world.restore(gone, 2)
    world.away = set()
    world.loops[gone] = world._loop(gone)
    world.couriers[gone] = world._courier(gone)
    for number in {0, 1, 2} - {gone}:
        world.couriers[number].probe(gone)
    world.run()
    assert paid(world, "Charged") == Counter(o1=1, o2=1)
    assert paid(world, "Refunded") == Counter(o2=1)
    assert all(courier.idle for courier in world.couriers)


def test_what_was_lost_goes_out_again_before_what_is_new() -> None:
    world = one_order()
    gone, sender = partition_of_wallet(world), world.partition_of(StreamId("Fulfilment", "o1"))
    other = next(one for one in map(str, range(100)) if world.partition_of(StreamId("Wallet", one)) == gone)
    of_sender = (one for one in map(str, range(100)) if world.partition_of(StreamId("Fulfilment", one)) == sender)
    last, new = next(of_sender), next(of_sender)
    world.execute(Wallet, other, Fill(amount=5))
    world.execute(Order, last, Place(wallet=other, item="p0", total=5))
    world.run(for_us=1_000)
    world.silent = {StreamId("Wallet", "w0")}
    world.execute(Order, new, Place(wallet="w0", item="p0", total=10))
    world.run(for_us=1_000)
    for number in range(3):
        world.save_places(number)
    world.silent = set()
    heads = [log.head() for log in world.logs]
    heads[gone] = 2
    world.restore_all(heads)
    world.execute(Wallet, other, Fill(amount=5))
    world.run()
    assert paid(world, "Charged") == {"o1": 1, last: 1}
    assert world.state(Fulfilment, new).progress.ended == "no_money"  # type: ignore[attr-defined]


def test_an_undo_does_not_take_back_what_was_lost() -> None:
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3)
    world.execute(Wallet, "w0", Fill(amount=10))
    world.silent = {StreamId("Stock", "p0")}
    world.execute(Order, "o1", Place(wallet="w0", item="p0", total=5))
    world.run(for_us=1_000)
    assert paid(world, "Charged") == Counter(o1=1)
    for number in range(3):
        world.save_places(number)
    heads = [log.head() for log in world.logs]
    heads[partition_of_wallet(world)] = 0
    world.restore_all(heads)
    world.run(for_us=60_000_000)
    assert world.state(Fulfilment, "o1").progress.parked  # type: ignore[attr-defined]
    world.execute(Fulfilment, "o1", Skip(by="ada", reason="it was not charged"))
    world.silent = set()
    world.run(for_us=20 * 60_000_000)
    assert paid(world, "Refunded") == Counter()
    assert world.state(Fulfilment, "o1").progress.ended == "sold_out"  # type: ignore[attr-defined]


RETRY = Retry(by="ada", reason="the wallet is filled")


def lost_charge(world: World) -> World:
    """The log of the wallet is an older one, which has nothing."""
    for number in range(3):
        world.save_places(number)
    heads = [log.head() for log in world.logs]
    heads[partition_of_wallet(world)] = 0
    world.restore_all(heads)
    world.run(for_us=1_000)
    assert "lost" in progress(world).parked
    return world


def store(one: Fulfilment, decided: list[Event] | Rejected) -> None:
    assert isinstance(decided, list)
    for event in decided:
        evolve_with(one, event)


def progress(world: World) -> Progress:
    one = world.state(Fulfilment, "o1")
    assert isinstance(one, Fulfilment)
    return one.progress


def test_the_retry_of_a_command_that_was_lost_sends_it_again_though_the_instance_has_ended() -> None:
    world = lost_charge(one_order())
    world.execute(Fulfilment, "o1", RETRY)
    world.run(for_us=1_000)
    what = "Charge to Wallet/w0, lost and sent again, was refused: no_money"
    assert progress(world).parked == what  # a method of its class takes refusals, but not this one
    world.execute(Fulfilment, "o1", RETRY)
    world.run(for_us=1_000)
    assert progress(world).parked == what
    world.execute(Wallet, "w0", Fill(amount=10))
    world.execute(Fulfilment, "o1", RETRY)
    world.run(for_us=1_000)
    assert (progress(world).parked, progress(world).ended) == ("", "shipped")
    assert paid(world, "Charged") == Counter(o1=1)
    assert all(courier.idle and not courier.facts().parked_count for courier in world.couriers)
    lost_charge(world)  # and once more
    world.execute(Wallet, "w0", Fill(amount=10))
    world.execute(Fulfilment, "o1", RETRY)
    world.run(for_us=1_000)
    assert paid(world, "Charged") == Counter(o1=1)


def test_an_undo_takes_back_what_was_lost_and_sent_again() -> None:
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3)
    world.execute(Wallet, "w0", Fill(amount=10))
    world.silent = {StreamId("Stock", "p0")}
    world.execute(Order, "o1", Place(wallet="w0", item="p0", total=5))
    world.run(for_us=1_000)
    lost_charge(world)
    world.execute(Wallet, "w0", Fill(amount=10))
    world.execute(Fulfilment, "o1", RETRY)
    world.run(for_us=1_000)
    assert paid(world, "Charged") == Counter(o1=1)
    assert not progress(world).parked
    world.silent = set()
    world.run(for_us=20 * 60_000_000)
    assert paid(world, "Refunded") == Counter(o1=1)
    assert progress(world).ended == "sold_out"


def test_a_command_that_takes_back_and_was_lost_is_sent_again_by_a_retry() -> None:
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3)
    world.execute(Wallet, "w0", Fill(amount=10))
    world.execute(Order, "o1", Place(wallet="w0", item="p0", total=5))
    world.run(for_us=1_000)
    log = world.logs[world.partition_of(StreamId("Fulfilment", "o1"))]
    steps = [step for record in log.read(0, 1 << 20) if (step := step_in(decode_record(record)))]
    step, refund = next((step, one) for step in steps for one in step.sends if one.name == "Refund")
    world._execute(lost_input(step, refund, Rejected("closed")))
    world.run(for_us=1_000)
    assert "lost" in progress(world).parked
    world.execute(Fulfilment, "o1", RETRY)
    world.run(for_us=1_000)
    assert (progress(world).parked, progress(world).ended) == ("", "sold_out")
    assert paid(world, "Refunded") == Counter(o1=2)


def test_what_was_lost_and_waits_behind_something_else_is_not_passed_over() -> None:
    world = lost_charge(one_order())
    one = world.state(Fulfilment, "o1")
    assert isinstance(one, Fulfilment)
    one.progress = replace(one.progress, waiting=one.progress.waiting * 2)
    store(one, skip(one, Skip(by="ada", reason="the first one")))
    store(one, take(one, Input(kind=RESUME_INPUT, input_id=b"r" * 16, head=msgpack.packb(()), payload=b"")))
    assert one.progress.parked.startswith("Charge to Wallet/w0 had taken effect, and the log of its target has lost it")


def test_the_outcome_of_a_lost_command_that_is_on_its_way_is_ignored_once_an_operator_has_ended_the_instance() -> None:
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=3)
    world.execute(Wallet, "w0", Fill(amount=10))
    world.silent = {StreamId("Stock", "p0")}
    world.execute(Order, "o1", Place(wallet="w0", item="p0", total=5))
    world.run(for_us=1_000)
    lost_charge(world)
    world.silent |= {StreamId("Wallet", "w0")}
    world.execute(Fulfilment, "o1", RETRY)
    world.execute(Fulfilment, "o1", End(by="ada", reason="settled by hand"))
    world.silent = set()
    world.run(for_us=1_000)
    assert (progress(world).parked, progress(world).ended) == ("", "settled by hand")


def test_what_an_earlier_release_has_noted_of_a_lost_command_keeps_its_instance_parked_until_it_is_skipped() -> None:
    world = lost_charge(one_order())
    one = world.state(Fulfilment, "o1")
    assert isinstance(one, Fulfilment)
    kind, input_id, head, _ = msgpack.unpackb(one.progress.waiting[0])
    earlier = msgpack.packb([kind, input_id, head, msgpack.packb(to_wire(Rejected("no_money")))])
    one.progress = replace(one.progress, waiting=(earlier,))
    store(one, retry(one, RETRY))
    assert one.progress.parked.endswith("without the command: settle it by hand, then Skip")
    store(one, skip(one, Skip(by="ada", reason="charged by hand")))
    assert not one.progress.parked
