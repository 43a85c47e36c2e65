"""Both ends of a connection for queries, without a socket: what each takes, and what it refuses by name."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.actors.client.query_protocol import Answered, CallFailed, QueryClientProtocol, SomeAnswered
from rayfold.actors.projection.query_protocol import Asked, Awaited, QueryServerProtocol
from rayfold.actors.sockets.query_frames import (
    ANSWERED,
    ASK,
    FAILED,
    LEFT_MAX_S,
    QUERIES_MAX,
    QUERY_FRAME_BYTES_MAX,
    SOME,
    WAIT,
    pack_frame,
)
from rayfold.runtime.encoding.query_batch import PackedQuery, join_queries

ONE = join_queries([PackedQuery("Total", b"\x80")])
TWO = join_queries([PackedQuery("Total", b"\x80"), PackedQuery("", b"")])


@given(st.lists(st.integers(1, 60), max_size=20))
def test_calls_and_answers_arrive_however_the_bytes_are_divided(pieces: list[int]) -> None:
    client, server = QueryClientProtocol(), QueryServerProtocol()
    asked, first = client.ask(ONE, {0: 7}, True, False)
    waits, second = client.wait(TWO, [(1.5, {0: 8}), (2.0, {1: 9})])
    calls = [call for piece in divided(first + second, pieces) for call in server.receive(piece)]
    assert calls == [
        Asked(asked, {0: 7}, True, False, ONE, (("Total", b"\x80"),)),
        Awaited(waits, (("Total", b"\x80"), ("", b"")), [(1.5, {0: 8}), (2.0, {1: 9})]),
    ]
    sent = server.some(waits, [(1, None)], {1: 9}, b"i") + server.answered(asked, b"a", {0: 7}, b"i")
    sent += server.some(waits, [(0, b"b")], {0: 8}, b"i")
    answers = [answer for piece in divided(sent, pieces) for answer in client.receive(piece)]
    assert answers == [
        (waits, SomeAnswered(((1, None),), {1: 9}, b"i", 1)),
        (asked, Answered(b"a", {0: 7}, b"i")),
        (waits, SomeAnswered(((0, b"b"),), {0: 8}, b"i", 0)),
    ]
    assert (client.refused, server.refused, server.within, client.end()) == ("", "", False, [])


def divided(data: bytes, pieces: list[int]) -> list[bytes]:
    found = []
    for size in pieces:
        found.append(data[:size])
        data = data[size:]
    return [*found, data]


def test_what_is_in_flight_is_named_once_at_the_end() -> None:
    client, server = QueryClientProtocol(), QueryServerProtocol()
    asked, frame = client.ask(ONE, {}, True, False)
    failing, other = client.ask(ONE, {}, True, False)
    waits, last = client.wait(TWO, [(1.0, {0: 1}), (1.0, {0: 1})])
    server.receive(frame + other + last)
    sent = server.some(waits, [(0, b"a")], {0: 1}, b"i") + server.failed(failing, "no")
    assert [type(answer) for _, answer in client.receive(sent)] == [SomeAnswered, CallFailed]
    assert client.end() == [asked, waits]
    assert client.end() == []


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (struct.pack(">IQB", QUERY_FRAME_BYTES_MAX + 1, 1, ASK), f"a frame of {QUERY_FRAME_BYTES_MAX + 1} bytes, over"),
        (struct.pack(">IQB", 3, 1, ASK) + b"\xc1\xc1\xc1", "that is no call"),
        (pack_frame(9, 1, (ONE, [(1.0, {})])), "a known kind expected"),
        (pack_frame(ASK, 1, None), "a frame of kind 1 that is no call: TypeError"),
        (pack_frame(ASK, 1, ({}, True, False)), "a frame of kind 1 that is no call: ValueError"),
        (pack_frame(ASK, 1, ({}, True, False, 7)), "a frame of kind 1 that is no call: TypeError"),
        (pack_frame(ASK, 1, ({}, True, False, b"\xc1")), "a frame of kind 1 that is no call"),
        (pack_frame(ASK, 1, ({0: -1}, True, False, ONE)), "positions expected"),
        (pack_frame(ASK, 1, ({0: 1.5}, True, False, ONE)), "positions expected"),
        (pack_frame(ASK, 1, ({"a": 1}, True, False, ONE)), "positions expected"),
        (pack_frame(ASK, 1, ([], True, False, ONE)), "positions expected"),
        (pack_frame(ASK, 1, ({}, True, False, msgpack.packb([["T", b""]] * (QUERIES_MAX + 1)))), "1024 queries"),
        (pack_frame(WAIT, 1, (ONE, [])), "1 to 1024 queries, and as many deadlines expected"),
        (pack_frame(WAIT, 1, (msgpack.packb([]), [])), "1 to 1024 queries"),
        (pack_frame(WAIT, 1, (ONE, [(math.nan, {})])), "a number of seconds expected"),
        (pack_frame(WAIT, 1, (ONE, [("soon", {})])), "a number of seconds expected"),
        (pack_frame(WAIT, 1, (ONE, [(1.0,)])), "a frame of kind 2 that is no call: ValueError"),
        (pack_frame(WAIT, 1, (msgpack.packb([[b"T", b""]]), [(1.0, {})])), "queries expected"),
        (pack_frame(WAIT, 1, (ONE, [(1.0, {0: 5})])) * 2, "call 1 has not come to its end"),
    ],
)
def test_a_frame_that_is_no_call_is_refused_by_name(frame: bytes, why: str) -> None:
    server = QueryServerProtocol()
    server.receive(frame)
    assert why in server.refused


@pytest.mark.parametrize(
    ("left_s", "counts_for"), [(math.inf, LEFT_MAX_S), (1e308, LEFT_MAX_S), (-1e308, 0.0), (-math.inf, 0.0), (7, 7.0)]
)
def test_a_query_waits_for_a_day_at_most_however_long_its_caller_allows(left_s: float, counts_for: float) -> None:
    server = QueryServerProtocol()
    [call] = server.receive(pack_frame(WAIT, 1, (ONE, [(left_s, {0: 5})])))
    assert isinstance(call, Awaited)
    assert call.waits == [(counts_for, {0: 5})]


def test_so_many_calls_may_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfold.actors.projection.query_protocol.CALLS_WAITING_MAX", 2)
    server = QueryServerProtocol()
    for call in (1, 2, 3):
        server.receive(pack_frame(WAIT, call, (ONE, [(1.0, {0: 5})])))
    assert "2 waiting calls at most expected" in server.refused


GOOD = (ONE, [(1.0, {0: 5})])


@pytest.mark.parametrize(
    ("kind", "call", "content"),
    [
        (ANSWERED, 7, (b"", {}, b"i")),
        (ANSWERED, 2, (b"", {}, b"i")),
        (SOME, 1, ([(0, b"")], {}, b"i", 0)),
        (SOME, 2, ([(1, b"")], {}, b"i", 0)),
        (SOME, 2, ([(0, b""), (0, b"")], {}, b"i", 0)),
        (SOME, 2, ([(0, b"")], {}, b"i", 1)),
        (SOME, 2, ([(0, b"")], [], b"i", 0)),
        (ANSWERED, 1, (7, {}, b"i")),
        (ANSWERED, 1, (b"", {}, 7)),
        (ANSWERED, 1, None),
        (FAILED, 3, "no"),
        (WAIT, 1, GOOD),
    ],
)
def test_an_answer_that_cannot_be_one_ends_the_connection(kind: int, call: int, content: Any) -> None:
    client = QueryClientProtocol()
    client.ask(ONE, {}, True, False)
    client.wait(ONE, [(1.0, {0: 5})])
    assert client.receive(pack_frame(kind, call, content)) == []
    assert client.refused
    assert not client.answered
