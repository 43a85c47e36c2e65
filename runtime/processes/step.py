"""Step: an input and the state of an instance in, one record and the events of its own out. Pure.

Step [4] of the write path, as the decide function of every process. Before it: a courier has sent an input, as a
command under a derived id. After it: the write loop stores what is returned, in one transaction.

Rules kept here:
- what a step has carried out is in its record, with ids that are derived from stored things alone
- an instance whose method raises is parked: the input waits in its stream, later ones behind it, and its courier goes
  on; so does one that the code here is too old for, and its courier has it run until it succeeds
- a timer that was armed again, or forgotten, is never fired for its old arming
- what was sent is taken back in reverse, one after the other, each at most once; a refusal of that stops it, visibly
- an input that concerns nothing (no instance, one that has ended) leaves nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from ..domain.aggregate import Output, check_evolved, when
from ..domain.messages import Command, Event
from ..domain.outputs import Ended, Forget, Send, Undo, Wake
from ..domain.recorded import Recorded
from ..domain.upcast import Stored, upcasted
from ..encoding.codec import decode_message, decode_payload, encode_message, validated
from ..encoding.envelope import HOPS_MAX
from ..encoding.error_codec import from_wire
from ..encoding.outputs import (
    ENDED,
    ENDING,
    EVERY,
    FORGET,
    RESUME,
    SEND,
    UNDO,
    UNDONE,
    WAKE,
    forget_entry,
    send_entry,
    sent_id,
    step_id,
    wake_entry,
)
from ..errors import HandlerFailed, Rejected, StoreError, UnknownEvent, failure_text
from ..log.format import stream_id
from ..printable import shown
from ..stream import ID_BYTES_MAX, StreamId
from ..user_code import is_ctrl_c
from .inputs import End, Input, Retry, Skip
from .instance import Instance, Stuck
from .kinds import (
    ACCEPTED,
    AHEAD,
    BEGIN,
    CALLED,
    DIRECT,
    END,
    EVENT,
    FAILED,
    OUTCOME,
    REFUSED,
    RESUME_INPUT,
    RESUMED,
    RETRIED,
    SETTLED,
    SKIPPED,
    WOKEN,
)
from .progress import Body, Progress, Sending, Stepped, advanced

__all__ = [
    "OUTPUTS_MAX",
    "SCHEDULED",
    "SWITCHES",
    "SWITCHES_MAX",
    "UNROUTED",
    "WAITING_MAX",
    "concerns",
    "end",
    "instance_for",
    "is_reserved",
    "retry",
    "settle",
    "skip",
    "take",
    "yielded_by",
]

OUTPUTS_MAX: Final = 1_000
"""Events and outputs of one step: they are one transaction, and a method that yields without end ends here."""

OUTPUTS_BYTES_MAX: Final = 900 * 1024
"""All outputs of one step, packed: its record is a message of at most 1 MiB."""

WAITING_MAX: Final = 10_000
"""Inputs that wait in one parked instance, which is one value in memory. Further ones wait at their couriers."""

WAITING_BYTES_MAX: Final = 16 << 20

_pack: Final = msgpack.Packer(autoreset=True).pack
"""Safe to share between threads: it runs no Python while it packs plain values. A third of the time of `packb`."""

_ENDLESS: Final = (
    f"it goes on without end: over {HOPS_MAX:,} inputs and commands have followed from one another, each at once; "
    "Retry has it go on for as many more"
)

PARKED_CHARS_MAX: Final = 1_000

_OWN: Final = "rayfold:"
"""What the ids of instances of Rayfold's own begin with."""

UNROUTED: Final = "rayfold:unrouted"
"""The instance, of each process, in which events wait for which its `one=` has raised."""

SWITCHES: Final = "rayfold:switch:"
"""What the id of an instance begins with, of each `Effects`, that has calls switched on and off in its partition."""

SWITCHES_MAX: Final = 100
"""Such instances that may be used, for each partition: they are placed by their ids, which are numbered, so that of so
many each partition has one."""

SCHEDULED: Final = "schedule:"
"""What the id of an instance that a schedule runs in begins with; the name of the method follows."""


class _Waiting(NamedTuple):
    """An input, as it is packed where it waits."""

    kind: int
    input_id: bytes
    head: list[Any]
    payload: bytes
    hops: int = 0
    """Not packed: what has waited begins anew."""

    @property
    def packed(self) -> bytes:
        """As it waits."""
        packed: bytes = msgpack.packb(self[:4])
        return packed


def take(process: Instance, message: Input) -> list[Event] | Rejected:
    """The step of an input: decides the command `Input`."""
    progress, kind, head = process.progress, message.kind, msgpack.unpackb(message.head)
    if kind == RESUME_INPUT:
        stands = progress.parked or process.is_busy
        return _run_waiting(process, RESUMED) if progress.waiting and not stands else []
    if not (message.park or concerns(process, kind, head, message.again)):
        return []
    one = _Waiting(kind, message.input_id, head, message.payload, message.hops)
    ahead = process.runs_ahead(kind)
    how = AHEAD if ahead else DIRECT
    behind = not ahead and (progress.waiting or process.is_busy)
    park = message.park or (_ENDLESS if message.hops > HOPS_MAX else "")
    if kind == CALLED and progress.parked and not park:  # it stands for this very end
        return _run(process, one, how, pops=True)
    if behind or progress.parked or park:
        size_bytes = sum(map(len, progress.waiting)) + len(message.payload)
        if not ahead and (len(progress.waiting) >= WAITING_MAX or size_bytes > WAITING_BYTES_MAX):
            return Rejected("inbox_full", waiting=len(progress.waiting))
        first = ahead and not progress.parked
        return [_record(AHEAD if first else DIRECT, one, waits=one.packed, parked=progress.parked or park)]
    return _run(process, one, how, pops=False)


def retry(process: Instance, command: Retry) -> list[Event] | Rejected:
    """An operator has a parked instance try again, or a schedule that has ended start again."""
    name, progress = process.id.removeprefix(SCHEDULED), process.progress
    if progress.ended is not None and not progress.parked and name != process.id and name in process.schedules:
        begins = _Waiting(BEGIN, step_id("begin", process.aggregate_type, process.id, process.version), [name], b"")
        outputs = _next_time(process, begins)
        return _completed(process, begins, RETRIED, outputs, [], False, command.by, command.reason)
    if not progress.parked:
        return Rejected("not_parked")
    return _run_waiting(process, RETRIED, command.by, command.reason)


def skip(process: Instance, command: Skip) -> list[Event] | Rejected:
    """An operator has a parked instance leave out what it stopped at."""
    if not process.progress.parked:
        return Rejected("not_parked")
    one = _Waiting(*msgpack.unpackb(process.progress.waiting[0]))
    return _completed(process, one, SKIPPED, _next_time(process, one), [], True, command.by, command.reason)


def end(process: Instance, command: End) -> list[Event] | Rejected:
    """An operator ends an instance."""
    if not process.version or (process.progress.ended is not None and not process.progress.parked):
        return Rejected("already_ended" if process.version else "does_not_exist")
    none = _Waiting(EVENT, b"", [], b"")
    outputs = [*([FORGET, name] for name in process.progress.timers), [ENDED, command.reason]]
    return [_record(END, none, outputs=outputs, by=command.by, reason=command.reason)]


def settle(process: Instance, outputs: list[list[Any]], by: str, reason: str) -> list[Event]:
    """An operator settles the call to the outside that an instance stands at, or that rests: `outputs` follow."""
    pops = bool(process.progress.parked)
    one = _Waiting(*msgpack.unpackb(process.progress.waiting[0])) if pops else _Waiting(EVENT, b"", [], b"")
    return _completed(process, one, SETTLED, outputs, [], pops, by, reason)


def concerns(process: Instance, kind: int, head: list[Any], again: bool) -> bool:
    """Whether the instance is to take in this input."""
    progress = process.progress
    if kind == CALLED:
        return process.awaits(head)
    if kind == OUTCOME:
        sent = progress.sends.get(head[0])
        return sent is not None and sent.send_id == head[2] and not sent.done
    if kind == EVENT and process.id == UNROUTED:
        return True
    if progress.ended is not None or progress.ending is not None:
        return False
    if kind == EVENT:
        reaction = process.reactions.get(head[3])
        if not process.version:
            return reaction is not None and reaction.starts
        started = progress.started
        if not again or started is None or head[4] != started[0]:
            return True
        # In a log that was restored a later event may have an earlier position, but not an earlier time as well.
        return bool(head[5] > started[1] or head[7] > started[2])
    if kind == WOKEN:
        timer = progress.timers.get(head[0])
        return timer is not None and timer.arming == head[1]
    if kind == BEGIN:
        schedule, armed = process.schedules.get(head[0]), progress.timers.get(head[0])
        return schedule is not None and (armed is None or armed.schedule != schedule.text)
    return False


def instance_for(process: Instance | type[Instance], one: Callable[[Any], Any], event: Event) -> str | None:
    """The instance that `one=`, or the `order_by=` of an effect, names for an event; None for none, which no effect
    may. Raises `Stuck` for what is no key, and what the function raises."""
    ident = one(event)
    if process.is_effects and not _is_key(ident):
        what = f"it returned {shown(ident)}"
        raise Stuck(f"{what}; return text of 1 to {ID_BYTES_MAX} bytes that does not begin with {_OWN}")
    return None if ident is None else stream_id(process.aggregate_type, ident).id


def _is_key(ident: object) -> bool:
    if not isinstance(ident, str) or ident.startswith(_OWN):
        return False
    return 1 <= len(ident.encode(errors="replace")) <= ID_BYTES_MAX


def is_reserved(process: Instance | type[Instance], ident: str) -> bool:
    """Whether an instance of this id is Rayfold's own, so that no event is for it."""
    if ident == UNROUTED or ident.startswith(SWITCHES):
        return True
    return ident.startswith(SCHEDULED) and ident.removeprefix(SCHEDULED) in process.schedules


def _run_waiting(process: Instance, how: int, by: str = "", reason: str = "") -> list[Event]:
    """Run the first input that waits. One that concerns nothing by now is done: a timer that was armed again since."""
    one = _Waiting(*msgpack.unpackb(process.progress.waiting[0]))
    if not (_is_lost(one) or concerns(process, one.kind, one.head, again=False)):
        return _completed(process, one, how, [], [], True, by, reason)
    return _run(process, one, how, pops=True, by=by, reason=reason)


def _run(process: Instance, one: _Waiting, how: int, *, pops: bool, by: str = "", reason: str = "") -> list[Event]:
    """The step of an input that is run now; the record of a parked instance, if it cannot be taken in."""
    try:
        outputs, events = _outputs_of(process, one, how)
        return _completed(process, one, how, outputs, events, pops, by, reason)
    except Stuck as stuck:
        why = str(stuck)
    except StoreError:  # the code here is older than the event: it waits for other code, and later inputs behind it
        if pops:
            raise
        return [_record(how, one, waits=one.packed, outputs=[[RESUME]])]
    except BaseException as error:  # the user's code, which may raise anything
        if is_ctrl_c(error):
            raise
        failed = error.what if isinstance(error, HandlerFailed) else failure_text(error)
        why = f"{_name_of(process, one)}: {failed}"
    waits = b"" if pops else one.packed
    return [_record(how, one, waits=waits, parked=why[:PARKED_CHARS_MAX], by=by, reason=reason)]


def _completed(
    process: Instance,
    one: _Waiting,
    how: int,
    outputs: list[list[Any]],
    events: list[Event],
    pops: bool,
    by: str = "",
    reason: str = "",
) -> list[Event]:
    """The record of a step, and its events. Adds what follows by itself: the next compensation, the next input that
    waits, the end."""
    body = _body(how, one, pops=pops, outputs=outputs, by=by, reason=reason)
    progress = process.progress
    if progress.undoing or any(entry[0] == UNDO for entry in outputs):
        body[7] = outputs = outputs + _next_undo(advanced(progress, body, process.version + 1))
    if any(entry[0] == ENDED for entry in outputs):
        body[7] = [*(entry for entry in outputs if entry[0] != WAKE), *([FORGET, name] for name in progress.timers)]
    elif process.resumes(body):
        body[7] = [*outputs, [RESUME]]
    packed = _pack(body)
    if len(packed) > OUTPUTS_BYTES_MAX:
        raise Stuck(f"{_name_of(process, one)}: its outputs have {len(packed):,} bytes, over {OUTPUTS_BYTES_MAX:,}")
    return [Stepped(body=packed), *events]


def _record(how: int, one: _Waiting, **more: Any) -> Stepped:
    return Stepped(body=_pack(_body(how, one, **more)))


def _body(
    how: int,
    one: _Waiting,
    *,
    waits: bytes = b"",
    pops: bool = False,
    parked: str = "",
    outputs: Sequence[list[Any]] = (),
    by: str = "",
    reason: str = "",
) -> Body:
    head = [*one.head[:6], *one.head[7:8]] if one.kind == EVENT else one.head
    body = [how, one.kind, head, one.input_id, waits, pops, parked, outputs, by, reason]
    return [*body, one.hops] if one.hops else body


# --- what an input leads to --------------------------------------------------------------------------------------


def _outputs_of(process: Instance, one: _Waiting, how: int) -> tuple[list[list[Any]], list[Event]]:
    """What is to be carried out, and the events of the process's own. Raises `Stuck`, and what the method raises."""
    if process.id == UNROUTED and one.kind == EVENT:
        return [_forwarded(process, one)], []
    if _is_lost(one):
        return [_lost_again(process.progress, one, how)], []
    if one.kind == OUTCOME:
        again = _sent_again(process, one, how)
        if again is not None:
            return again, []
    decided = process.outputs_of(one.kind, one.head, one.payload, how)
    if decided is not None:
        return decided, []
    outputs: list[list[Any]] = []
    events: list[Event] = []
    ended: Ended | None = None
    seen: dict[tuple[str, str, str], int] = {}
    progress, number = process.progress, process.progress.count
    for item in yielded_by(process, one.kind, one.head, one.payload):
        if isinstance(item, Event):
            check_evolved(item, process, _method_name(process, one))
            events.append(item)
        elif isinstance(item, Send):
            _check_class(process, item.command)
            outputs.append(send_entry(item, number, sent_id((one.input_id,), item, seen)))
            number += 1
        elif isinstance(item, Wake):
            if item.name not in process.wakers:
                raise Stuck(f"{_name_of(process, one)}: it yielded {item!r}, and no @woken method has that name")
            outputs.append(wake_entry(item))
        elif isinstance(item, Forget):
            outputs.append(forget_entry(item))
        elif isinstance(item, Undo):
            outputs.append([UNDO])
        else:
            assert isinstance(item, Ended)
            ended = item
        if len(outputs) + len(events) > OUTPUTS_MAX:
            raise Stuck(f"{_name_of(process, one)}: it yielded over {OUTPUTS_MAX:,} outputs; split the step")
    outputs += _next_time(process, one)
    if ended is not None:
        undoing = progress.undoing or any(entry[0] == UNDO for entry in outputs)
        outputs.append([ENDING if undoing else ENDED, ended.reason])
    return outputs, events


def _next_time(process: Instance, one: _Waiting) -> list[list[Any]]:
    """The next time of the schedule that the input is of; empty for an input of another kind."""
    schedule = process.schedules.get(one.head[0]) if one.kind in (BEGIN, WOKEN) else None
    if schedule is None:
        return []
    return [[WAKE, schedule.name, EVERY, schedule.text, one.head[2] if one.kind == WOKEN else 0]]


def yielded_by(process: Instance, kind: int, head: list[Any], payload: bytes) -> Iterable[Event | Output]:
    """What the method for an input yields. Raises `Stuck` where no method takes what must not be passed over."""
    found: Any = None
    if kind == EVENT:
        reaction = process.reactions.get(head[3])
        if reaction is not None:
            event = _event(reaction.event, head, payload)
            found = reaction.function(process, event, *([_recorded(head)] if reaction.takes_recorded else []))
    elif kind == OUTCOME:
        found = _answer(process, head, payload)
    elif kind == WOKEN:
        method = process.wakers.get(head[0]) or process.schedules.get(head[0])
        if method is not None:
            found = method.function(process, *([when(head[2])] if method.takes_due else []))
    return _each(found)


def _each(found: object) -> Iterable[Event | Output]:
    if found is None:
        return
    if isinstance(found, Event | Output):
        yield found
        return
    if isinstance(found, Rejected):
        raise TypeError("it returned Rejected, and an event cannot be refused; send a command, or raise")
    if isinstance(found, str | bytes | dict) or not isinstance(found, Iterable):
        raise TypeError(f"it returned {found!r:.100}; return events and outputs, or None")
    for item in found:
        if not isinstance(item, Event | Output):
            raise TypeError(f"it returned {item!r:.100} among its outputs; return events and outputs, or None")
        yield item


def _event(cls: type[Event], head: list[Any], payload: bytes) -> Event:
    version = head[6]
    if version == cls.schema_version:
        return decode_message(cls, payload)
    if version > cls.schema_version:
        what = f"{cls.__name__} is only at version {cls.schema_version}; deploy newer code"
        raise UnknownEvent(head[3], version, what, f"{head[0]}/{head[1]}", head[2], head[5])
    now = upcasted(cls, decode_payload(payload, head[3]), version)
    if len(now) != 1 or isinstance(now[0], Stored):
        raise Stuck(f"{head[3]} version {version} is upcast to several events, or to others")
    return validated(cls, now[0])


def _recorded(head: list[Any]) -> Recorded:
    kind, ident, version, _, partition, position, _, at_us, command_id, correlation, causation = head[:11]
    return Recorded(StreamId(kind, ident), version, partition, position, at_us, command_id, correlation, causation)


def _answer(process: Instance, head: list[Any], payload: bytes) -> Any:
    """What the method for an outcome returns."""
    progress, (number, result) = process.progress, head[:2]
    sent = progress.sends[number]
    if sent.lost:
        if result != ACCEPTED:
            raise Stuck(f"{_text_of(sent)}, lost and sent again, {_result(result, payload)}")
        return None
    if progress.ended is not None:
        return None
    if sent.undoes >= 0:
        if result != ACCEPTED:
            raise Stuck(f"the compensation {_text_of(sent)} {_result(result, payload)}")
        return None
    forwarded = process.id == UNROUTED
    if progress.ending is not None or (forwarded and result == ACCEPTED):
        return None
    methods = {} if forwarded else process.outcome_methods
    method = methods.get((result, sent.command)) or methods.get((result, ""))
    if method is None:
        if result == ACCEPTED or progress.undoing:
            return None
        if process.is_effects:
            raise Stuck(f"what its result sends: {_text_of(sent)} {_result(result, payload)}")
        verb = "refused" if result == REFUSED else "failed"
        raise Stuck(f"{_text_of(sent)} {_result(result, payload)}, and no @{verb} method takes it")
    arguments: list[Any] = []
    for takes_command in method.takes_command:
        if takes_command:
            assert method.command is not None  # only one for a single command takes it
            arguments.append(decode_message(method.command, sent.payload))
        else:
            arguments.append(from_wire(msgpack.unpackb(payload, use_list=False)))
    return method.function(process, *arguments)


def _check_class(process: Instance, command: Command) -> None:
    """Raises `TypeError` for a command whose outcome would be given to a method as one of another class."""
    name = command.message_name
    for result in (ACCEPTED, REFUSED, FAILED):
        method = process.outcome_methods.get((result, name))
        if method is not None and method.command is not type(command):
            what = f"it sends another {name} than {method.name} is for; give one of the two classes another name="
            raise TypeError(what)


def _text_of(sent: Sending) -> str:
    return f"{sent.command} to {sent.aggregate_type}/{sent.id}"


def _result(result: int, payload: bytes) -> str:
    error = from_wire(msgpack.unpackb(payload, use_list=False))
    what = error.reason if isinstance(error, Rejected) else str(error)
    return f"{'was refused' if result == REFUSED else 'failed'}: {what}"


# --- taking back, sending again, forwarding -----------------------------------------------------------------------


def _next_undo(progress: Progress) -> list[list[Any]]:
    """What follows while an instance takes back what it has sent: the next command for it, the end, or nothing yet."""
    undone = {sent.undoes for sent in progress.sends.values()}
    for number in sorted(progress.sends, reverse=True):
        sent = progress.sends[number]
        if sent.undoes >= 0 or not sent.undo:
            continue
        if not sent.done or number in undone:
            return []
        return [_undo_entry(progress, number, sent, 1)]
    end = [] if progress.ending is None else [[ENDED, progress.ending]]
    return [[UNDONE], *end]


def _undo_entry(progress: Progress, number: int, sent: Sending, attempt: int) -> list[Any]:
    name, payload, content = msgpack.unpackb(sent.undo)
    send_id = step_id("undo", sent.send_id, attempt)
    target = sent.aggregate_type, sent.id, name, payload, content
    return [SEND, progress.count, send_id, *target, None, number, attempt]


def _sent_again(process: Instance, one: _Waiting, how: int) -> list[list[Any]] | None:
    """What an operator's `Retry` of an outcome sends: the same command under a further id. None where a method is to
    take the outcome."""
    progress, (number, result) = process.progress, one.head[:2]
    sent = progress.sends.get(number)
    if how != RETRIED or result == ACCEPTED or sent is None:
        return None
    attempt = sent.attempt + 1
    undo = msgpack.unpackb(sent.undo) if sent.undo else None
    target = sent.aggregate_type, sent.id, sent.command, sent.payload, sent.content
    again = [SEND, progress.count, step_id("again", sent.send_id, attempt), *target, undo, sent.undoes, attempt]
    if sent.lost:
        return [[*again, True]]
    if sent.undoes >= 0:
        original = progress.sends.get(sent.undoes)
        return None if original is None else [_undo_entry(progress, sent.undoes, original, attempt)]
    methods = process.outcome_methods
    if methods.get((result, sent.command)) or methods.get((result, "")) or progress.ending is not None:
        return None
    return [again]


def _is_lost(one: _Waiting) -> bool:
    """Whether this is `lost_input`: a command had taken effect, and the log of its target has lost it."""
    return one.kind == OUTCOME and one.input_id == step_id("lost", one.head[2])


def _lost_again(progress: Progress, one: _Waiting, how: int) -> list[Any]:
    """What an operator's `Retry` of a lost command sends: it, under a further id, of an instance that has ended too. It
    is taken back later only if it would have been. Raises `Stuck` otherwise: it is never passed over."""
    number, _, send_id = one.head[:3]
    body = msgpack.unpackb(one.payload)
    if not isinstance(body, dict):
        what = f"number {number} had taken effect, and the log of its target has lost it"
        raise Stuck(f"{what}; an earlier release has noted that without the command: settle it by hand, then Skip")
    if how != RETRIED:
        raise Stuck(body["why"])
    *target, undoes, attempt = body["command"]
    sent = progress.sends.get(number)
    undo = None if sent is None or not sent.undo else msgpack.unpackb(sent.undo)
    again_id = step_id("again", send_id, attempt + 1)
    return [SEND, progress.count, again_id, *target, undo, undoes, attempt + 1, True]


def _forwarded(process: Instance, one: _Waiting) -> list[Any]:
    """The event, sent on to the instance that `one=` names now."""
    reaction = process.reactions.get(one.head[3])
    ident = None
    if reaction is not None:
        event = _event(reaction.event, one.head, one.payload)
        here = process.instance_id(one.head[1], one.head[2])
        ident = here if reaction.one is None else instance_for(process, reaction.one, event)
    if ident is None or is_reserved(process, ident):
        raise Stuck(f"{one.head[3]} is for {'no instance' if ident is None else ident} now; Skip it")
    send_id = step_id("forward", one.input_id)
    forwarded = Input(kind=EVENT, input_id=send_id, head=msgpack.packb(one.head), payload=one.payload)
    packed = forwarded.message_name, encode_message(forwarded), b""
    return [SEND, process.progress.count, send_id, process.aggregate_type, ident, *packed, None, -1, 0]


# --- names -------------------------------------------------------------------------------------------------------


def _method_name(process: Instance, one: _Waiting) -> str:
    found: Any = None
    if one.kind == EVENT:
        found = process.reactions.get(one.head[3])
    elif one.kind in (WOKEN, BEGIN):
        found = process.wakers.get(one.head[0]) or process.schedules.get(one.head[0])
    elif one.kind == OUTCOME:
        sent = process.progress.sends.get(one.head[0])
        methods, result = process.outcome_methods, one.head[1]
        found = methods.get((result, sent.command if sent else "")) or methods.get((result, ""))
    return "step" if found is None else found.name


def _name_of(process: Instance, one: _Waiting) -> str:
    return f"{type(process).__name__}.{_method_name(process, one)}"
