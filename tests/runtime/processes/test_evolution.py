"""Processes and their targets under other names, in the middle of what they do: it goes on, or that is visible."""

from __future__ import annotations

import pytest

from examples.shop import Charge, Fill, Fulfilment, Order, Place, Stock, Supply, Wallet
from rayfold import Aggregate, Ended, Event, Process, RayfoldError, Retry, Shared, failed, react
from rayfold.runtime.checks.fit import check_fit
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import CodeMismatch
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from tests.support.process_world import World

ADA = {"by": "ada", "reason": "ticket 7"}


class Dispatch(Fulfilment, name="Fulfilment"):
    """The process under another class name."""


class Purse(Wallet, name="Wallet", placement=Shared()):
    """A target under another class name."""


class NewPurse(Wallet, name="NewPurse", placement=Shared()):
    """... and under another stored name."""


class Careful(Fulfilment, name="Fulfilment"):
    @failed(Charge)
    def broken(self, error: RayfoldError) -> Ended:
        return Ended(type(error).__name__)


def half_done() -> World:
    """An order whose charge is on its way, and another one that waits for its goods."""
    world = World([Order, Wallet, Stock], [Fulfilment], partitions=2)
    world.execute(Wallet, "w", Fill(amount=100))
    world.execute(Stock, "p", Supply(pieces=10))
    world.silent = {StreamId("Stock", "p")}
    world.execute(Order, "reserving", Place(wallet="w", item="p", total=5))
    world.run(for_us=1_000)
    world.silent |= {StreamId("Wallet", "w")}
    world.execute(Order, "charging", Place(wallet="w", item="p", total=5))
    world.run(for_us=1_000)
    world.silent = set()
    return world


def deploy(world: World, aggregates: list[type[Aggregate]], processes: list[type[Process]]) -> None:
    world.catalogue = Catalogue(aggregates, processes=processes)
    for number in range(world.partitions):
        world.crash(number)
    world.run()


def states(world: World) -> list[str]:
    return [world.state(Order, id).state for id in ("reserving", "charging")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("aggregates", "processes"),
    [([Order, Wallet, Stock], [Dispatch]), ([Order, Purse, Stock], [Fulfilment]), ([Order, Purse, Stock], [Dispatch])],
    ids=["process", "target", "both"],
)
def test_what_has_another_class_name_and_the_same_stored_name_goes_on(
    aggregates: list[type[Aggregate]], processes: list[type[Process]]
) -> None:
    world = half_done()
    deploy(world, aggregates, processes)
    assert states(world) == ["shipped", "shipped"]
    assert all(courier.idle and not courier.agenda.parked for courier in world.couriers)


def test_a_command_to_a_target_that_has_another_stored_name_parks_its_instance_until_that_is_back() -> None:
    world = half_done()
    deploy(world, [Order, NewPurse, Stock], [Fulfilment])
    assert states(world) == ["shipped", "placed"]
    one = world.state(Fulfilment, "charging")
    assert one.progress.parked == (  # type: ignore[attr-defined]
        "Charge to Wallet/w failed: no aggregate is named 'Wallet'; known: Fulfilment, NewPurse, Order, Stock, and no "
        "@failed method takes it"
    )
    deploy(world, [Order, Wallet, Stock], [Fulfilment])
    assert isinstance(world.execute(Fulfilment, "charging", Retry(**ADA)), Receipt)
    world.run()
    assert states(world) == ["shipped", "shipped"]


def test_a_process_may_take_that_its_target_has_another_name() -> None:
    world = half_done()
    deploy(world, [Order, NewPurse, Stock], [Careful])
    assert world.state(Careful, "charging").progress.ended == "UnknownName"  # type: ignore[attr-defined]


def test_a_process_that_has_another_stored_name_is_refused_while_its_instances_wait() -> None:
    class Shipping(Process):
        @react(starts=True)
        def placed(self, event: Other) -> None: ...

    world = half_done()
    readers = dict(enumerate(world.logs))
    check_fit("shop", Catalogue([Order, Wallet, Stock], processes=[Dispatch]), readers, None)
    with pytest.raises(CodeMismatch) as refused:
        check_fit("shop", Catalogue([Order, Wallet, Stock], processes=[Shipping]), readers, None)
    assert "Fulfilment" in str(refused.value)


class Other(Event):
    pass
