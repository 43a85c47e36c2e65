"""StoredStep: what a stored record has its courier carry out, as plain facts.

Beside step [6] of the write path. Before it: the log has committed a record. After it: the agenda folds these.

Rule kept here: no class of the user's is needed. So whatever reads a log (an agenda, `rayfold verify`, a status) can
know what is to be carried out, whichever code is deployed.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from ..encoding.outputs import AFTER, AT, ENDED, FORGET, RESUME, SEND, WAKE
from ..errors import Damaged
from ..log.contract import StoredEvent
from ..log.format import HEADER_HOPS, HEADER_OUTPUTS
from ..stream import StreamId
from .kinds import ACCEPTED, DIRECT, OUTCOME, WOKEN
from .progress import STEPPED
from .schedule import FAR_US, next_time_us

__all__ = ["Armed", "Sent", "StoredStep", "step_in"]


class Sent(NamedTuple):
    """A command to send."""

    number: int
    """Of this one among those of its stream, or of its record where an ordinary aggregate sends it."""
    send_id: bytes
    """Its command id."""
    stream: StreamId
    name: str
    payload: bytes
    content: bytes


class Armed(NamedTuple):
    """A timer to arm, in place of the one that has its name."""

    name: str
    due_us: int
    """In microseconds since 1970."""


class StoredStep(NamedTuple):
    """What one record has carried out."""

    stream: StreamId
    version: int
    """Of the record; the arming of its timers."""
    position: int
    input_id: bytes
    """What the ids of what follows from it are derived from."""
    correlation_id: bytes
    """16 bytes: of what follows from it."""
    is_process: bool
    """False for the record of an ordinary aggregate: no outcome of what it sends comes back."""
    answered: int | None
    """The number of the command whose outcome is in."""
    accepted: int | None
    """The same, where this is the first record of that outcome, and it is that the command took effect."""
    fired: tuple[str, int] | None
    """The timer that was fired, by name and arming."""
    sends: tuple[Sent, ...]
    timers: tuple[Armed, ...]
    forgotten: tuple[str, ...]
    """Timers that are not needed any more."""
    resume: bool
    """Whether the next input that waits is to be run (`delivery.resume_input`)."""
    ended: bool
    """Whether the instance has ended: its timers go with it, not what it has sent."""
    parked: str
    """Why the instance is parked after this; empty if it is not."""
    waits: bool
    """Whether the input of the record waits, behind others or parked."""
    hops: int
    """How many inputs and commands have led to it, each at once."""
    recorded_at_us: int


_NOTHING: Final = ((), (), ())


def step_in(stored: StoredEvent) -> StoredStep | None:
    """What this record has carried out; None for a record of another kind. Raises `Damaged`."""
    if stored.name == STEPPED:
        return _of_process(stored)
    packed = stored.headers.get(HEADER_OUTPUTS)
    return None if packed is None else _of_aggregate(stored, packed)


def _of_process(stored: StoredEvent) -> StoredStep:
    try:
        body = msgpack.unpackb(msgpack.unpackb(stored.payload)["body"], strict_map_key=False)
        how, kind, head, input_id, waits, _, parked, outputs = body[:8]
        sends, timers, forgotten = _outputs(stored, outputs) if outputs else _NOTHING
        codes = [entry[0] for entry in outputs]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Damaged(f"event {stored.position}", f"it is not a step of a process: {error}") from error
    in_vain = bool(parked) and not waits and how != DIRECT
    return StoredStep(
        stored.stream,
        stored.version,
        stored.position,
        input_id,
        _correlation(stored),
        True,
        head[0] if kind == OUTCOME else None,
        head[0] if kind == OUTCOME and head[1] == ACCEPTED and how == DIRECT else None,
        (head[0], head[1]) if kind == WOKEN and not in_vain else None,
        sends,
        timers,
        forgotten,
        RESUME in codes,
        ENDED in codes,
        parked,
        bool(waits),
        body[10] if len(body) > 10 else 0,
        stored.recorded_at_us,
    )


def _of_aggregate(stored: StoredEvent, packed: bytes) -> StoredStep:
    try:
        sends, timers, forgotten = _outputs(stored, msgpack.unpackb(packed, strict_map_key=False))
    except (ValueError, TypeError, IndexError) as error:
        raise Damaged(f"event {stored.position}", f"its outputs are none: {error}") from error
    place = stored.stream, stored.version, stored.position, stored.command_id, _correlation(stored)
    told = stored.headers.get(HEADER_HOPS, 0), stored.recorded_at_us
    return StoredStep(*place, False, None, None, None, sends, timers, forgotten, False, False, "", False, *told)


def _correlation(stored: StoredEvent) -> bytes:
    return stored.correlation_id or stored.command_id


def _outputs(stored: StoredEvent, outputs: list[Any]) -> tuple[tuple[Sent, ...], tuple[Armed, ...], tuple[str, ...]]:
    sends: list[Sent] = []
    timers: dict[str, Armed] = {}
    forgotten: list[str] = []
    for entry in outputs:
        code = entry[0]
        if code == SEND:
            _, number, send_id, kind, ident, name, payload, content = entry[:8]
            sends.append(Sent(number, send_id, StreamId(kind, ident), name, payload, content))
        elif code == WAKE:
            timers[entry[1]] = Armed(entry[1], _due_us(entry, stored.recorded_at_us))
        elif code == FORGET:
            timers.pop(entry[1], None)
            forgotten.append(entry[1])
    return tuple(sends), tuple(timers.values()), tuple(name for name in forgotten if name not in timers)


def _due_us(entry: list[Any], recorded_at_us: int) -> int:
    """When a timer is due. One of a schedule comes after the time that it was fired for last, if that is later."""
    _, _, mode, value = entry[:4]
    if mode == AFTER:
        return int(min(recorded_at_us + value, FAR_US))
    if mode == AT:
        return int(value)
    return next_time_us(value, max(recorded_at_us, entry[4]))
