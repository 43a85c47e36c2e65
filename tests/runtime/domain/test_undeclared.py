"""What a handler sets without declaring it is refused by name: on the write side, in read models, and in
specifications."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pytest

from rayfold import given, on
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.read_store import Lmdb
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.query_batch import PackedQuery
from rayfold.runtime.errors import DefinitionError, HandlerFailed
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.stores.lmdb import Rows
from rayfold.runtime.receipt import Receipt
from tests.support.arrivals import activated, to

REMEDY = "Jar.lid: a handler sets it, and it is not declared; declare it with what it starts as: lid: ... = ..."


class Fill(Command):
    """Put some in; the jar is closed at 3."""

    amount: int


class Filled(Event):
    """Some was put in."""

    amount: int


class Jar(Aggregate, placement=Shared(), snapshot_every=1):
    """Remembers what it has not declared."""

    amount: int = 0

    @cached_property
    def double(self) -> int:
        return 2 * self.amount

    @decide
    def fill(self, command: Fill) -> Filled:
        return Filled(amount=command.amount)

    @evolve
    def filled(self, event: Filled) -> None:
        self.amount += event.amount
        if self.amount == 3:
            self.lid = True
        if self.amount == 4:
            assert self.double


class Amount(Query[int]):
    """All that was put in."""


class Contents(Projection):
    """The same as a read model."""

    amount: int = 0

    @project
    def filled(self, event: Filled) -> None:
        self.amount += event.amount
        if event.amount == 5:
            self.lid = True

    @answer
    def total(self, query: Amount) -> int:
        return self.amount


class KeptContents(Projection, store=Lmdb()):
    """... in LMDB, where a field would be lost."""

    rows: Rows

    @project
    def filled(self, event: Filled) -> None:
        self.rows["amount"] = self.rows.get("amount", 0) + event.amount
        if event.amount == 5:
            self.lid = True

    @answer
    def total(self, query: Amount) -> int:
        amount: int = self.rows.get("amount", 0)
        return amount


def test_a_command_whose_event_sets_an_attribute_that_is_not_declared_is_refused_and_nothing_stored() -> None:
    log = MemoryLog()
    loop = activated(log, catalogue=Catalogue([Jar]))
    one, refused, two = loop.execute([to(Jar, "a", Fill(amount=amount)) for amount in (2, 1, 5)]).outcomes
    assert isinstance(one, Receipt)
    assert isinstance(refused, HandlerFailed)
    assert str(refused).endswith(REMEDY)
    assert isinstance(two, Receipt), "the state is that of the log again"
    assert log.head() == 2


def test_a_cached_property_of_a_state_is_refused_with_what_to_write_instead() -> None:
    loop = activated(MemoryLog(), catalogue=Catalogue([Jar]))
    (refused,) = loop.execute([to(Jar, "a", Fill(amount=4))]).outcomes
    assert str(refused).endswith("Jar.double: what it keeps grows old when the state changes; make it a property")


@pytest.mark.parametrize("projection", [Contents, KeptContents], ids=["memory", "lmdb"])
def test_a_read_model_stops_at_an_event_that_sets_what_is_not_declared(
    projection: type[Projection], tmp_path: Path
) -> None:
    log = MemoryLog()
    loop = activated(log, catalogue=Catalogue([Jar]))
    loop.execute([to(Jar, "a", Fill(amount=2)), to(Jar, "b", Fill(amount=5))])
    model = ReadModel(projection, Catalogue([Jar], [projection]), {7: log}, directory=tmp_path / "model")
    model.open()
    model.catch_up(7, log.head())
    assert model.positions == {7: 1}
    query = Amount()
    (answered,) = model.answer([PackedQuery(query.message_name, encode_message(query))], list)
    assert isinstance(answered, HandlerFailed)
    assert f"{projection.__name__}.lid: a handler sets it, and it is not declared" in str(answered)
    model.close()


def test_specifications_refuse_it_too() -> None:
    with pytest.raises(DefinitionError, match=r"Jar\.lid: a handler sets it, and it is not declared"):
        given(Jar, Filled(amount=3)).when(Fill(amount=1))
    with pytest.raises(DefinitionError, match=r"Contents\.lid: a handler sets it"):
        given(Contents, on("a", Filled(amount=5)))
