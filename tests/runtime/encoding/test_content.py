"""The same command sent again is a repeat, whatever release sends it; another command under its id is not."""

from __future__ import annotations

import itertools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid4

import msgpack
import pytest
from pydantic import BaseModel, Field, PlainSerializer

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.content import RAW_BYTES_MAX, old_payloads
from rayfold.runtime.encoding.envelope import Envelope, PackedCommand, derived_id, pack, unpack_batch
from rayfold.runtime.errors import CommandIdReused, InvalidMessage
from rayfold.runtime.log.contract import Append, Log, NewEvent
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.write_loop import WriteLoop

SECRET = bytes(range(32))
SAME = derived_id("payment", 7)
ALICE = StreamId("Account", "alice")


class Opened(Event):
    pass


class Line(BaseModel):
    sku: str
    count: int = 1


class LineWithNote(BaseModel):
    note: str = ""
    count: int = 2
    sku: str


@dataclass(frozen=True)
class Place:
    street: str
    number: int = 1


@dataclass(frozen=True)
class PlaceWithDoor:
    street: str
    door: str | None = None
    number: int = 1


class Pair(NamedTuple):
    left: int


class PairWithRight(NamedTuple):
    left: int
    right: int = 0


class Colour(Enum):
    RED = "red"


Cents = Annotated[Decimal, PlainSerializer(lambda value: f"{value:.2f}")]


def command(**fields: Any) -> type[Command]:
    """A release of the command `Open`, with these fields: annotations, or pairs of annotation and default."""
    annotations = {name: kind[0] if isinstance(kind, tuple) else kind for name, kind in fields.items()}
    defaults = {name: kind[1] for name, kind in fields.items() if isinstance(kind, tuple)}
    body = {"__annotations__": annotations, "__module__": __name__, **defaults}
    return types.new_class("Open", (Command,), exec_body=lambda space: space.update(body))


def release(message: type[Command]) -> type[Aggregate]:
    class Account(Aggregate, placement=Shared(), name="Account"):
        @decide
        def open(self, command: message) -> Opened:  # type: ignore[valid-type]
            return Opened()

        @evolve
        def opened(self, event: Opened) -> None:
            pass

    return Account


def packed(cls: type[Command], **fields: Any) -> PackedCommand:
    _, blob = pack(Envelope(release(cls), "alice", cls(**fields), SAME))
    (arrived,) = unpack_batch(blob)
    return arrived


EARLIER_AND_LATER: dict[str, tuple[type[Command], type[Command], dict[str, Any]]] = {
    "one field more": (command(amount=int), command(amount=int, note=(str, "")), {"amount": 5}),
    "one field more, before the others": (
        command(amount=int),
        command(a=(str | None, None), amount=int),
        {"amount": 5},
    ),
    "one field more, of a kind that is packed otherwise": (
        command(amount=int),
        command(amount=int, due=(date | None, None), line=(Line | None, None)),
        {"amount": 5},
    ),
    "another order": (command(b=int, a=str), command(a=str, b=int), {"a": "x", "b": 5}),
    "another default": (command(amount=int, fee=(int, 1)), command(amount=int, fee=(int, 2)), {"amount": 5}),
    "a default that is made anew each time": (
        command(amount=int, key=(UUID, Field(default_factory=uuid4))),
        command(
            amount=int, key=(UUID, Field(default_factory=uuid4)), at=(datetime, Field(default_factory=datetime.now))
        ),
        {"amount": 5},
    ),
    "a field gone that was never set": (command(amount=int, note=(str, "")), command(amount=int), {"amount": 5}),
    "no field at all before": (command(), command(note=(str, "")), {}),
    "a nested model with one field more": (
        command(lines=tuple[Line, ...]),
        command(lines=tuple[LineWithNote, ...]),
        {"lines": [{"sku": "a"}, {"sku": "b", "count": 3}]},
    ),
    "a model in a map": (
        command(lines=dict[str, Line]),
        command(lines=dict[str, LineWithNote], at=(date | None, None)),
        {"lines": {"x": {"sku": "a"}, "a": {"sku": "b"}}},
    ),
    "a dataclass with one field more": (
        command(place=Place),
        command(place=PlaceWithDoor),
        {"place": {"street": "Main", "number": 4}},
    ),
    "a named tuple with one field more": (command(pair=Pair), command(pair=PairWithRight), {"pair": (1,)}),
    "an alias more": (
        command(amount=int),
        command(amount=(int, Field(alias="sum", validation_alias="sum"))),
        {"amount": 5},
    ),
    "a large one": (command(text=str), command(text=str, note=(str, "")), {"text": "x" * 3_000}),
    "just as large as travels unhashed": (
        command(t=str),
        command(t=str, note=(str, "")),
        {"t": "x" * (RAW_BYTES_MAX - 6)},
    ),
}


@pytest.mark.parametrize("change", EARLIER_AND_LATER)
def test_what_a_later_release_sends_again_is_the_same_command(change: str) -> None:
    earlier, later, fields = EARLIER_AND_LATER[change]
    named = {"sum": fields["amount"]} if change == "an alias more" else fields
    for _ in range(2):  # the first message of a class may be packed another way than the second
        digests = {packed(earlier, **fields).digest(SECRET), packed(later, **named).digest(SECRET)}
        assert len(digests) == 1
    _, blob = pack(Envelope(release(later), "alice", later(**named), SAME))
    assert len(blob) < 5_000, "nothing large travels twice"


def test_the_payload_still_has_all_values() -> None:
    cls = command(amount=int, note=(str, "none"), line=(Line, Field(default_factory=lambda: Line(sku="a"))))
    assert msgpack.unpackb(packed(cls, amount=5).payload) == {
        "amount": 5,
        "note": "none",
        "line": {"sku": "a", "count": 1},
    }


OTHERS: list[tuple[type[Command], dict[str, Any], dict[str, Any]]] = [
    (command(amount=int), {"amount": 5}, {"amount": 6}),
    (command(amount=int, note=(str, "")), {"amount": 5}, {"amount": 5, "note": "x"}),
    (command(a=(int, 0), b=(int, 0)), {"a": 5}, {"b": 5}),
    (command(value=int | str), {"value": 5}, {"value": "5"}),
    (command(value=bool | int), {"value": 1}, {"value": True}),
    (command(lines=tuple[Line, ...]), {"lines": [Line(sku="a")]}, {"lines": [Line(sku="a", count=2)]}),
    (
        command(lines=tuple[Line, ...]),
        {"lines": [Line(sku="a"), Line(sku="b")]},
        {"lines": [Line(sku="b"), Line(sku="a")]},
    ),
    (command(place=Place), {"place": Place("a")}, {"place": Place("a", 2)}),
    (command(text=str), {"text": "x" * 3_000}, {"text": "x" * 2_999 + "y"}),
    (command(at=datetime), {"at": datetime(2024, 1, 1, tzinfo=UTC)}, {"at": datetime(2024, 1, 2, tzinfo=UTC)}),
    (command(money=Cents), {"money": Decimal("1.50")}, {"money": Decimal("1.51")}),
    (command(numbers=frozenset[int]), {"numbers": {1, 2}}, {"numbers": {1, 3}}),
]


@pytest.mark.parametrize(("cls", "one", "other"), OTHERS, ids=range(len(OTHERS)))
def test_other_content_is_another_command(cls: type[Command], one: dict[str, Any], other: dict[str, Any]) -> None:
    for _ in range(2):
        assert packed(cls, **one).digest(SECRET) != packed(cls, **other).digest(SECRET)


def test_equal_values_are_equal_content_in_whatever_order_they_were_put_together() -> None:
    cls = command(names=frozenset[str], by_name=Mapping[str, int], colour=Colour)
    digests = {
        packed(cls, names=set(names), by_name={name: len(name) for name in names}, colour=Colour.RED).digest(SECRET)
        for names in itertools.permutations(["ada", "bo", "christine", "d"])
    }
    assert len(digests) == 1


def test_the_id_that_is_used_again_tells_where_the_first_command_went() -> None:
    log, cls = MemoryLog(), command(amount=int)
    loop = WriteLoop(3, log, Catalogue([release(cls)]))
    loop.activate()
    first, other = packed(cls, amount=5), packed(cls, amount=6)
    (receipt,) = loop.execute([first]).outcomes
    assert isinstance(receipt, Receipt)
    elsewhere = other._replace(stream=StreamId("Account", "bob"))
    for command_again in (other, elsewhere):
        (reused,) = loop.execute([command_again]).outcomes
        assert isinstance(reused, CommandIdReused)
        assert reused.stream == command_again.stream
        assert reused.receipt == receipt._replace(repeated=True)


def test_of_two_different_commands_with_one_id_in_one_batch_the_second_gets_the_receipt_of_the_first() -> None:
    cls = command(amount=int)
    loop = WriteLoop(3, MemoryLog(), Catalogue([release(cls)]))
    loop.activate()
    receipt, reused, repeat = loop.execute(
        [packed(cls, amount=5), packed(cls, amount=6), packed(cls, amount=5)]
    ).outcomes
    assert isinstance(receipt, Receipt)
    assert isinstance(reused, CommandIdReused)
    assert reused.receipt == repeat == receipt._replace(repeated=True)


@pytest.fixture(params=["memory", "lmdb"])
def log(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    opened: Log = MemoryLog() if request.param == "memory" else open_log(tmp_path / "log", "partition 0")
    yield opened
    opened.close()


OLD: dict[str, tuple[dict[str, Any], type[Command], bool]] = {
    "the same class": ({"b": 1, "a": 2}, command(b=int, a=int), True),
    "with a default of then": ({"b": 1, "a": 2, "c": 0}, command(b=int, a=int, c=(int, 0)), True),
    "one field more since": ({"b": 1, "a": 2}, command(b=int, a=int, c=(int, 0)), True),
    "two more since": ({"b": 1, "a": 2}, command(b=int, a=int, c=(int, 0), d=(date | None, None)), True),
    "other content": ({"b": 1, "a": 3}, command(b=int, a=int), False),
}


@pytest.mark.parametrize("case", OLD)
def test_a_command_that_format_2_has_stored_is_still_told_from_another(log: Log, case: str) -> None:
    stored, cls, same = OLD[case]
    arrived = packed(cls, b=1, a=2)
    old = arrived.old_digest(msgpack.packb(stored))
    epoch = log.activate()
    log.append(epoch, [Append(ALICE, 0, (NewEvent("Opened", 1, b"\x80"),), arrived.command_id, old)])
    loop = WriteLoop(0, log, Catalogue([release(cls)]))
    loop.activate()
    (outcome,) = loop.execute([arrived]).outcomes
    assert isinstance(outcome, Receipt if same else CommandIdReused)


def old_payloads_of(cls: type[Command], **fields: Any) -> list[bytes]:
    arrived = packed(cls, **fields)
    return list(old_payloads(cls, arrived.payload, arrived.content))


def test_a_field_that_was_set_is_never_left_out_of_the_comparison_with_an_old_digest() -> None:
    cls = command(b=int, c=(int, 0))
    assert old_payloads_of(cls, b=1, c=0) == [msgpack.packb({"b": 1, "c": 0})]
    assert len(old_payloads_of(cls, b=1)) == 2


def test_of_a_long_command_those_fields_count_as_set_that_have_not_their_default() -> None:
    cls = command(text=str, c=(int, 0), d=(date | None, None))
    text = "long " * RAW_BYTES_MAX
    before = msgpack.packb({"text": text})
    assert before in old_payloads_of(cls, text=text)
    assert before not in old_payloads_of(cls, text=text, c=1)
    assert before not in old_payloads_of(cls, text=text, d=date(2020, 1, 1))


UNPACKABLE: dict[str, tuple[type[Command], dict[str, Any], str]] = {
    "a number": (command(amount=int, note=(str, "")), {"amount": 2**64}, "amount is 18446744073709551616: it does"),
    "a text": (command(text=str, day=(date | None, None)), {"text": "\ud800"}, "text is '\\ud800': it is not well"),
}


@pytest.mark.parametrize("case", UNPACKABLE)
def test_what_cannot_be_packed_is_reported_by_its_field_also_where_a_default_was_left_and_others_were_packed(
    case: str,
) -> None:
    cls, fields, text = UNPACKABLE[case]
    packed(cls, **{name: 1 if name == "amount" else "a" for name in fields})
    with pytest.raises(InvalidMessage) as told:
        pack(Envelope(release(cls), "alice", cls.model_construct(set(fields), **fields)))
    assert text in str(told.value)


def test_a_key_may_be_a_tuple_of_tuples() -> None:
    one, same, other = (packed(command(a=Any), a={(1, (2, key)): 1}) for key in (3, 3, 4))
    assert one.digest(SECRET) == same.digest(SECRET) != other.digest(SECRET)
