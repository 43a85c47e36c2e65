"""StoredStep: what a stored record has its courier carry out, as plain facts.

Beside step [6] of the write path. Before it: the log has committed a record. After it: the agenda folds these.

Rule kept here: no class of the user's is needed. So whatever reads a log (an agenda, `rayfold verify`, a status) can
know what is to be carried out, whichever code is deployed.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from ..effects.call_attempt import CallAttempt
from ..effects.results import UNKNOWN
from ..encoding.outputs import AFTER, AT, BEGUN, CALL, ENDED, FORGET, RESUME, SEND, SWITCH, WAKE
from ..errors import Damaged
from ..log.contract import StoredEvent
from ..log.format import HEADER_HOPS, HEADER_OUTPUTS
from ..stream import StreamId
from .call_step import LATE
from .kinds import ACCEPTED, AHEAD, CALLED, DIRECT, OUTCOME, SETTLED, SKIPPED, WOKEN
from .progress import STEPPED
from .schedule import FAR_US, next_time_us

__all__ = ["Armed", "Attempt", "Sent", "StoredStep", "call_attempt", "step_in"]


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
    undoes: int = -1
    """The number of the command that this one takes back; -1 for none."""
    attempt: int = 0
    """How often it was sent again by hand."""


class Armed(NamedTuple):
    """A timer to arm, in place of the one that has its name."""

    name: str
    due_us: int
    """In microseconds since 1970."""


class Attempt(NamedTuple):
    """An attempt of a call to the outside that has begun."""

    method: str
    number: int
    by: bytes
    """The courier that is to have it made."""
    asked_at: int
    """The version of the record that has the event."""
    unknown: bool
    """Whether the end of an earlier attempt is unknown."""
    begun_at_us: int


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
    attempt: Attempt | None = None
    """The attempt of a call that has begun."""
    attempt_ended: int | None = None
    """What the attempt that had begun has come to, as a result (`effects/results.py`); `UNKNOWN` also where no end
    was reported, and where an operator has decided about it."""
    switched: bool | None = None
    """Calls are switched on or off."""


_NOTHING: Final = ((), (), ())


def step_in(stored: StoredEvent) -> StoredStep | None:
    """What this record has carried out; None for a record of another kind. Raises `Damaged`."""
    if stored.name == STEPPED:
        return _of_process(stored)
    packed = stored.headers.get(HEADER_OUTPUTS)
    return None if packed is None else _of_aggregate(stored, packed)


def call_attempt(step: StoredStep, asked: StoredEvent) -> CallAttempt:
    """The attempt that begins with a step. `asked`: the record that asks for its call. Raises `Damaged`."""
    attempt = step.attempt
    assert attempt is not None  # the caller has looked
    try:
        body = msgpack.unpackb(msgpack.unpackb(asked.payload)["body"], strict_map_key=False)
        _, _, head, payload = next(entry for entry in body[7] if entry[0] == CALL)[:4]
        return CallAttempt(
            step.stream,
            attempt.method,
            attempt.number,
            attempt.asked_at,
            body[3],
            head,
            payload,
            attempt.begun_at_us,
            step.correlation_id,
            attempt.unknown,
            step.hops,
        )
    except (ValueError, TypeError, KeyError, IndexError, StopIteration) as error:
        raise Damaged(f"event {asked.position}", f"it asks for no call, and one has begun: {error}") from error


def _of_process(stored: StoredEvent) -> StoredStep:
    try:
        body = msgpack.unpackb(msgpack.unpackb(stored.payload)["body"], strict_map_key=False)
        how, kind, head, input_id, waits, _, parked, outputs = body[:8]
        sends, timers, forgotten = _outputs(stored, outputs) if outputs else _NOTHING
        by_code = {entry[0]: entry for entry in outputs}
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
        head[0] if kind == OUTCOME and head[1] == ACCEPTED and how in (DIRECT, AHEAD) else None,
        (head[0], head[1]) if kind == WOKEN and not in_vain else None,
        sends,
        timers,
        forgotten,
        RESUME in by_code,
        ENDED in by_code,
        parked,
        bool(waits),
        body[10] if len(body) > 10 else 0,
        stored.recorded_at_us,
        _attempt(stored, by_code.get(BEGUN)),
        _attempt_ended(how, kind, head),
        bool(by_code[SWITCH][1]) if SWITCH in by_code else None,
    )


def _attempt(stored: StoredEvent, begun: list[Any] | None) -> Attempt | None:
    return None if begun is None else Attempt(begun[1], begun[2], begun[3], begun[4], begun[5], stored.recorded_at_us)


def _attempt_ended(how: int, kind: int, head: list[Any]) -> int | None:
    if kind == CALLED:
        return int(head[2])
    late = kind == WOKEN and head[0] == LATE
    return UNKNOWN if late or how in (SETTLED, SKIPPED) else None


def _of_aggregate(stored: StoredEvent, packed: bytes) -> StoredStep:
    try:
        sends, timers, forgotten = _outputs(stored, msgpack.unpackb(packed, strict_map_key=False))
    except (ValueError, TypeError, IndexError) as error:
        raise Damaged(f"event {stored.position}", f"its outputs are none: {error}") from error
    place = stored.stream, stored.version, stored.position, stored.command_id, _correlation(stored)
    origin = stored.headers.get(HEADER_HOPS, 0), stored.recorded_at_us
    return StoredStep(*place, False, None, None, None, sends, timers, forgotten, False, False, "", False, *origin)


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
            sends.append(Sent(number, send_id, StreamId(kind, ident), name, payload, content, *entry[9:11]))
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
