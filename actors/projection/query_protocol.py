"""QueryServerProtocol: what the projector's end of a connection to a client does, without a socket.

Step [8]. Around it: `QueryServer` (`query_server.py`), which moves the bytes, answers, and keeps what waits. Its
counterpart: `QueryClientProtocol` (`../client/query_protocol.py`).

Bytes in, calls out, and the frames of their answers: no socket, no thread, no clock.

Rules kept here: nothing that arrives is unpickled; whatever does not have the form of a call is refused by name before
anything is done for it; a call's number is used by one call at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ...runtime.encoding.query_batch import split_queries
from ..sockets.frame_protocol import FrameProtocol, expect
from ..sockets.framing import Frame
from ..sockets.query_frames import (
    ANSWERED,
    ASK,
    FAILED,
    LEFT_MAX_S,
    QUERIES_MAX,
    QUERY_FRAME_BYTES_MAX,
    REACHED,
    SOME,
    WAIT,
    pack_frame,
    unpack_content,
)

__all__ = ["CALLS_WAITING_MAX", "Asked", "Awaited", "QueryServerProtocol"]

CALLS_WAITING_MAX: Final = 131_072
"""Calls of one client that are not at their end. Twice as many as its queries that may be parked
(`waiting_queries.py`): what is over that bound is refused query by query, and disturbs no other."""

_POSITIONS: Final = 1 << 64


class Asked(NamedTuple):
    """A batch of queries that are answered at once."""

    call: int
    needs: Mapping[int, int]
    alone: bool
    apart: bool
    batch: bytes
    queries: Sequence[tuple[str, bytes]]
    """Those in the batch."""


class Awaited(NamedTuple):
    """Queries that wait, each for positions of its own."""

    call: int
    queries: Sequence[tuple[str, bytes]]
    waits: Sequence[tuple[float, Mapping[int, int]]]
    """For each: the seconds left until its deadline, and its `after`."""


class QueryServerProtocol(FrameProtocol):
    """One connection, from its first call to its end."""

    def __init__(self) -> None:
        super().__init__(QUERY_FRAME_BYTES_MAX)
        self._left: dict[int, int] = {}
        """By call: how many of its queries wait."""

    def receive(self, data: bytes) -> list[Asked | Awaited]:
        """The calls that `data` completes."""
        calls: list[Asked | Awaited] = []
        for one in self._reader.receive(data):
            try:
                calls.append(self._call(one))
            except Exception as error:  # whatever a value of another form raises
                self._refuse(one, "call", error)
                break
        return calls

    def answered(self, call: int, answers: bytes, positions: Mapping[int, int], incarnation: bytes) -> bytes:
        """The frame of all answers to an `Asked`."""
        return pack_frame(ANSWERED, call, (answers, positions, incarnation))

    def some(
        self,
        call: int,
        answers: Sequence[tuple[int, bytes | None]],
        positions: Mapping[int, int],
        incarnation: bytes,
    ) -> bytes:
        """The frame of some answers to an `Awaited`, each with the index of its query."""
        left = self._left[call] - len(answers)
        if left:
            self._left[call] = left
        else:
            del self._left[call]
        return pack_frame(SOME, call, (answers, positions, incarnation, left))

    def failed(self, call: int, why: str) -> bytes:
        """The frame that ends a call without its answers."""
        self._left.pop(call, None)
        return pack_frame(FAILED, call, why)

    def reached(self, positions: Mapping[int, int], incarnation: bytes) -> bytes:
        """The frame by which a client learns how far this projector has come."""
        return pack_frame(REACHED, 0, (positions, incarnation))

    def _call(self, one: Frame) -> Asked | Awaited:
        call, kind, content = one.number, one.kind, unpack_content(one.content)
        if call in self._left:
            raise ValueError(f"call {call} has not come to its end")
        if kind == ASK:
            needs, alone, apart, batch = content
            queries = split_queries(batch)
            expect(len(queries) <= QUERIES_MAX, f"{QUERIES_MAX} queries at most")
            return Asked(call, _place(needs), bool(alone), bool(apart), batch, queries)
        expect(kind == WAIT, "a known kind")
        batch, waits = content
        queries = split_queries(batch)
        expect(0 < len(queries) == len(waits) <= QUERIES_MAX, f"1 to {QUERIES_MAX} queries, and as many deadlines")
        expect(all(_is_query(query) for query in queries), "queries")
        checked = [(_seconds(left_s), _place(after)) for left_s, after in waits]
        expect(len(self._left) < CALLS_WAITING_MAX, f"{CALLS_WAITING_MAX} waiting calls at most")
        self._left[call] = len(checked)
        return Awaited(call, queries, checked)


def _is_query(query: Any) -> bool:
    name, payload = query
    return type(name) is str and type(payload) is bytes


def _seconds(left_s: object) -> float:
    expect(type(left_s) in (int, float) and not math.isnan(left_s), "a number of seconds")  # type: ignore[arg-type]  # checked before
    return min(max(float(left_s), 0.0), LEFT_MAX_S)  # type: ignore[arg-type]  # checked above


def _place(after: Any) -> dict[int, int]:
    expect(type(after) is dict, "positions")
    for partition, position in after.items():
        expect(type(partition) is int and type(position) is int and 0 <= position < _POSITIONS, "positions")
    place: dict[int, int] = after
    return place
