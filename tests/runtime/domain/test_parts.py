"""A projection in several parts: each event in one of them, each query to one of them or to all."""

from __future__ import annotations

from typing import Any

import pytest
import ray.cloudpickle

from rayfold.runtime.domain.projection import Projection, Route, answer, forget, part_of, project
from rayfold.runtime.domain.read_store import DuckDb, InMemory, Lmdb
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.saved_state import state_fingerprint
from rayfold.runtime.errors import DefinitionError
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.stream import StreamId
from tests.bank import Account, Deposited
from tests.runtime.read.stores.tallies import Seen, SumOf, Tally, ask, deposit

PARTS = 3
ACCOUNTS = [f"account-{number}" for number in range(20)]


class Parted(Projection, parts=PARTS):
    """By account, which is the stream."""

    sums: dict[str, int] = {}
    positions: list[int] = []

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.sums[recorded.aggregate_id] = self.sums.get(recorded.aggregate_id, 0) + event.amount
        self.positions.append(recorded.position)

    @answer(key=lambda query: query.account)
    def sum_of(self, query: SumOf) -> int:
        return self.sums.get(query.account, 0)

    @answer(merge=lambda parts: sorted(position for part in parts for position in part))
    def seen(self, query: Seen) -> list[int]:
        return self.positions


class ByAmount(Parted, name="ByAmount", parts=PARTS, key=lambda event: str(event.amount)):
    """By a field of the event."""


class ByPlace(Parted, name="ByPlace", parts=PARTS, key=lambda event, recorded: f"{event.amount}{recorded.version}"):
    """By a field of the event and its version."""


def parts_of(projection: type[Projection], log: MemoryLog) -> list[ReadModel]:
    catalogue = Catalogue([Account], [projection])
    parts = [ReadModel(projection, catalogue, {0: log}, part=part) for part in range(projection.parts)]
    for part in parts:
        part.catch_up(0)
    return parts


@pytest.mark.parametrize("projection", [Parted, ByAmount, ByPlace])
def test_each_event_is_in_exactly_one_part_and_every_part_comes_to_the_end(projection: type[Projection]) -> None:
    log = MemoryLog()
    for amount in range(1, 26):
        deposit(log, [ACCOUNTS[(amount + number) % 20] for number in range(4)], amount)
    parts = parts_of(projection, log)
    assert [part.positions for part in parts] == [{0: 100}] * PARTS
    seen = [ask(part, Seen()) for part in parts]
    assert all(len(positions) >= 10 for positions in seen)
    assert sorted(sum(seen, [])) == list(range(1, 101))
    merge = projection.answer_routes[Seen].merge
    assert merge is not None
    assert merge(seen) == list(range(1, 101))


def test_the_part_that_the_key_of_a_query_names_has_all_of_its_events() -> None:
    log = MemoryLog()
    deposit(log, ACCOUNTS * 3)
    parts = parts_of(Parted, log)
    key = Parted.answer_routes[SumOf].key
    assert key is not None
    for account in ACCOUNTS:
        query = SumOf(account=account)
        assert ask(parts[part_of(key(query), PARTS)], query) == 30


def test_the_payload_of_an_event_of_another_part_is_not_decoded() -> None:
    log = MemoryLog()
    deposit(log, ACCOUNTS)
    mine = next(account for account in ACCOUNTS if part_of(account, PARTS) == 0)
    decoded: list[int] = []

    class Counted(Parted, name="Counted", parts=PARTS):
        pass

    model = ReadModel(Counted, Catalogue([Account], [Counted]), {0: log}, part=0)
    target = model._kept._loop._targets["Deposited"]
    model._kept._loop._targets["Deposited"] = target._replace(
        validate=lambda *args, **kwargs: decoded.append(1) or target.validate(*args, **kwargs)  # type: ignore[func-returns-value]
    )
    model.catch_up(0)
    assert len(decoded) == sum(part_of(account, PARTS) == 0 for account in ACCOUNTS) < len(ACCOUNTS)
    assert ask(model, SumOf(account=mine)) == 10


def test_the_part_of_a_key_is_the_same_in_every_process_and_version() -> None:
    assert [part_of(key, 7) for key in ("alice", "bob", "", "ä\0/..")] == [5, 2, 0, 5]


def test_a_key_that_raises_stops_the_projection_and_is_named() -> None:
    class Keyed(Parted, name="Keyed", parts=PARTS, key=lambda event: event.nothing):
        pass

    log = MemoryLog()
    deposit(log, ["alice"])
    (part, *_) = parts_of(Keyed, log)
    assert str(part.failed).startswith("key= of Keyed failed on event 1 of partition 0 (Account/alice 1): Attribute")


def test_another_number_of_parts_or_another_key_is_other_code() -> None:
    class Four(Parted, name="Parted", parts=4):
        pass

    class Keyed(Parted, name="Parted", key=lambda event: event.currency):
        pass

    class Again(Parted, name="Parted"):
        pass

    assert len({state_fingerprint(cls) for cls in (Parted, Four, Keyed)}) == 3
    assert state_fingerprint(Again) == state_fingerprint(Parted)


def test_what_the_class_line_says_travels_with_the_class() -> None:
    class Local(Parted, name="Local", parts=2, key=lambda event: event.currency, on_failure="quarantine"):
        @forget
        def drop(self, stream: StreamId) -> None:
            self.sums.pop(stream.id, None)

    sent: type[Projection] = ray.cloudpickle.loads(ray.cloudpickle.dumps(Local))
    assert (sent.parts, sent.on_failure, sent.read_store) == (2, "quarantine", InMemory())
    assert sent.part_key is not None
    assert sent.part_key(Deposited(amount=1, currency="USD")) == "USD"
    assert sent.forgets is not None
    assert sent.answer_routes[SumOf].key is not None
    assert state_fingerprint(sent) == state_fingerprint(Local)


def test_what_is_not_said_is_inherited() -> None:
    class Rows(Projection, store=Lmdb(), on_failure="quarantine"):
        pass

    class More(Rows):
        pass

    assert (More.read_store, More.on_failure, More.parts) == (Lmdb(), "quarantine", 1)
    assert Tally.answer_routes[Seen] == Route()


class Odd:
    """A store without a repr of its own."""

    def make(self) -> Any: ...


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"parts": 0}, "Sums: parts=0 is not a number of parts; choose 1 to 256"),
        ({"parts": 257}, "Sums: parts=257 is not a number of parts; choose 1 to 256"),
        ({"parts": True}, "Sums: parts=True is not a number of parts; choose 1 to 256"),
        ({"on_failure": "skip"}, 'Sums: on_failure=\'skip\'; give "stop" or "quarantine"'),
        ({"key": len}, "Sums: key=<built-in function len> is not a function of an event; write a function or lambda"),
        ({"key": lambda a, b, c: ""}, "is not a function of an event; write a function or lambda that takes an event"),
        ({"store": Lmdb}, f"Sums: store=<class '{Lmdb.__module__}.Lmdb'> is not a store; give store=Lmdb()"),
        ({"store": "lmdb"}, "Sums: store='lmdb' is not a store; give store=Lmdb(), for example"),
        ({"store": Odd()}, "make it a frozen dataclass: the repr has to distinguish one declaration from another"),
    ],
)
def test_a_class_line_that_cannot_work_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        type("Sums", (Projection,), {"__module__": __name__}, **options)
    assert told in str(caught.value)


def test_fields_beside_another_store_than_memory_are_refused() -> None:
    for store, kind in ((Lmdb(), "Lmdb"), (DuckDb(""), "DuckDb")):
        with pytest.raises(DefinitionError) as caught:
            type("Sums", (Projection,), {"__module__": __name__, "__annotations__": {"n": int}, "n": 0}, store=store)
        assert str(caught.value) == (
            f"Sums.n: a projection in {kind} has no fields, they would be lost;"
            f" keep it in the {kind} store, or annotate it ClassVar if it is a constant"
        )


def test_an_answer_of_a_projection_in_parts_says_whom_to_ask() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection, parts=2):
            @answer
            def sum_of(self, query: SumOf) -> int:
                return 0

    assert str(caught.value) == (
        "Sums.sum_of: it does not declare which of the 2 parts to ask;"
        " write @answer(key=...) for the one that holds a key, or @answer(merge=...) for all"
    )
    with pytest.raises(DefinitionError, match="@answer: it has both a key and a merge"):
        answer(key=lambda query: "", merge=sum)


def test_a_projection_forgets_in_one_way() -> None:
    with pytest.raises(DefinitionError, match="Sums: both drop and leave are marked @forget; keep one of them"):

        class Sums(Projection):
            @forget
            def leave(self, stream: StreamId) -> None: ...

            @forget
            def drop(self, stream: StreamId) -> None: ...

    with pytest.raises(DefinitionError, match="More.drop: a @forget method takes self and a StreamId"):

        class More(Projection):
            @forget
            def drop(self) -> None: ...
