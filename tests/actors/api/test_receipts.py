"""What a receipt gives of the events of its command, when it is asked.

One runtime for all tests of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rayfold import (
    Aggregate,
    BlockingRuntime,
    Command,
    CommandIdReused,
    Envelope,
    Event,
    InvalidMessage,
    OwnActor,
    Projection,
    Query,
    Receipt,
    Shared,
    answer,
    decide,
    derived_id,
    evolve,
    project,
)
from rayfold.actors.cluster.ray_cluster import Cluster


class Issue(Command):
    """As many invoices as there are customers, each with the next number."""

    customers: tuple[str, ...]


class Issued(Event):
    number: int
    customer: str


class Book(Aggregate, placement=Shared(), snapshot_every=3):
    last: int = 0

    @decide
    def issue(self, command: Issue) -> list[Issued]:
        return [Issued(number=self.last + n, customer=one) for n, one in enumerate(command.customers, 1)]

    @evolve
    def issued(self, event: Issued) -> None:
        self.last = event.number


class OwnBook(Book, placement=OwnActor()):
    """The same in an actor of its own."""


class Count(Query[int]):
    """Of all invoices."""


class Counted(Projection):
    invoices: int = 0

    @project
    def issued(self, event: Issued) -> None:
        self.invoices += 1

    @answer
    def count(self, query: Count) -> int:
        return self.invoices


@pytest.fixture(scope="module")
def books(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingRuntime]:
    del cluster
    directory = tmp_path_factory.mktemp("receipts") / "books"
    with BlockingRuntime(directory, aggregates=[Book, OwnBook], projections=[Counted], own_actors_max=4) as running:
        yield running


def numbers(receipt: Receipt) -> list[int]:
    return [event.number for event in receipt.events]


@pytest.mark.parametrize("book", [Book, OwnBook])
def test_a_receipt_that_is_asked_carries_the_events_of_its_command_alone(
    books: BlockingRuntime, book: type[Book]
) -> None:
    said, last = [], 0
    for count in (1, 0, 2, 9, 4, 700):
        customers = tuple(f"customer-{number}" for number in range(count))
        receipt = books.execute(book, "2013", Issue(customers=customers), events=True)
        assert [event.customer for event in receipt.events] == list(customers)
        assert numbers(receipt) == list(range(last + 1, last + count + 1))
        last += count
        assert receipt.version == last
        said.append((len(receipt.events), receipt.event_count))
    assert said == [(count, count) for count in (1, 0, 2, 9, 4, 700)]


def test_a_repeat_carries_the_events_of_the_first_time(books: BlockingRuntime) -> None:
    issue, once = Issue(customers=("a", "b")), derived_id("repeat", 1)
    first = books.execute(Book, "repeats", issue, command_id=once, events=True)
    books.execute(Book, "repeats", Issue(customers=("c",)))
    again = books.execute(Book, "repeats", issue, command_id=once, events=True)
    assert numbers(again) == numbers(first) == [1, 2]
    assert (again.repeated, again._replace(repeated=False)) == (True, first)
    assert again.event_count == 2
    with pytest.raises(CommandIdReused) as reused:
        books.execute(Book, "repeats", Issue(customers=("d",)), command_id=once)
    assert reused.value.receipt is not None
    assert reused.value.receipt.event_count == 2


def test_a_repeat_to_an_own_actor_says_how_many_events_there_were(books: BlockingRuntime) -> None:
    issue, once = Issue(customers=("a", "b", "c")), derived_id("own repeat", 1)
    receipts = [books.execute(OwnBook, "repeats", issue, command_id=once) for _ in range(2)]
    assert [(one.event_count, one.repeated) for one in receipts] == [(3, False), (3, True)]


def test_a_receipt_that_was_not_asked_says_how_to_ask(books: BlockingRuntime) -> None:
    receipt = books.execute(Book, "later", Issue(customers=("a", "b", "c")))
    with pytest.raises(AttributeError, match=r"does not carry .*; use execute\(..., events=True\), or ask the runtime"):
        _ = receipt.events
    books.execute(Book, "later", Issue(customers=("d",)))
    assert [event.customer for event in books.events_of(receipt) if isinstance(event, Issued)] == ["a", "b", "c"]


def test_the_receipts_of_many_commands_lead_to_their_events(books: BlockingRuntime) -> None:
    envelopes = [Envelope(Book, f"many-{n % 3}", Issue(customers=("x",) * (n % 4))) for n in range(12)]
    for number, (envelope, receipt) in enumerate(books.execute_all(envelopes)):
        assert isinstance(receipt, Receipt)
        assert len(books.events_of(receipt)) == number % 4 == len(envelope.command.customers)  # type: ignore[attr-defined]
        assert receipt.event_count == number % 4


def test_a_session_and_until_pass_the_events_on(books: BlockingRuntime) -> None:
    with books.session() as me:
        receipt = me.execute(Book, "session", Issue(customers=("a", "b")), until=Counted, events=True)
        assert numbers(receipt) == [1, 2]
        assert me.ask(Counted, Count()) >= 2
    assert books.ask(Counted, Count(), after=receipt) >= 2


def test_what_is_no_receipt_of_this_store_is_refused(books: BlockingRuntime) -> None:
    anything: Any = books
    for wrong in (None, 5, derived_id("x"), ("Book", "2013")):
        with pytest.raises(InvalidMessage, match="events_of: .* is not a Receipt; give what `execute` has returned"):
            anything.events_of(wrong)
    with pytest.raises(InvalidMessage, match="events: is 'yes'; give True or False"):
        anything.execute(Book, "2013", Issue(customers=()), events="yes")
    receipt = books.execute(Book, "2013", Issue(customers=("a",)))
    with pytest.raises(InvalidMessage, match="events_of: the receipt is of the store another, and this is"):
        books.events_of(receipt._replace(store_id="another"))
