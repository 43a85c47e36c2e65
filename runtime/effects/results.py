"""Results: what a call to the outside world has come to, as its function returns it and as it is stored.

Beside step [4] of the write path. Before it: an `@effect` or `@settle` function has returned, in a process of its own.
After it: the result is an input of the call's instance, and what it sends is stored with it.

Rule kept here: there are four results and no fifth. What is none of them, an exception too, means that the end is
unknown: something may have happened outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack

from ..domain.outputs import Send
from ..encoding.content import pack_with_content
from ..errors import InvalidMessage
from ..printable import shown

__all__ = [
    "DECLINED",
    "DONE",
    "NOT_CALLED",
    "NOT_DONE",
    "UNKNOWN",
    "Declined",
    "Done",
    "NotDone",
    "PackedResult",
    "Result",
    "Unknown",
    "packed_not_called",
    "packed_result",
    "unpacked_result",
]

DONE: Final = 0
DECLINED: Final = 1
NOT_DONE: Final = 2
UNKNOWN: Final = 3
NOT_CALLED: Final = 4
"""The results as they are stored (`docs/log-format.md`): a number keeps its meaning permanently. `NOT_CALLED` is no
result of a function: the attempt had begun, and was not made."""

NOTE_CHARS_MAX: Final = 1_000
"""Of a note or a reason: the rest is cut off. It is for people."""

RESULT_BYTES_MAX: Final = 256 * 1024
"""What a result sends, packed: it is stored with the step that takes it in, which has room for 900 KiB."""

SENDS_MAX: Final = 100
"""Commands of one result. An aggregate that is sent one may send more."""


@dataclass(frozen=True, slots=True, init=False)
class Done:
    """The call took effect. What it sends is sent once this is stored, under ids derived from the call's key; a refusal
    of it parks the call, visibly. Raises `InvalidMessage`.

    Args:
        sends: Commands to aggregates.
        note: What is kept of the answer, for people: a number of the other side, for instance.

    Example:
        return Done(Send(Order, event.order, Confirm()), note=answer["id"])
    """

    sends: tuple[Send, ...]
    note: str

    def __init__(self, *sends: Send, note: str = "") -> None:
        object.__setattr__(self, "sends", _checked("Done", sends))
        object.__setattr__(self, "note", _text("Done", note))


@dataclass(frozen=True, slots=True, init=False)
class Declined:
    """The other side refused the call, for good: it took no effect and is not called again. Raises `InvalidMessage`.

    Example:
        return Declined("card_expired", Send(Order, event.order, Cancel(reason="card_expired")))
    """

    reason: str
    sends: tuple[Send, ...]

    def __init__(self, reason: str, *sends: Send) -> None:
        object.__setattr__(self, "reason", _text("Declined", reason))
        object.__setattr__(self, "sends", _checked("Declined", sends))


@dataclass(frozen=True, slots=True)
class NotDone:
    """It certainly took no effect: it is called again, under the same key, after the pause of `retry=`.

    Example:
        try:
            await bank.charge(call.key, event.amount)
        except ConnectionRefusedError as error:
            return NotDone(str(error))
    """

    reason: str

    def __post_init__(self) -> None:
        """Refuse what is no reason."""
        _text("NotDone", self.reason)


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether it took effect is not known. It is looked up with `@settle`, called again if it is `repeatable`, and
    otherwise left to people. An exception means the same.

    Example:
        return Unknown("the bank has not booked it yet")
    """

    reason: str

    def __post_init__(self) -> None:
        """Refuse what is no reason."""
        _text("Unknown", self.reason)


Result = Send | Done | Declined | NotDone | Unknown
"""What a function may return. A `Send` alone is `Done(Send(...))`."""


class PackedResult(NamedTuple):
    """A result as it is stored."""

    result: int
    note: str
    sends: Sequence[Sequence[Any]]
    """Each: type and id of the target, name, payload and content of the command."""


def packed_result(result: object) -> bytes:
    """A result as the payload of an input. Raises `TypeError` for what is none, and `InvalidMessage` for a command that
    cannot be stored."""
    if isinstance(result, Send):
        result = Done(*_checked("Send", (result,)))
    if isinstance(result, Done):
        return _packed(DONE, result.note, result.sends)
    if isinstance(result, Declined):
        return _packed(DECLINED, result.reason, result.sends)
    if isinstance(result, NotDone):
        return _packed(NOT_DONE, result.reason, ())
    if isinstance(result, Unknown):
        return _packed(UNKNOWN, result.reason, ())
    raise TypeError(f"it returned {shown(result)}; return Done(), Declined(...), NotDone(...), Unknown(...) or a Send")


def packed_not_called(why: str) -> bytes:
    """That an attempt has begun and its function was not called, as the payload of an input."""
    return _packed(NOT_CALLED, why, ())


def unpacked_result(payload: bytes) -> PackedResult:
    """The result in the payload of an input."""
    return PackedResult(*msgpack.unpackb(payload)[:3])


def _packed(result: int, note: str, sends: Sequence[Send]) -> bytes:
    rows = []
    for one in sends:
        payload, content = pack_with_content(one.command)
        rows.append([one.aggregate.aggregate_type, one.id, one.command.message_name, payload, content])
    packed: bytes = msgpack.packb([result, note[:NOTE_CHARS_MAX], rows])
    if len(packed) > RESULT_BYTES_MAX:
        what = f"its commands have {len(packed):,} bytes, over {RESULT_BYTES_MAX:,}"
        raise InvalidMessage("result", what, "send smaller commands")
    return packed


def _checked(of: str, sends: tuple[Send, ...]) -> tuple[Send, ...]:
    if len(sends) > SENDS_MAX:
        raise InvalidMessage(of, f"it sends {len(sends):,} commands, over {SENDS_MAX}", "send one that leads to more")
    for one in sends:
        if not isinstance(one, Send):
            raise InvalidMessage(of, f"{shown(one)} is not a Send", "write Send(Order, id, Confirm())")
        if one.undo is not None:
            what = "a result has no undo: nothing takes it back"
            raise InvalidMessage(of, what, "leave undo= out, or let a Process react to what it leads to")
    return sends


def _text(of: str, text: object) -> str:
    if not isinstance(text, str):
        raise InvalidMessage(of, f"{shown(text)} is not text", "give a str")
    return text
