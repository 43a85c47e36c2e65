"""Whatever ends, is lost or comes late: each call takes effect once outside, and each has its end in the log."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rayfold import Backoff, Call, Command, Done, Effects, NotDone, Retry, Settle, Skip, Unknown, effect, settle
from rayfold.benchmarks.torture.outside import Bill, Pay, PayRequested
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import CodeMismatch, DefinitionError
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.processes.effects import Switch
from rayfold.runtime.processes.places import COURIER, Places
from rayfold.runtime.processes.since import add_processes, since_of_all
from rayfold.runtime.processes.step import SWITCHES
from rayfold.runtime.receipt import Receipt
from tests.support.effect_world import EffectWorld

ADA: dict[str, Any] = {"by": "ada", "reason": "ticket 7"}


class Paying(Effects):
    @effect(retry=Backoff(first_s=0.1, max_s=1), timeout_s=2, at_once=4)
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()

    @settle(pay)
    async def look(self, event: PayRequested, call: Call) -> Done | NotDone:
        return Done()


class Ordered(Effects):
    """The calls of one purse one after the other."""

    @effect(retry=Backoff(first_s=0.1, max_s=1), timeout_s=2, order_by=lambda event: str(event.purse))
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()

    @settle(pay)
    async def look(self, event: PayRequested, call: Call) -> Done | NotDone:
        return Done()


def order(world: EffectWorld, bills: int) -> None:
    for number in range(bills):
        outcome = world.execute(Bill, f"b{number}", Pay(bank="", purse=f"p{number % 3}"))
        assert isinstance(outcome, Receipt)


def check(world: EffectWorld, bills: int) -> None:
    assert sorted(world.paid.values()) == [1] * bills
    for courier in world.couriers:
        assert courier.idle
        assert courier.agenda.timers.count == 0
        assert not courier.agenda.parked


@pytest.mark.parametrize("effects", [Paying, Ordered])
def test_without_faults_nothing_is_looked_up(effects: type[Effects]) -> None:
    world = EffectWorld([Bill], [effects])
    order(world, 20)
    world.run()
    check(world, 20)
    assert world.looked == 0


class Once(Effects):
    """One attempt, and no look."""

    @effect(retry=Backoff(first_s=0.1, attempts=1))
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()


def test_an_attempt_that_was_not_made_is_none_and_is_made_a_second_later() -> None:
    world = EffectWorld([Bill], [Once])
    world.not_called = 12
    order(world, 1)
    world.run(for_us=5_000_000)
    assert not world.paid
    assert world.couriers[0].facts().calls[0].state == "on", "that is no failure of what is called"
    world.run(for_us=60_000_000)
    check(world, 1)


def test_a_look_that_was_not_made_is_made_again() -> None:
    world = EffectWorld([Bill], [Paying])
    world.results = [Unknown("reset")]
    order(world, 1)
    world.run(for_us=1)
    world.not_called = 1
    world.run(for_us=60_000_000)
    check(world, 1)
    assert world.looked == 1


class Repeated(Effects, name="Once"):
    """Another release of `Once`: a second call is taken for the first."""

    @effect(retry=Backoff(first_s=5), repeatable=True)
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()


class Found(Effects, name="Once"):
    """Another release of `Once`: what became of a call is looked up."""

    @effect()
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()

    @settle(pay)
    async def look(self, event: PayRequested, call: Call) -> Done | NotDone:
        return Done()


@pytest.mark.parametrize("results", [[Unknown("reset")], [Unknown("reset"), NotDone("reset")]], ids=["last", "before"])
def test_a_call_of_unknown_end_is_not_repeated_by_a_release_in_which_it_is_not_repeatable(results: list[Any]) -> None:
    world = EffectWorld([Bill], [Repeated])
    world.results = [*results]
    order(world, 1)
    world.run(for_us=6_000_000 if len(results) > 1 else 1_000_000)
    assert not world.results
    release(world, Once)
    assert not world.paid
    [(stream, why)] = [found for one in world.couriers for found in one.agenda.parked.items()]
    assert why == "unknown: pay is not repeatable any more: reset"
    assert isinstance(world.execute(Once, stream.id, Retry(**ADA)), Receipt)
    world.run()
    assert not world.paid
    world.execute(Once, stream.id, Settle(outcome="not_done", **ADA))
    world.run()
    check(world, 1)


def test_a_call_of_unknown_end_is_looked_up_by_a_release_that_can() -> None:
    world = EffectWorld([Bill], [Repeated])
    world.results = [Unknown("reset")]
    order(world, 1)
    world.run(for_us=1_000_000)
    release(world, Found)
    check(world, 1)
    assert world.looked == 1


def release(world: EffectWorld, effects: type[Effects]) -> None:
    """Other code is deployed, and all comes to rest."""
    world.catalogue = Catalogue([Bill], processes=[effects])
    for number in range(world.partitions):
        world.crash(number)
    world.run()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("effects", [Paying, Ordered])
def test_whatever_is_lost_or_ends_each_call_takes_effect_once(effects: type[Effects], seed: int) -> None:
    world = EffectWorld([Bill], [effects], seed=seed)
    for _ in range(5):
        order_more = world.sent  # bills are new ones each time
        for number in range(6):
            world.execute(Bill, f"b{order_more}-{number}", Pay(bank="", purse=f"p{number % 3}"))
        world.run(for_us=500_000)
        world.crash(seed % 2)
    world.calm()
    world.run(for_us=3_600_000_000)
    check(world, len(world.paid))
    assert len(world.paid) >= 25


def test_a_call_that_rests_while_its_partition_ends_goes_on_where_it_was() -> None:
    world = EffectWorld([Bill], [Paying])
    world.results = [NotDone("busy")]
    order(world, 1)
    world.run(for_us=50_000)
    assert not world.paid
    for number in (0, 1):
        world.crash(number)
    world.run()
    check(world, 1)


def test_a_restored_store_has_its_effects_off_and_the_present_ones_are_known_by_name() -> None:
    world = EffectWorld([Bill], [Paying])
    order(world, 3)
    world.run()
    places = world.couriers[0].present_places()
    assert not places.taken_over("store", 7) or not places.off, "the first store that they are of"
    assert not places.taken_over("store", 8)
    assert places.taken_over("another", 9)
    assert places.off == {"Paying", ""}
    stored = type(places).stored(_stored(places))
    assert (stored.off, stored.store_id, stored.switches_read) == (places.off, "another", 9)


def test_a_switch_holds_whenever_its_partition_ends() -> None:
    world = EffectWorld([Bill], [Paying])
    for on in (False, True, False):
        for number in range(8):
            world.execute(Paying, f"{SWITCHES}{number}", Switch(on=on, by="ada", reason="ticket 7"))
        for number in (0, 1):
            world.crash(number)
            assert world.couriers[number].present_places().off == (set() if on else {"Paying"})
    order(world, 4)
    world.run()
    assert not world.paid


class Blind(Effects):
    """Nothing can look up what became of a call; those of one purse are made one after the other."""

    @effect(timeout_s=2, order_by=lambda event: str(event.purse))
    async def pay(self, event: PayRequested, call: Call) -> Done:
        return Done()


@pytest.mark.parametrize("seed", range(8))
def test_what_people_decide_at_any_time_leaves_no_call_behind_and_makes_none_twice(seed: int) -> None:
    world, chance = EffectWorld([Bill], [Blind], seed=seed), random.Random(seed)
    for turn in range(6):
        for number in range(6):
            world.execute(Bill, f"b{turn}-{number}", Pay(bank="", purse=f"p{number % 2}"))
        world.run(for_us=chance.randrange(9_000_000))
        world.crash(turn % 2)
        for purse in ("p0", "p1"):
            decided: Command = chance.choice([Settle(outcome="done", **ADA), Skip(**ADA), Retry(**ADA)])
            world.execute(Blind, purse, decided)
    world.calm()
    for _ in range(100):
        world.run(for_us=60_000_000)
        parked = [stream for courier in world.couriers for stream in courier.agenda.parked]
        if not parked:
            break
        for stream in parked:
            assert isinstance(world.execute(Blind, stream.id, Settle(outcome="done", **ADA)), Receipt)
    for purse in ("p0", "p1"):
        one = world.state(Blind, purse)
        assert isinstance(one, Blind)
        assert (one.calling, one.progress.waiting, one.progress.parked) == (None, (), "")
    assert set(world.paid.values()) == {1}
    check(world, len(world.paid))


def _stored(places: Places) -> StoredEvent:
    new = places.event()
    return StoredEvent(1, COURIER, 1, new.name, 1, new.payload, 0, bytes(16), b"", b"")


def test_effects_that_are_new_to_a_store_with_events_are_named_as_effects() -> None:
    world = EffectWorld([Bill], [Paying])
    order(world, 1)
    [log, *_] = [one for one in world.logs if one.head()]
    what = "effects Paying: the effects are new to this store, which has events, .* where on they take part"
    with pytest.raises(CodeMismatch, match=what):
        add_processes(Places(), {"Paying": Paying}, {}, 0, log, "", lambda _: log)


def test_what_is_no_list_of_effects_is_refused_under_that_name() -> None:
    with pytest.raises(DefinitionError, match=r"effects=: Paying is not a list of classes; give effects=\[\.\.\.\]"):
        since_of_all([], Paying, None)  # type: ignore[arg-type]  # what is tested
