"""Values within one another, as deep as a user makes them: refused by name, where they would end the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import decode_state, encode_state
from rayfold.runtime.encoding.forms import NESTED_MAX
from rayfold.runtime.encoding.saved_state import pack_value, unpack_value
from rayfold.runtime.encoding.tagged import pack_tagged, unpack_tagged
from rayfold.runtime.errors import InvalidMessage, Rejected
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.receipt import Receipt
from tests.support.arrivals import activated, to

DEEP = 300


@dataclass
class Link:
    """One of a chain."""

    next: Link | None = None


class Add(Command):
    """Make the chain so much longer."""

    links: int


class Added(Event):
    """It is longer."""

    links: int


class Refuse(Command):
    """With facts as deep as that."""

    depth: int


class Tell(Command):
    """Have it as an event."""

    depth: int


class Told(Event):
    """What may be of any type."""

    what: Any


class Chain(Aggregate, placement=Shared(), snapshot_every=1):
    """As long as it is made."""

    first: Link | None = None
    told: int = 0

    @decide
    def add(self, command: Add) -> Added:
        return Added(links=command.links)

    @decide
    def refuse(self, command: Refuse) -> None:
        raise Rejected("too_deep", tuples=nested(command.depth))

    @decide
    def tell(self, command: Tell) -> Told:
        return Told(what=nested(command.depth))

    @evolve
    def added(self, event: Added) -> None:
        for _ in range(event.links):
            self.first = Link(self.first)

    @evolve
    def was_told(self, event: Told) -> None:
        self.told += 1


def nested(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize(("pack", "unpack"), [(pack_tagged, unpack_tagged), (pack_value, unpack_value)])
def test_values_are_nested_up_to_a_bound_and_refused_beyond_it(pack: Any, unpack: Any) -> None:
    for _ in range(2):  # what was refused leaves nothing behind
        assert unpack(pack(nested(NESTED_MAX - 1))) == nested(NESTED_MAX - 1)
        with pytest.raises(ValueError, match=f"values are nested more than {NESTED_MAX} deep"):
            unpack(pack(nested(DEEP)))


def test_a_state_that_is_too_deep_is_not_saved_and_its_aggregate_goes_on() -> None:
    chain = Chain("a")
    chain.added(Added(links=DEEP))
    with pytest.raises(InvalidMessage, match=f"it is nested over {NESTED_MAX} levels deep"):
        encode_state(chain)
    short = Chain("b")
    short.added(Added(links=NESTED_MAX // 2 - 1))
    assert decode_state(Chain, encode_state(short)).first == short.first
    loop = activated(MemoryLog(), catalogue=Catalogue([Chain]))
    outcomes = loop.execute([to(Chain, "a", Add(links=links)) for links in (1, DEEP, 1)]).outcomes
    assert [type(one) for one in outcomes] == [Receipt] * 3


def test_a_refusal_whose_facts_are_too_deep_arrives_with_their_text() -> None:
    loop = activated(MemoryLog(), catalogue=Catalogue([Chain]))
    near, far = loop.execute([to(Chain, "a", Refuse(depth=depth)) for depth in (3, DEEP)]).outcomes
    assert isinstance(near, Rejected)
    assert isinstance(far, Rejected)
    assert near.facts == {"tuples": nested(3)}
    assert far.reason == "too_deep"
    assert str(far.facts["tuples"]).startswith("((((")


def test_an_event_that_is_too_deep_is_refused_and_nothing_stored() -> None:
    log = MemoryLog()
    loop = activated(log, catalogue=Catalogue([Chain]))
    near, far = loop.execute([to(Chain, "a", Tell(depth=depth)) for depth in (3, DEEP)]).outcomes
    assert isinstance(near, Receipt)
    assert isinstance(far, InvalidMessage)
    assert log.head() == 1
