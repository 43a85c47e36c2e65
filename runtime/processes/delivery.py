"""Delivery: the commands that a courier sends: inputs of processes, and what they have sent.

Between steps [6] and [1]. Before it: a record was committed, a timer is due, or an outcome came back. After it: the
router takes the command to its partition, as any other.

Rules kept here: pure; an id has nothing but stored things in it, so a command is the same one whichever process makes
it, and however often; an event is an input once, also where its log was restored and it was decided again at the same
place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgpack

from ..domain.aggregate import Woken
from ..effects.call_attempt import CallAttempt
from ..effects.results import unpacked_result
from ..encoding.catalogue import Catalogue
from ..encoding.codec import MESSAGE_BYTES_MAX, encode_message
from ..encoding.content import condensed
from ..encoding.envelope import FINAL, HOPS_MAX, PackedCommand, new_command_id
from ..encoding.error_codec import to_wire
from ..encoding.outcome import Outcome
from ..encoding.outputs import step_id
from ..errors import (
    CommandIdReused,
    Conflict,
    Overloaded,
    RayfoldError,
    Rejected,
    StoreError,
    Unavailable,
    failure_text,
)
from ..log.contract import StoredEvent
from ..receipt import Receipt
from ..stream import ANY, StreamId
from ..user_code import is_ctrl_c
from .inputs import Input
from .instance import Instance, Reaction, Stuck
from .kinds import ACCEPTED, BEGIN, CALLED, EVENT, FAILED, OUTCOME, REFUSED, RESUME_INPUT, WOKEN
from .step import SCHEDULED, UNROUTED, instance_for, is_reserved
from .stored_step import Sent, StoredStep

__all__ = [
    "Reactions",
    "begin_inputs",
    "called_input",
    "is_delivered",
    "is_final",
    "is_parking",
    "lost_input",
    "outcome_input",
    "parked_input",
    "resume_input",
    "send_command",
    "woken_input",
]

_WHY_CHARS_MAX: Final = 500

_pack: Final = msgpack.Packer(autoreset=True).pack
"""Safe to share between threads: it runs no Python while it packs plain values. A third of the time of `packb`."""

EVENT_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 8192
"""Of an event that is an input: an input is a message itself, and one that waits is part of another. What surrounds it
has under 3 KB."""


class _Reacting(NamedTuple):
    process: type[Instance]
    reaction: Reaction


Origin = tuple[str, int]
"""The name that an event is stored under, and which of the events that it was upcast to this is. They are in the id of
an input: whichever release reads the event, it is the same input."""


class Reactions:
    """Which processes of an application react to an event, and the inputs that it is to them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._by_name: dict[str, list[_Reacting]] = {}
        for process in catalogue.processes.values():
            for name, reaction in process.reactions.items():
                self._by_name.setdefault(name, []).append(_Reacting(process, reaction))
        self._splitting = {name for name in catalogue.events if catalogue.may_become(name)}
        self.names: Final = frozenset(self._by_name) | self._splitting
        """The stored names of events that may be an input: a record of another one has none."""

    def inputs(
        self, partition: int, stored: StoredEvent, again: bool, processes: Iterable[str] | None = None, hops: int = 0
    ) -> list[PackedCommand]:
        """The inputs that a stored event is, for these processes or for all. Never raises: what cannot be read, and
        what no instance can be found for, waits in an instance of its own.

        `again`: it may have been given to them before, by a courier of an earlier activation. `hops`: those that led to
        the event.
        """
        if stored.name not in self.names:
            return []
        cls = self._catalogue.events.get(stored.name)
        if cls is not None and stored.schema_version == cls.schema_version:
            return self._of_one(partition, stored, again, processes, (stored.name, 0), hops)
        try:
            events = self._catalogue.decode_events(stored)
            parts = [
                stored._replace(
                    name=event.message_name, schema_version=event.schema_version, payload=encode_message(event)
                )
                for event in events
            ]
        except RayfoldError as error:
            targets = [StreamId(one.process.aggregate_type, UNROUTED) for one in self._reacting(stored.name, processes)]
            why, origin = str(error), (stored.name, 0)
            return [_event_input(target, partition, stored, again, why, origin) for target in targets]
        found: list[PackedCommand] = []
        for part, now in enumerate(parts):
            found += self._of_one(partition, now, again, processes, (stored.name, part), hops)
        return found

    def _reacting(self, name: str, processes: Iterable[str] | None) -> list[_Reacting]:
        found = self._by_name.get(name, [])
        return found if processes is None else [one for one in found if one.process.aggregate_type in processes]

    def _of_one(
        self,
        partition: int,
        stored: StoredEvent,
        again: bool,
        processes: Iterable[str] | None,
        origin: Origin,
        hops: int,
    ) -> list[PackedCommand]:
        found = []
        for process, reaction in self._reacting(stored.name, processes):
            park = ""
            ident: str | None = process.instance_id(stored.stream.id, stored.version)
            if reaction.one is not None:
                ident, park = self._routed(process, reaction, reaction.one, stored)
            if ident is not None:
                if not park and is_reserved(process, ident):
                    ident, park = UNROUTED, f"{ident} is an instance of Rayfold's own, and {stored.name} is for it"
                target = StreamId(process.aggregate_type, ident)
                found.append(_event_input(target, partition, stored, again, park, origin, hops))
        return found

    def _routed(
        self, process: type[Instance], reaction: Reaction, one: Callable[..., Any], stored: StoredEvent
    ) -> tuple[str | None, str]:
        """Which instance an event is for, and why it is to wait if that is not known."""
        try:
            return instance_for(process, one, self._catalogue.decode_event(stored)), ""
        except Stuck as stuck:
            return UNROUTED, f"order_by= of {process.__name__}.{reaction.name}: {stuck}"
        except BaseException as error:  # the user's code, which may raise anything
            if is_ctrl_c(error):
                raise
            option = "order_by" if process.is_effects else "one"
            return UNROUTED, f"{option}= of {process.__name__}.{reaction.name}: {failure_text(error)}"


def _event_input(
    target: StreamId, partition: int, stored: StoredEvent, again: bool, park: str, origin: Origin, hops: int = 0
) -> PackedCommand:
    payload = stored.payload
    if len(payload) > EVENT_BYTES_MAX:
        target, payload = StreamId(target[0], UNROUTED), b""
        park = f"its event has {len(stored.payload):,} bytes, over {EVENT_BYTES_MAX:,}"
    source, version = stored.stream, stored.version
    input_id = step_id("event", target[0], source[0], source[1], version, *origin)
    correlation_id = stored.correlation_id or stored.command_id
    head = _pack(
        (
            source[0],
            source[1],
            version,
            stored.name,
            partition,
            stored.position,
            stored.schema_version,
            stored.recorded_at_us,
            stored.command_id,
            stored.correlation_id,
            stored.causation_id,
        )
    )
    fields = {
        "kind": EVENT,
        "input_id": input_id,
        "head": head,
        "payload": payload,
        "again": again,
        "park": park[:_WHY_CHARS_MAX],
        "hops": _one_more(hops),
    }
    content = condensed(b"%b %b" % (stored.name.encode(), payload))
    return _input(target, input_id, fields, correlation_id, stored.command_id, content)


def _one_more(hops: int) -> int:
    return min(hops, HOPS_MAX) + 1


def _input(
    stream: StreamId,
    input_id: bytes,
    fields: Mapping[str, Any],
    correlation_id: bytes,
    causation_id: bytes,
    content: bytes,
) -> PackedCommand:
    payload = _pack(fields)
    return PackedCommand(
        input_id, stream, Input.message_name, payload, ANY, correlation_id, causation_id, content, False
    )


def outcome_input(step: StoredStep, sent: Sent, outcome: Outcome) -> PackedCommand:
    """What became of a command that a process has sent, for the instance that sent it. The outcome is a final one."""
    if isinstance(outcome, Receipt):
        result, payload = ACCEPTED, b""
    else:
        result = REFUSED if isinstance(outcome, Rejected) else FAILED
        payload = msgpack.packb(to_wire(outcome), default=str)
    input_id = step_id("outcome", sent.send_id)
    fields = {
        "kind": OUTCOME,
        "input_id": input_id,
        "head": _pack((sent.number, result, sent.send_id)),
        "payload": payload,
        "again": False,
        "park": "",
        "hops": _one_more(step.hops),
    }
    return _input(step.stream, input_id, fields, step.correlation_id, sent.send_id, b"=%d" % result)


def lost_input(step: StoredStep, sent: Sent, outcome: RayfoldError) -> PackedCommand:
    """A command that had taken effect is lost with the log of its target, and sent again it had another outcome: that
    waits, in a parked instance, until an operator has it sent again or leaves it out."""
    input_id = step_id("lost", sent.send_id)
    result = REFUSED if isinstance(outcome, Rejected) else FAILED
    what = f"{sent.name} to {sent.stream} had taken effect, and the log of its target has lost it"
    why = f"{what}; sent again: {outcome}"[:_WHY_CHARS_MAX]
    command = *sent.stream, sent.name, sent.payload, sent.content, sent.undoes, sent.attempt
    fields = {
        "kind": OUTCOME,
        "input_id": input_id,
        "head": msgpack.packb((sent.number, result, sent.send_id)),
        "payload": msgpack.packb({"why": why, "command": command}),
        "again": False,
        "park": why,
    }
    return _input(step.stream, input_id, fields, step.correlation_id, sent.send_id, b"=lost")


def woken_input(
    stream: StreamId,
    name: str,
    arming: int,
    due_us: int,
    arming_input_id: bytes,
    correlation_id: bytes,
    *,
    is_process: bool,
    expected_version: int = ANY,
    hops: int = 0,
    begun_by: bytes = b"",
) -> PackedCommand:
    """A timer that is due. `arming` and `arming_input_id`: the version and the `input_id` of the step that armed it.
    `begun_by`: the courier that makes the call which begins with it.

    For an ordinary aggregate `expected_version` is the version of its stream up to which the timer is known to be
    armed: a `Conflict` means that it may not be any more. `hops`: those that led to the timer, if it was due at once.
    """
    input_id = step_id("woken", stream[0], stream[1], arming_input_id, arming, name)
    if not is_process:
        payload = encode_message(Woken(name=name, due_us=due_us))
        return PackedCommand(
            input_id,
            stream,
            Woken.message_name,
            payload,
            expected_version,
            correlation_id,
            arming_input_id,
            b"",
            FINAL + hops,
        )
    fields = {
        "kind": WOKEN,
        "input_id": input_id,
        "head": msgpack.packb((name, arming, due_us, begun_by) if begun_by else (name, arming, due_us)),
        "payload": b"",
        "again": False,
        "park": "",
        "hops": hops,
    }
    return _input(stream, input_id, fields, correlation_id, arming_input_id, b"=")


def called_input(call: CallAttempt, payload: bytes, *, at_once: bool) -> PackedCommand:
    """What an attempt has come to: a packed result. `at_once`: soon after it has begun."""
    input_id = step_id("called", call.key, call.asked_at, call.number)
    result = unpacked_result(payload).result
    fields = {
        "kind": CALLED,
        "input_id": input_id,
        "head": msgpack.packb((call.asked_at, call.number, result)),
        "payload": payload,
        "again": False,
        "park": "",
        "hops": _one_more(call.hops) if at_once else 0,
    }
    return _input(call.stream, input_id, fields, call.correlation_id, call.key, b"=")


def resume_input(step: StoredStep) -> PackedCommand:
    """The next input that waits in an instance is to be run."""
    input_id = step_id("resume", step.stream[0], step.stream[1], step.version, step.input_id)
    fields = {
        "kind": RESUME_INPUT,
        "input_id": input_id,
        "head": msgpack.packb(()),
        "payload": b"",
        "again": False,
        "park": "",
    }
    return _input(step.stream, input_id, fields, step.correlation_id, step.input_id, b"=")


def begin_inputs(catalogue: Catalogue) -> list[PackedCommand]:
    """The inputs that arm the schedules of an application: one that is armed already takes none. Sent whenever a
    partition is activated, for the instances that it holds; their ids are new ones, since the state decides."""
    found = []
    for process in catalogue.processes.values():
        for name in process.schedules:
            input_id = new_command_id()
            fields = {
                "kind": BEGIN,
                "input_id": input_id,
                "head": msgpack.packb((name,)),
                "payload": b"",
                "again": False,
                "park": "",
            }
            stream = StreamId(process.aggregate_type, SCHEDULED + name)
            found.append(_input(stream, input_id, fields, b"", b"", b"="))
    return found


def parked_input(packed: PackedCommand, why: str) -> PackedCommand:
    """The same input, to wait in its instance without being run: its process has ended on it, or what it led to could
    not be stored."""
    fields = msgpack.unpackb(packed.payload)
    return packed._replace(payload=msgpack.packb({**fields, "park": why[:_WHY_CHARS_MAX] or "it failed"}))


def is_parking(packed: PackedCommand) -> bool:
    """Whether a command is an input that is to wait without being run."""
    return packed.name == Input.message_name and bool(msgpack.unpackb(packed.payload).get("park"))


def send_command(step: StoredStep, sent: Sent) -> PackedCommand:
    """What a step has sent, as it goes to its target: every time the same."""
    return PackedCommand(
        sent.send_id,
        sent.stream,
        sent.name,
        sent.payload,
        ANY,
        step.correlation_id,
        step.input_id,
        sent.content,
        FINAL + _one_more(step.hops),
    )


def is_final(outcome: Outcome) -> bool:
    """Whether this is what became of a sent command, for good. Otherwise it is sent again, under the same id."""
    return not isinstance(outcome, Unavailable | Overloaded | StoreError | Conflict)


def is_delivered(outcome: Outcome) -> bool:
    """Whether an input was taken in, or concerns nothing. One that was not is kept and given again, or parked."""
    return isinstance(outcome, Receipt | CommandIdReused)
