"""Outputs as they are stored: commands to send, timers, and what else follows from a step, as one packed list.

Beside step [5] of the write path. Before it: a process's step, or the decision of an ordinary aggregate. After it: the
record holds them, and `processes/stored_step.py` reads them for the courier.

Rules kept here: the id of what is sent is stored with it and is derived from stored things alone, so that it is the
same command, whichever process sends it, and however often; an item that a reader does not know is passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgpack

from ..domain.aggregate import Decision
from ..domain.messages import Command, Event
from ..domain.outputs import Forget, Send, Wake
from ..log.format import HEADER_BYTES_MAX, HEADER_OUTPUTS
from ..stream import StreamId
from .content import pack_with_content

__all__ = [
    "OutputsTooLarge",
    "AFTER",
    "AT",
    "BEGUN",
    "CALL",
    "ENDED",
    "ENDING",
    "EVERY",
    "FAR_US",
    "FORGET",
    "OVER",
    "REST",
    "RESUME",
    "SEND",
    "SWITCH",
    "UNDO",
    "UNDONE",
    "WAKE",
    "forget_entry",
    "outputs_header",
    "packed_command",
    "send_entry",
    "sent_id",
    "step_id",
    "wake_entry",
]

SEND: Final = 0
WAKE: Final = 1
FORGET: Final = 2
RESUME: Final = 3
"""The next input that waits is to be run."""
ENDED: Final = 4
UNDO: Final = 5
ENDING: Final = 6
"""It ends once everything is taken back."""
UNDONE: Final = 7
"""Everything is taken back."""
CALL: Final = 8
"""The outside is to be called: function, where the event is from (packed), the event."""
BEGUN: Final = 9
"""An attempt, or a look, has begun: function, number, who began it, version of the record that asked for it, whether
the end of an earlier one is unknown."""
REST: Final = 10
"""An attempt is over and the call is not: attempts made, looks in vain, whether its end is unknown, why."""
OVER: Final = 11
"""A call is over: its result, and the note or reason."""
SWITCH: Final = 12
"""Calls are switched: whether they are on."""

AFTER: Final = 0
"""Of a timer: microseconds after its record."""
AT: Final = 1
"""Of a timer: microseconds since 1970."""
EVERY: Final = 2
"""Of a timer: the next time of a schedule, as text."""

HEADER_ROOM_BYTES: Final = HEADER_BYTES_MAX - 4096
"""The outputs of one decision: what a record's headers hold, less what others may need."""

FAR_US: Final = 253_402_300_799_000_000
"""The end of the year 9999, in microseconds since 1970: when a timer beyond it is due."""

_pack: Final = msgpack.Packer(autoreset=True).pack
"""Safe to share between threads: it runs no Python while it packs plain values. A third of the time of `packb`."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def step_id(*parts: str | int | bytes) -> bytes:
    """A command id derived from stored things: 16 bytes, the same in any process, permanently. 1 us."""
    return hashlib.blake2b(_pack(parts), digest_size=16, person=b"rayfold step").digest()


def packed_command(command: Command) -> list[Any]:
    """A command as a step stores it: its name, payload and content. Raises `InvalidMessage`."""
    payload, content = pack_with_content(command)
    return [command.message_name, payload, content]


def sent_id(cause: tuple[str | bytes, ...], send: Send, seen: dict[tuple[str, str, str], int]) -> bytes:
    """The command id of what is sent because of `cause`. `seen`: how often this step has sent such a command to that
    target; not how many outputs came before it, so that a release that yields one more of others changes no id."""
    target = send.aggregate.aggregate_type, send.id, send.command.message_name
    number = seen[target] = seen.get(target, 0) + 1
    return step_id("send", *cause, *target, number)


def send_entry(send: Send, number: int, send_id: bytes) -> list[Any]:
    """A command to send. `number`: of this one among all that the instance has sent. Raises `InvalidMessage`."""
    undo = None if send.undo is None else packed_command(send.undo)
    return [SEND, number, send_id, send.aggregate.aggregate_type, send.id, *packed_command(send.command), undo, -1, 0]


def wake_entry(wake: Wake) -> list[Any]:
    """A timer."""
    if wake.after is not None:
        return [WAKE, wake.name, AFTER, min(wake.after // _MICROSECOND, FAR_US)]
    assert wake.at is not None  # `Wake` takes one of the two
    return [WAKE, wake.name, AT, min((wake.at - _EPOCH) // _MICROSECOND, FAR_US)]


def forget_entry(forget: Forget) -> list[Any]:
    """A timer that is not needed any more."""
    return [FORGET, forget.name]


class OutputsTooLarge(Exception):  # noqa: N818 - a signal to the write loop, not an error
    """What a decision sends has no room in a header."""


def outputs_header(events: list[Event], stream: StreamId, command_id: bytes) -> Mapping[int, Any]:
    """The outputs of an ordinary aggregate's decision, as a header of its last record. Raises `InvalidMessage` for a
    command that cannot be stored, and `OutputsTooLarge`."""
    entries: list[list[Any]] = []
    seen: dict[tuple[str, str, str], int] = {}
    cause = stream[0], stream[1], command_id
    for number, output in enumerate(events.outputs if isinstance(events, Decision) else ()):
        if isinstance(output, Send):
            entries.append(send_entry(output, number, sent_id(cause, output, seen)))
        elif isinstance(output, Wake):
            entries.append(wake_entry(output))
        elif isinstance(output, Forget):
            entries.append(forget_entry(output))
    packed = msgpack.packb(entries)
    if len(packed) > HEADER_ROOM_BYTES:
        what = f"its outputs have {len(packed):,} bytes, over {HEADER_ROOM_BYTES:,}"
        raise OutputsTooLarge(f"{what}; send fewer or smaller commands, or use a Process")
    return {HEADER_OUTPUTS: packed}
