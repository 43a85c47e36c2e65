"""Frames and records without a socket: how calls and answers travel, and what is refused before it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack
import pytest

from rayfold.actors.sockets.calls import CALL, VALUE
from rayfold.actors.sockets.framing import Frame, FrameReader, frame
from rayfold.actors.sockets.records import Records
from rayfold.runtime.errors import Conflict, InvalidMessage, NotYetVisible, RayfoldError
from rayfold.runtime.stream import StreamId


class Place(NamedTuple):
    name: str
    positions: dict[int, int] = {}  # noqa: RUF012 - a tuple's default


@dataclass(frozen=True, slots=True)
class Found:
    places: tuple[Place, ...]
    seen: frozenset[str] = field(default_factory=frozenset)


RECORDS = Records([Place, Found, StreamId])


def test_frames_that_come_byte_by_byte_are_the_same_as_all_at_once() -> None:
    sent = [Frame(1, CALL, b"one"), Frame(2**63, VALUE, b""), Frame(3, VALUE, bytes(1000))]
    stream = b"".join(frame(*one) for one in sent)
    assert FrameReader(1000).receive(stream) == sent
    reader = FrameReader(1000)
    assert [one for at in range(len(stream)) for one in reader.receive(stream[at : at + 1])] == sent


def test_a_frame_over_the_bound_is_refused_by_its_head_alone() -> None:
    reader = FrameReader(1000)
    assert reader.receive(frame(1, CALL, b"x") + frame(2, CALL, bytes(1001))[:13]) == [Frame(1, CALL, b"x")]
    assert reader.refused == "a frame of 1001 bytes, over 1000"


@pytest.mark.parametrize(
    "value",
    [
        [None, True, 1, -1.5, "text", b"bytes", [1, [2]], {1: "a", "b": 2}],
        (1, ("two", [3])),
        {"set", "of"},
        frozenset({1, 2}),
        Found((Place("a", {0: 7}), Place("b")), frozenset({"x"})),
        {"where": StreamId("Account", "alice")},
    ],
)
def test_a_value_comes_back_with_all_its_types(value: Any) -> None:
    back = RECORDS.unpack(RECORDS.pack(value))
    assert back == value
    assert type(back) is type(value)


def test_an_error_comes_back_with_its_type_and_facts() -> None:
    for error in (Conflict("Account/alice", 4, 6), NotYetVisible("Balances", 1, 7, 5)):
        back = RECORDS.unpack(RECORDS.pack(error))
        assert isinstance(back, RayfoldError)
        assert (type(back), str(back)) == (type(error), str(error))


def test_a_field_of_a_later_release_is_ignored_and_one_that_is_missing_has_its_default() -> None:
    packed = msgpack.packb(msgpack.ExtType(1, msgpack.packb(["Place", {"name": "a", "colour": "red"}])))
    assert RECORDS.unpack(packed) == Place("a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(msgpack.ExtType(1, msgpack.packb(["Popen", {"args": "x"}]))),
        msgpack.packb(msgpack.ExtType(1, b"\x90")),
        msgpack.packb(msgpack.ExtType(99, b"\x90")),
        msgpack.packb(msgpack.ExtType(5, msgpack.packb(["SystemExit"]))),
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_what_is_no_value_is_refused_and_makes_nothing(data: bytes) -> None:
    with pytest.raises(InvalidMessage, match="value"):
        RECORDS.unpack(data)


def test_values_that_are_nested_without_end_are_refused() -> None:
    data = b"\xc0"
    for _ in range(1000):
        inner = b"\x91" + data
        data = b"\xc9" + len(inner).to_bytes(4, "big") + b"\x02" + inner
    with pytest.raises(InvalidMessage, match="values are nested more than 128 deep"):
        RECORDS.unpack(data)


def test_an_object_of_another_class_is_not_sent() -> None:
    with pytest.raises(TypeError, match="a complex cannot be sent to another program"):
        RECORDS.pack([1j])
