"""Code that has moved on over a log that has not: bases of events, upcasts to several events, what cannot be read.

The releases of one small application, each a set of classes, over records that earlier ones have written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rayfold import (
    Aggregate,
    Command,
    DefinitionError,
    Event,
    InvalidMessage,
    Payload,
    Projection,
    Query,
    Recorded,
    Rejected,
    Shared,
    StreamId,
    UnknownEvent,
    UnknownName,
    UnreadableEvent,
    answer,
    decide,
    evolve,
    forget,
    given,
    on,
    project,
    stored,
    upcast,
)
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.feed.committed_positions import CommittedPositions, Member
from rayfold.runtime.feed.event_filter import EventFilter
from rayfold.runtime.feed.log_follower import LogFollower
from rayfold.runtime.feed.subscription import BlockingSubscription, Feed
from rayfold.runtime.log.contract import Append, Log, NewEvent, StoredEvent
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.time_travel import history, state_at
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.stream import ANY
from rayfold.runtime.write.write_loop import WriteLoop
from tests.runtime.log.appends import DIGEST, command_id
from tests.support.log_calls import LogCalls

ADA = StreamId("Account", "ada")


class Move(Command):
    amount: int


class MoveResult(Event):
    """What deposits and withdrawals share; never stored itself."""

    amount: int


class Deposited(MoveResult):
    pass


class Withdrawn(MoveResult):
    pass


class Fined(Withdrawn):
    """A withdrawal of a kind of its own."""


class Closed(Event):
    pass


class Account(Aggregate, placement=Shared(), snapshot_every=0):
    balance: int = 0

    @decide
    def move(self, command: Move) -> Deposited | Withdrawn | Fined:
        if command.amount == -1:
            return Fined(amount=-1)
        return Deposited(amount=command.amount) if command.amount > 0 else Withdrawn(amount=command.amount)

    @evolve
    def moved(self, event: MoveResult) -> None:
        self.balance += event.amount


class Sum(Query[int]):
    pass


class Sums(Projection):
    total: int = 0

    @project()
    def moved(self, event: MoveResult) -> None:
        self.total += event.amount

    @project()
    def fined(self, event: Fined) -> None:
        """Fines are counted elsewhere: the nearest handler has them."""

    @answer()
    def sum(self, query: Sum) -> int:
        return self.total

    @forget()
    def forget(self, stream: StreamId) -> None:
        self.total = 0


@pytest.fixture(params=["memory", "lmdb"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    made: Log = MemoryLog() if request.param == "memory" else open_log(tmp_path / "log", "partition 0")
    yield made
    made.close()


def written(log: Log, *events: tuple[str, int, Payload], stream: StreamId = ADA) -> None:
    """What an earlier release has stored, each event by a command of its own."""
    epoch = log.activate()
    for name, version, fields in events:
        event = NewEvent(name, version, msgpack.packb(fields))
        number = log.head() + 1
        log.append(epoch, [Append(stream, ANY, (event,), command_id(number), DIGEST)])


def executed(log: Log, catalogue: Catalogue, *commands: Command) -> list[Any]:
    loop = WriteLoop(0, log, catalogue)
    loop.activate()
    [aggregate] = catalogue.aggregates.values()
    return loop.execute([pack(Envelope(aggregate, "ada", command))[0] for command in commands]).outcomes


def caught_up(log: Log, projection: type[Projection], catalogue: Catalogue, part: int = 0) -> Any:
    model = ReadModel(projection, catalogue, {0: log}, part=part)
    model.open()
    model.catch_up(0)
    assert model.failed is None, model.failed
    return model._kept.model


def subscribed(log: Log, catalogue: Catalogue, **options: Any) -> list[Event]:
    feed = Feed(
        LogFollower({0: log}, {0: 0}), EventFilter(catalogue, **options)
    )  # not closed: that would close the log
    found = []
    while feed.positions[0] < log.head():
        feed.fill()
        while happened := feed.take():
            found.append(happened[0])
    return found


# Bases of events


BASED = Catalogue([Account], [Sums])


def test_a_handler_of_a_base_has_all_events_that_are_derived_from_it(log: Log) -> None:
    outcomes = executed(log, BASED, Move(amount=5), Move(amount=-2), Move(amount=-1))
    assert [outcome.version for outcome in outcomes] == [1, 2, 3]
    assert caught_up(log, Sums, BASED).total == 3
    assert state_at(BASED, log, Account, ADA, None, None).balance == 2
    assert [type(event) for event, _ in history(BASED, log, 0, ADA)] == [Deposited, Withdrawn, Fined]
    assert subscribed(log, BASED, types=[MoveResult]) == [Deposited(amount=5), Withdrawn(amount=-2), Fined(amount=-1)]
    assert subscribed(log, BASED, types=[Withdrawn]) == [Withdrawn(amount=-2), Fined(amount=-1)]


def test_a_specification_finds_the_handler_of_a_base_too() -> None:
    given(Sums, on("a", Deposited(amount=5)), Withdrawn(amount=-2), Fined(amount=-1)).ask(Sum()).answers(3)
    given(Account, Deposited(amount=5)).when(Move(amount=-2)).then(Withdrawn(amount=-2)).then_state(balance=3)


def test_an_event_that_is_defined_after_the_projection_is_handled_by_that_of_its_base() -> None:
    class Refunded(MoveResult):
        pass

    class Till(Aggregate):
        @decide
        def move(self, command: Move) -> Refunded:
            return Refunded(amount=command.amount)

        @evolve
        def moved(self, event: MoveResult) -> None:
            pass

    assert Refunded in Catalogue([Till], [Sums]).projectors(Sums)
    assert Refunded not in BASED.projectors(Sums)


def test_an_event_of_a_base_that_no_decide_names_is_refused_when_it_is_decided() -> None:
    class Sly(Aggregate):
        @decide
        def move(self, command: Move) -> MoveResult:
            return Deposited(amount=command.amount)

        @evolve
        def moved(self, event: MoveResult) -> None:
            pass

    with pytest.raises(Exception, match="which no return annotation of a @decide names; name it there"):
        given(Sly).when(Move(amount=1))


def test_a_handler_of_a_base_of_which_no_event_is_known_is_refused() -> None:
    class Odd(Event):
        pass

    class OddOne(Odd):
        pass

    class Odds(Projection):
        @project
        def odd(self, event: Odd) -> None:
            pass

    with pytest.raises(DefinitionError) as caught:
        Catalogue([Account], [Odds])
    assert str(caught.value) == (
        "Odds.odd: it handles Odd, and no event that is derived from it is known here; list the aggregates that evolve "
        "OddOne, or give events=[OddOne]"
    )
    assert list(Catalogue([Account], [Odds], events=[OddOne]).projectors(Odds)) == [OddOne, Odd]


def test_a_subscription_to_a_class_that_no_event_is_derived_from_is_refused(log: Log) -> None:
    with pytest.raises(UnknownName, match="no event is named 'Closed'"):
        subscribed(log, BASED, types=[Closed])


def test_a_read_model_is_made_anew_when_an_event_that_it_has_by_a_base_or_an_upcast_changes() -> None:
    def release(cents: int, unit: str) -> bytes:
        class Refunded(MoveResult):
            @property
            def signed(self) -> int:
                return -cents * self.amount

        class Old(Event, version=2):
            @staticmethod
            @upcast(from_version=1)
            def moved(old: Payload) -> Any:
                return stored("Refunded", amount=unit)

        return Catalogue([], [Sums], events=[Refunded, Old]).fingerprint(Sums)

    first = release(1, "a")
    assert release(1, "a") == first
    assert len({first, release(2, "a"), release(1, "b"), BASED.fingerprint(Sums)}) == 4


# Upcasts to several events, and to none


class Paid(Event, version=3):
    """Version 1 was one payment of several parts, version 2 had no zeroes left."""

    amount: int

    @staticmethod
    @upcast(from_version=1)
    def each_part(old: Payload) -> list[Payload]:
        return [{"amount": part} for part in old["parts"]]

    @staticmethod
    @upcast(from_version=2)
    def without_zeroes(old: Payload) -> Payload | None:
        return old if old["amount"] else None


class Renamed(Event):
    owner: str


class Registered(Event, version=2):
    """Version 1 had the name of the owner too."""

    number: int

    @staticmethod
    @upcast(from_version=1)
    def split(old: Payload) -> Iterator[Any]:
        yield {"number": old["number"]}
        yield stored("Renamed", owner=old["owner"])


class Ledger(Aggregate, name="Account", placement=Shared(), snapshot_every=0):
    total: int = 0
    owner: str = ""
    versions: list[int] = []

    @evolve
    def paid(self, event: Paid) -> None:
        self.total += event.amount
        self.versions.append(self.version)

    @evolve
    def renamed(self, event: Renamed) -> None:
        self.owner = event.owner

    @evolve
    def registered(self, event: Registered) -> None:
        pass


class Places(Projection):
    seen: list[tuple[str, int]] = []

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        self.seen.append((f"paid {event.amount}", recorded.position))

    @project
    def renamed(self, event: Renamed, recorded: Recorded) -> None:
        self.seen.append((event.owner, recorded.position))


SPLIT = Catalogue([Ledger], [Places])
OLD: Sequence[tuple[str, int, Payload]] = [
    ("Paid", 1, {"parts": [1, 0, 2]}),
    ("Registered", 1, {"number": 7, "owner": "Ada"}),
    ("Paid", 1, {"parts": []}),
    ("Paid", 2, {"amount": 0}),
    ("Paid", 3, {"amount": 4}),
]
SEEN = [("paid 1", 1), ("paid 2", 1), ("Ada", 2), ("paid 4", 5)]


def test_an_upcast_makes_several_events_or_none_for_every_reader(log: Log) -> None:
    written(log, *OLD)
    state = state_at(SPLIT, log, Ledger, ADA, None, None)
    assert (state.total, state.owner, state.version, state.versions) == (7, "Ada", 5, [0, 0, 4])
    assert state_at(SPLIT, log, Ledger, ADA, 1, None).total == 3
    assert caught_up(log, Places, SPLIT).seen == SEEN
    events = [Paid(amount=1), Paid(amount=2), Registered(number=7), Renamed(owner="Ada"), Paid(amount=4)]
    assert [event for event, _ in history(SPLIT, log, 0, ADA)] == events
    assert [recorded.version for _, recorded in history(SPLIT, log, 0, ADA)] == [1, 1, 2, 2, 5]
    assert subscribed(log, SPLIT) == events
    assert subscribed(log, SPLIT, types=[Renamed]) == [Renamed(owner="Ada")]
    assert subscribed(log, SPLIT, types=[Registered]) == [Registered(number=7)]


class Tipped(Event):
    amount: int


class Served(Event, version=2):
    amount: int

    @staticmethod
    @upcast(from_version=1)
    def with_tip(old: Payload) -> list[Any]:
        return [{"amount": old["amount"]}, stored("Tipped", amount=1)]


class QueryRouter(Projection):
    """Handles one of the two events that an old one became."""

    served: int = 0

    @project
    def of(self, event: Served) -> None:
        self.served += event.amount


class Serve(Command):
    amount: int


class Waiter(Aggregate):
    served: int = 0

    @decide
    def serve(self, command: Serve) -> Served | Rejected:
        return Rejected("enough") if self.served > 9 else Served(amount=command.amount)

    @evolve
    def of(self, event: Served) -> None:
        self.served += event.amount


def test_a_specification_is_told_what_else_the_application_has() -> None:
    old = stored("Served", amount=5)
    given(QueryRouter, old, on("a", old), stored("Tipped", amount=3), events=[Tipped]).then_state(served=10)
    given(QueryRouter, old, retired=["Tipped"]).given(old).then_state(served=10)
    ada = given(Waiter, stored("Left", by=1), old, retired=["Left", "Tipped"])
    ada.then_state(served=5, version=2)
    ada.when(Serve(amount=5)).then(Served(amount=5)).given(old).when(Serve(amount=1)).rejected("enough").given(old)
    with pytest.raises(UnknownEvent, match="it is upcast to 'Tipped' version 1: no registered class") as caught:
        given(QueryRouter, old)
    assert caught.value.__notes__ == ["given(..., events=[...], retired=[...]) names what else the application has"]
    with pytest.raises(DefinitionError, match="not a list of stored names"):
        given(QueryRouter, old, retired="Tipped")


def test_a_specification_may_begin_with_events_as_they_were_stored() -> None:
    ada = given(Ledger, stored("Paid", version=1, parts=[1, 0, 2]), Paid(amount=4), stored("Paid", parts=[]))
    ada.then_state(total=7, version=3, versions=[0, 0, 1])
    given(Places, ("a", stored(Registered, number=7, owner="Ada")), stored("Paid", version=2, amount=3)).then_state(
        seen=[("Ada", 1), ("paid 3", 2)]
    )
    with pytest.raises(UnknownEvent, match="'Paaid' version 1 cannot be read: no registered class has that name"):
        given(Ledger, stored("Paaid", amount=1))
    with pytest.raises(UnknownEvent, match="Paid is only at version 3"):
        given(Ledger, stored("Paid", version=4, amount=1))
    assert repr(stored("Paid", version=2, amount=1)) == "stored('Paid', version=2, amount=1)"
    assert stored("Paid", payload={"version": 1}, amount=2).payload == {"version": 1, "amount": 2}
    with pytest.raises(DefinitionError, match="version=0 is not a schema version"):
        stored("Paid", version=0)
    with pytest.raises(DefinitionError, match="is not an event; give the stored name"):
        stored(int)  # type: ignore[arg-type]


def test_the_events_of_one_record_are_acknowledged_together(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 1)
    log = store.open_log(0)
    written(log, *OLD)
    calls, member = LogCalls({0: log}, leased=True, store_id=store.store_id), Member("mailer", 0, 1, "by stream")
    acknowledged = CommittedPositions(calls, None, member, {0: 0}, lambda _partition, _position: "", store.store_id)
    feed = Feed(LogFollower({0: log}, {0: 0}), EventFilter(SPLIT), acknowledged, by_hand=True)
    feed.fill()
    first = feed.take()
    assert first is not None
    feed.acknowledge(first[1])
    feed.save()
    assert feed.acknowledged == {0: 0}, "the second half of the record would be lost"
    second = feed.take()
    assert second is not None
    feed.acknowledge(second[1])
    feed.save()
    assert feed.acknowledged == {0: 1}
    feed.close()
    log.close()


def upcasting(function: Any) -> type[Aggregate]:
    class Odd(Event, name="Odd", version=2):
        amount: int = 0
        first = staticmethod(upcast(from_version=1)(function))

    class Box(Aggregate, snapshot_every=0):
        @evolve
        def odd(self, event: Odd) -> None:
            pass

    return Box


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda old: 5, "<lambda> returned a int; return a payload, a list of payloads, or None"),
        (lambda old: "text", "<lambda> returned a str"),
        (lambda old: [5], "<lambda> returned a int in its list; return payloads, and stored"),
        (lambda old: [stored("Odd")], "<lambda> returned a stored Odd, its own event; return its payload instead"),
        (lambda old: stored("Missing"), "it is upcast to 'Missing' version 1: no registered class has that name"),
        (lambda old: [{"amount": 1}] * 2_000, "it makes over 1,000 events of one"),
        (lambda old: [{"amount": "x"}], "Odd: amount is 'x': input should be a valid integer"),
    ],
)
def test_a_result_that_is_no_event_is_told(function: Any, told: str) -> None:
    box = upcasting(function)
    record = StoredEvent(1, ADA, 1, "Odd", 1, b"\x80", 0, b"", b"", b"")
    with pytest.raises(UnknownEvent) as caught:
        Catalogue([box]).decode_events(record)
    assert told in str(caught.value)


def test_an_upcaster_that_is_annotated_to_return_a_payload_has_to() -> None:
    def nothing(old: Payload) -> Payload:
        return None  # type: ignore[return-value]

    with pytest.raises(UnknownEvent, match="nothing is annotated to return a payload and returned None"):
        Catalogue([upcasting(nothing)]).decode_events(StoredEvent(1, ADA, 1, "Odd", 1, b"\x80", 0, b"", b"", b""))


def test_upcasts_that_go_in_circles_end() -> None:
    class Ping(Event, version=2):
        @staticmethod
        @upcast(from_version=1)
        def to_pong(old: Payload) -> Any:
            return stored("Pong")

    class Pong(Event, version=2):
        @staticmethod
        @upcast(from_version=1)
        def to_ping(old: Payload) -> Any:
            return stored("Ping")

    catalogue = Catalogue(events=[Ping, Pong])
    with pytest.raises(UnknownEvent, match="its upcasts go in circles, by way of P"):
        catalogue.decode_events(StoredEvent(1, ADA, 1, "Ping", 1, b"\x80", 0, b"", b"", b""))


def int_of(old: Payload) -> int:
    return 1


def event_of(old: Payload) -> MoveResult:
    return MoveResult(amount=1)


def text_of(old: Payload) -> str | None:
    return None


async def later(old: Payload) -> Payload:
    return old


@pytest.mark.parametrize("function", [int_of, event_of, text_of])
def test_an_annotation_that_no_result_of_an_upcaster_has_is_refused_at_definition(function: Any) -> None:
    with pytest.raises(DefinitionError, match="an upcaster sees plain values and no classes; return a payload"):
        upcasting(function)


def test_an_upcaster_cannot_be_async() -> None:
    with pytest.raises(DefinitionError, match="an upcaster cannot be async"):
        upcasting(later)


# What is retired


def test_the_events_of_a_retired_name_are_passed_over_by_every_reader(log: Log) -> None:
    written(log, ("Paid", 3, {"amount": 1}), ("Nicknamed", 1, {"nickname": "A"}), ("Paid", 3, {"amount": 2}))
    catalogue = Catalogue([Ledger], [Places], retired=["Nicknamed"])
    state = state_at(catalogue, log, Ledger, ADA, None, None)
    assert (state.total, state.version) == (3, 3)
    assert subscribed(log, catalogue) == [Paid(amount=1), Paid(amount=2)]
    assert [recorded.version for _, recorded in history(catalogue, log, 0, ADA)] == [1, 3]
    with pytest.raises(UnknownEvent):
        state_at(SPLIT, log, Ledger, ADA, None, None)


@pytest.mark.parametrize(
    ("retired", "told"),
    [
        (["Paid"], "retired=: 'Paid' is the stored name of a class here; take one of them out"),
        ("Nicknamed", "retired=: 'Nicknamed' is not a list of stored names"),
        ([Paid], "is not a list of stored names"),
    ],
)
def test_what_cannot_be_retired_is_refused(retired: Any, told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Catalogue([Ledger], retired=retired)
    assert told in str(caught.value)


# A reader with older classes


NEWER: Sequence[tuple[str, int, Payload]] = [
    ("Paid", 3, {"amount": 1}),
    ("Paid", 4, {"amount": 2, "currency": "EUR"}),
    ("Frozen", 1, {"why": "court"}),
    ("Paid", 3, {"amount": 3}),
]


def test_a_history_has_what_can_be_read_and_says_what_cannot(log: Log) -> None:
    written(log, *NEWER)
    found = history(SPLIT, log, 0, ADA, unreadable="yield")
    newer, frozen = found[1][0], found[2][0]
    assert [event for event, _ in found if not isinstance(event, UnreadableEvent)] == [Paid(amount=1), Paid(amount=3)]
    assert isinstance(newer, UnreadableEvent)
    assert isinstance(frozen, UnreadableEvent)
    assert (newer.event, newer.stored_version, newer.fields) == ("Paid", 4, {"amount": 2, "currency": "EUR"})
    assert newer.why == "Paid is only at version 3; deploy newer code"
    assert frozen.why.startswith("no registered class has that name; known: ")
    assert found[1][1].position == 2
    with pytest.raises(UnknownEvent) as caught:
        history(SPLIT, log, 0, ADA)
    assert str(caught.value) == (
        "stored event 'Paid' version 4 cannot be read: Paid is only at version 3; deploy newer code (event 2 of "
        "partition 0, Account/ada 2)"
    )
    assert (caught.value.stream, caught.value.version, caught.value.partition) == ("Account/ada", 2, 0)
    with pytest.raises(InvalidMessage, match='unreadable: is \'skip\'; give "raise" or "yield"'):
        history(SPLIT, log, 0, ADA, unreadable="skip")  # type: ignore[arg-type]


def test_a_subscription_goes_on_after_what_it_cannot_read_if_it_is_asked_to(log: Log) -> None:
    written(log, *NEWER)
    found = subscribed(log, SPLIT, unreadable="yield")
    assert [type(event) for event in found] == [Paid, UnreadableEvent, UnreadableEvent, Paid]
    of_one_type = subscribed(log, SPLIT, unreadable="yield", types=[Paid])
    assert [event.event for event in of_one_type if isinstance(event, UnreadableEvent)] == ["Paid"]


def test_a_subscription_that_raises_says_where_and_goes_on_from_there_with_newer_classes(log: Log) -> None:
    written(log, *NEWER)
    feed = Feed(LogFollower({0: log}, {0: 0}), EventFilter(SPLIT))
    subscription = BlockingSubscription(feed)
    assert [event for event, _ in islice(subscription, 1)] == [Paid(amount=1)]
    for _ in range(2):
        with pytest.raises(UnknownEvent) as caught:
            next(subscription)
        assert (caught.value.partition, caught.value.position) == (0, 2)
    assert subscription.positions == {0: 1}
    subscription.close()


def test_a_state_is_had_up_to_what_cannot_be_read_and_the_error_says_which_version_that_is(log: Log) -> None:
    written(log, *NEWER)
    with pytest.raises(UnknownEvent) as caught:
        state_at(SPLIT, log, Ledger, ADA, None, None)
    assert caught.value.version == 2
    assert state_at(SPLIT, log, Ledger, ADA, caught.value.version - 1, None).total == 1
