"""Whether classes fit what a log holds: every kind of difference, each with its remedy, and what is none."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, Field

from rayfold import Aggregate, Command, Event, Payload, Projection, Receipt, Shared, decide, evolve, project, upcast
from rayfold.runtime.checks.fit import check_fit, held_in, misfits, sampled
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.encoding.error_codec import from_wire, to_wire
from rayfold.runtime.errors import CodeMismatch, Misfit
from rayfold.runtime.log.contract import Log
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.write.write_loop import WriteLoop


class Put(Command):
    amount: int


class Colour(Enum):
    RED = "red"


class Line(BaseModel):
    sku: str = "a"


class Deposited(Event):
    amount: int
    colour: Colour = Colour.RED
    lines: tuple[Line, ...] = Field(default_factory=lambda: (Line(),))


def application(*events: type[Event], name: str = "Account", **options: Any) -> Catalogue:
    """An application whose one aggregate evolves these events and stores the first of them."""
    first = events[0]
    made: Any = first

    class Box(Aggregate, name=name, placement=Shared(), snapshot_every=0):
        @decide
        def put(self, command: Put) -> first:  # type: ignore[valid-type]
            return made(amount=command.amount)  # type: ignore[no-any-return]

        @evolve
        def put_in(self, event: first) -> None:  # type: ignore[valid-type]
            pass

    return Catalogue([Box], events=events[1:], **options)


OLD = application(Deposited)


@pytest.fixture(params=["memory", "lmdb"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """A log with some deposits of the old application."""
    made: Log = MemoryLog() if request.param == "memory" else open_log(tmp_path / "log", "partition 0")
    write(made, OLD, *range(10))
    yield made
    made.close()


def write(log: Log, catalogue: Catalogue, *amounts: int) -> None:
    loop = WriteLoop(0, log, catalogue)
    log.declare(catalogue.shapes())
    loop.activate()
    [box] = catalogue.aggregates.values()
    outcomes = loop.execute([pack(Envelope(box, "a", Put(amount=amount)))[0] for amount in amounts]).outcomes
    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes


def found(log: Log, catalogue: Catalogue) -> list[Misfit]:
    return misfits(catalogue, held_in([log]), {0: log})


def only(log: Log, catalogue: Catalogue) -> Misfit:
    [misfit] = found(log, catalogue)
    return misfit


def test_the_code_that_wrote_a_log_fits_it(log: Log) -> None:
    assert found(log, OLD) == []
    check_fit("store", OLD, {0: log})


def test_a_renamed_field_is_refused_by_its_names(log: Log) -> None:
    class Changed(Event, name="Deposited"):
        amount: int
        colours: Colour = Colour.RED
        lines: tuple[Line, ...] = ()

    assert only(log, application(Changed)) == Misfit(
        "event 'Deposited' version 1",
        "its fields have changed: colour is stored, and is not a field of the class, colours is a field of the class, "
        "and is not stored",
        "give version=2 in the class line of Changed, and write an @upcast(from_version=1) that makes the new fields "
        "of "
        "the old",
    )


def test_a_new_field_with_a_default_is_refused_too_since_older_readers_do_not_know_it(log: Log) -> None:
    class Changed(Event, name="Deposited"):
        amount: int
        colour: Colour = Colour.RED
        lines: tuple[Line, ...] = ()
        note: str = ""

    assert only(log, application(Changed)).what == (
        "its fields have changed: note is a field of the class, and is not stored"
    )


def test_an_enum_whose_values_now_mean_other_members_is_refused(log: Log) -> None:
    class Colour(Enum):
        CRIMSON = "red"
        RED = "dark red"

    class Changed(Event, name="Deposited"):
        amount: int
        colour: Colour = Colour.RED
        lines: tuple[Line, ...] = ()

    assert only(log, application(Changed)).what == (
        "its fields have changed: colour: member RED is stored as 'red', and is 'dark red' in the class"
    )


def test_a_named_tuple_whose_places_have_other_names_is_refused() -> None:
    class Span(NamedTuple):
        first: int
        last: int

    class Turned(NamedTuple):
        last: int
        first: int

    class Seen(Event):
        amount: int
        span: Span = Span(1, 2)

    class Changed(Event, name="Seen"):
        amount: int
        span: Turned = Turned(1, 2)

    log = MemoryLog()
    write(log, application(Seen), 1)
    assert only(log, application(Changed)).what == (
        "its fields have changed: span: place 0 is stored as first, and is last in the class, "
        "span: place 1 is stored as last, and is first in the class"
    )


def test_a_field_of_an_event_that_had_none_is_refused_and_so_is_the_way_back() -> None:
    class Opened(Event):
        pass

    class OpenedBy(Event, name="Opened"):
        owner: str = "x"

    class Open(Command):
        pass

    def with_event(event: type[Event]) -> Catalogue:
        class Door(Aggregate, name="Door", placement=Shared(), snapshot_every=0):
            @decide
            def open(self, command: Open) -> event:  # type: ignore[valid-type]
                return event()

            @evolve
            def opened(self, event: event) -> None:  # type: ignore[valid-type]
                pass

        return Catalogue([Door])

    of_both = (Opened, OpenedBy, "is not stored"), (OpenedBy, Opened, "is not a field of the class")
    for before, after, field in of_both:
        for shapes in ({}, with_event(before).shapes()):  # a log without a shape takes that of the payload
            log = MemoryLog()
            loop = WriteLoop(0, log, with_event(before))
            loop.activate()
            if not shapes:
                log._declared.clear()
            [door] = with_event(before).aggregates.values()
            assert isinstance(loop.execute([pack(Envelope(door, "a", Open()))[0]]).outcomes[0], Receipt)
            assert found(log, with_event(before)) == []
            assert field in only(log, with_event(after)).what


def test_of_a_shape_that_is_not_known_only_the_name_and_version_count() -> None:
    log = MemoryLog()
    write(log, OLD, 1)
    log._kinds["Deposited", 1] = b""
    assert found(log, OLD) == []


def test_a_changed_field_of_a_nested_model_is_refused(log: Log) -> None:
    class Part(BaseModel):
        number: str = "a"

    class Changed(Event, name="Deposited"):
        amount: int
        colour: Colour = Colour.RED
        lines: tuple[Part, ...] = ()

    assert "lines.sku is stored, and is not a field of the class" in only(log, application(Changed)).what


def test_a_new_version_with_an_upcaster_fits(log: Log) -> None:
    class Changed(Event, name="Deposited", version=3):
        amount: int
        note: str = ""

        @staticmethod
        @upcast(from_version=1)
        def first(old: Payload) -> Payload:
            return {"amount": old["amount"]}

        @staticmethod
        @upcast(from_version=2)
        def of_a_version_that_was_never_written(old: Payload) -> Payload:
            return old

    assert found(log, application(Changed)) == []


def test_a_type_that_still_reads_what_is_stored_fits_and_one_that_does_not_is_refused(log: Log) -> None:
    class Wider(Event, name="Deposited"):
        amount: float
        colour: str = "red"
        lines: list[Line] = Field(default_factory=list)

    class Narrower(Event, name="Deposited"):
        amount: int
        colour: int = 1
        lines: tuple[Line, ...] = ()

    assert found(log, application(Wider)) == []
    misfit = only(log, application(Narrower))
    assert misfit.where == "event 'Deposited' version 1, event 1 of partition 0"
    assert misfit.what.startswith(
        "the types of its fields have changed (colour is stored as one of 'red', and is int in the class), and a stored"
        " one cannot be read: Deposited: colour is 'red'"
    )
    assert misfit.remedy.startswith("give version=2 in the class line of Narrower")


def test_what_changes_nothing_that_is_stored_fits(log: Log) -> None:
    class Item(BaseModel):
        """Another name for the same fields."""

        sku: str = Field("b", max_length=3)

    class Stricter(Event, name="Deposited"):
        amount: int = Field(ge=0, description="in cents")
        colour: Colour = Colour.RED
        lines: tuple[Item, ...] = ()

    assert found(log, application(Stricter)) == []


def test_a_renamed_event_is_refused_with_the_class_that_it_may_be_now(log: Log) -> None:
    class MoneyIn(Event):
        amount: int
        colour: Colour = Colour.RED
        lines: tuple[Line, ...] = ()

    assert only(log, application(MoneyIn)) == Misfit(
        "event 'Deposited' version 1",
        "the store holds it, and no class here has that name",
        'MoneyIn has the same fields: if it is that event, give name="Deposited" in its class line; list the class in '
        'events= if no aggregate here evolves it, or give retired=["Deposited"] to give it up',
    )
    assert found(log, application(MoneyIn, retired=["Deposited"])) == []


def test_an_event_that_is_gone_is_refused_unless_it_is_known_or_retired(log: Log) -> None:
    class Opened(Event):
        amount: int

    class Seen(Projection):
        @project
        def deposited(self, event: Deposited) -> None:
            pass

    assert only(log, application(Opened)).remedy.startswith('keep its class, with name="Deposited" if that is called')
    assert found(log, application(Opened, Deposited)) == []
    assert found(log, application(Opened, retired=["Deposited"])) == []
    by_a_projection = application(Opened)
    assert found(log, Catalogue(list(by_a_projection.aggregates.values()), [Seen])) == []


def test_a_renamed_aggregate_is_refused_with_the_class_that_it_may_be_now(log: Log) -> None:
    assert only(log, application(Deposited, name="Konto")) == Misfit(
        "aggregate 'Account'",
        "the store holds some, and no class here has that name",
        'if Box is that aggregate, give name="Account" in its class line; or give retired=["Account"] to give it up',
    )
    assert found(log, application(Deposited, name="Konto", retired=["Account"])) == []


def test_code_that_is_older_than_the_log_is_refused(log: Log) -> None:
    class Newer(Event, name="Deposited", version=2):
        amount: int

        @staticmethod
        @upcast(from_version=1)
        def first(old: Payload) -> Payload:
            return {"amount": old["amount"]}

    write(log, application(Newer), 1)
    assert only(log, OLD) == Misfit(
        "event 'Deposited' version 2",
        "the store holds it, and Deposited is at version 1: the code is older than the log",
        "start the release that has written it, or a later one",
    )


def test_all_differences_are_told_at_once_and_cross_processes(log: Log) -> None:
    class Other(Event):
        amount: int

    with pytest.raises(CodeMismatch) as caught:
        check_fit("bank-data", application(Other, name="Other"), {0: log})
    assert [misfit.where for misfit in caught.value.misfits] == ["event 'Deposited' version 1", "aggregate 'Account'"]
    assert str(caught.value).startswith("bank-data: the code does not fit what the store holds, in 2 places: (1) ")
    assert to_wire(from_wire(to_wire(caught.value))) == to_wire(caught.value)
    assert isinstance(from_wire(to_wire(caught.value)), CodeMismatch)


def test_the_store_of_another_application_is_called_that_first(log: Log) -> None:
    class Closed(Event):
        amount: int

    class Other(Event):
        amount: int

    write(log, application(Closed, name="Drawer"), 1)
    assert found(log, application(Other, name="Other"))[0] == Misfit(
        "the store",
        "the store holds none of the events and aggregates of this application, but others",
        "if it is that of another application, choose another directory",
    )
    for known in (application(Other, name="Drawer"), application(Deposited, name="Other")):
        assert "the store" not in [misfit.where for misfit in found(log, known)]


def test_a_log_of_which_two_releases_have_written_one_version_needs_a_new_one(tmp_path: Path) -> None:
    """Each partition keeps the shape of its own first event."""

    class Euros(Event, name="Deposited"):
        amount: int
        euros: int = 0

    first, second = MemoryLog(), MemoryLog()
    write(first, OLD, 1)
    write(second, application(Euros), 1)
    both = {0: first, 1: second}
    for catalogue in (OLD, application(Euros)):
        assert len(misfits(catalogue, held_in(both.values()), both)) == 1


def test_an_empty_log_fits_any_code() -> None:
    assert found(MemoryLog(), OLD) == []


def test_a_sample_has_the_first_and_the_last_events_and_some_in_between() -> None:
    log = MemoryLog()
    for _ in range(20):
        write(log, OLD, *range(500))
    positions = [stored.position for stored in sampled(log)]
    assert (positions[0], positions[-1]) == (1, 10_000)
    assert positions == sorted(set(positions))
    assert 4_000 < len(positions) < 6_000
