"""QueryClientProtocol: what the client's end of a connection to a projector does, without a socket.

Step [8] of the read path, the caller's half. Around it: `QueryConnection` (`query_connection.py`), which moves the
bytes. Its counterpart: `QueryServerProtocol` (`../projection/query_protocol.py`).

Calls in, bytes out, and bytes in, answers out: no socket, no event loop, no thread, no clock. Calls are pipelined: an
answer names its call and comes in any order. A `wait` is answered in pieces, as its queries can be.

Rules kept here: an answer to no call of this client, or to a query of a call that is answered already, ends the
connection; when the connection has ended, each call that is not at its end is named once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..sockets.framing import Frame, FrameReader
from ..sockets.query_frames import (
    ANSWER_FRAME_BYTES_MAX,
    ANSWERED,
    ASK,
    FAILED,
    REACHED,
    SOME,
    WAIT,
    Answered,
    pack_frame,
    unpack_content,
)

__all__ = ["Answered", "CallFailed", "QueryClientProtocol", "Reached", "SomeAnswered"]


class SomeAnswered(NamedTuple):
    """Some answers to a `wait`."""

    answers: Sequence[tuple[int, bytes | None]]
    """Index of the query, and its pickled answer; None for one without a name."""
    positions: dict[int, int]
    incarnation: bytes
    left: int
    """Queries of this call that still wait; 0: it is at its end."""


class CallFailed(NamedTuple):
    """The projector does not answer this call."""

    why: str


class Reached(NamedTuple):
    """How far the projector has come, while something waits in it."""

    positions: dict[int, int]
    incarnation: bytes


Came = Answered | SomeAnswered | CallFailed | Reached


class QueryClientProtocol:
    """One connection, from its first call to its end."""

    def __init__(self) -> None:
        self.refused = ""
        """Why the connection has to be ended: no projector sends this. Nothing more is read then."""
        self.answered = False
        """Something came back: it is a projector that listens there."""
        self._reader = FrameReader(ANSWER_FRAME_BYTES_MAX)
        self._asked: set[int] = set()
        self._waiting: dict[int, set[int]] = {}
        """By call: the queries that are not answered."""
        self._last = 0

    def ask(self, batch: bytes, needs: Mapping[int, int], alone: bool, apart: bool) -> tuple[int, bytes]:
        """A new call, and the frame that begins it."""
        self._last += 1
        self._asked.add(self._last)
        return self._last, pack_frame(ASK, self._last, (needs, alone, apart, batch))

    def wait(self, batch: bytes, waits: Sequence[tuple[float, Mapping[int, int]]]) -> tuple[int, bytes]:
        """The same for queries that wait: for each the seconds left to it, and what it has to see."""
        self._last += 1
        self._waiting[self._last] = set(range(len(waits)))
        return self._last, pack_frame(WAIT, self._last, (batch, waits))

    def receive(self, data: bytes) -> list[tuple[int, Came]]:
        """The answers that `data` completes, each with its call; a `Reached` with none, 0."""
        answers: list[tuple[int, Came]] = []
        for one in self._reader.receive(data):
            try:
                answers.append((one.number, self._answer(one)))
            except Exception as error:  # whatever a value of another form raises
                self.refused = f"an answer that cannot be one: {error}"[:200]
                return answers
            self.answered = True
        self.refused = self._reader.refused
        return answers

    def end(self) -> list[int]:
        """The connection has ended: the calls that are not at their end, in the order they were begun."""
        unknown = sorted([*self._asked, *self._waiting])
        self._asked.clear()
        self._waiting.clear()
        return unknown

    def _answer(self, one: Frame) -> Came:
        call, kind, content = one.number, one.kind, unpack_content(one.content)
        if kind == ANSWERED and call in self._asked:
            blob, positions, incarnation = content
            answer = Answered(_bytes(blob), _positions(positions), _bytes(incarnation))
            self._asked.remove(call)
            return answer
        if kind == SOME and call in self._waiting:
            return self._some(call, content)
        if kind == FAILED and (call in self._asked or call in self._waiting):
            self._asked.discard(call)
            self._waiting.pop(call, None)
            return CallFailed(str(content))
        if kind == REACHED and call == 0:
            positions, incarnation = content
            return Reached(_positions(positions), _bytes(incarnation))
        raise ValueError(f"a frame of kind {kind} for call {call}, which is not in flight")

    def _some(self, call: int, content: Any) -> SomeAnswered:
        answers, positions, incarnation, left = content
        waiting = self._waiting[call]
        for index, _ in answers:
            waiting.remove(index)
        if left != len(waiting):
            raise ValueError(f"{left!r} queries of call {call} wait, and not {len(waiting)}")
        if not left:
            del self._waiting[call]
        return SomeAnswered(answers, _positions(positions), _bytes(incarnation), left)


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise TypeError(f"{type(value).__name__} where bytes belong")
    return value


def _positions(value: object) -> dict[int, int]:
    if type(value) is not dict:
        raise TypeError(f"{type(value).__name__} where positions belong")
    return value
