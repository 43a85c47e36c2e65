"""Running: one attempt is made: the function is called, and what it comes to is packed. Never raises.

Beside step [5], on the event loop of a runner, or in a test. Before it: the attempt has begun in the log. After it: the
courier has its result taken in.

Rule kept here: what is not a result means that the end is unknown; an event that cannot be read, or a function that is
not there, means that nothing was called.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgpack

from ..domain.messages import Event
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..errors import CallerError, RayfoldError, failure_text
from ..log.contract import StoredEvent
from ..printable import printable_log
from ..stream import StreamId
from .call import Call
from .call_attempt import CallAttempt
from .methods import EffectMethod
from .results import NotDone, Result, Unknown, packed_result

__all__ = ["call_of", "called_now", "made"]

logger = printable_log(__name__)


def effect_of(cls: Any, method: str) -> EffectMethod | None:
    """The `@effect` that a function is, or settles; None if there is none."""
    looks = cls.looks.get(method)
    found: EffectMethod | None = cls.effects.get(method if looks is None else looks.effect)
    return found


def call_of(call: CallAttempt, timeout_s: float) -> Call:
    """What the function gets beside the event."""
    kind, ident, version, _, partition, position, _, at_us, command_id, correlation, causation = msgpack.unpackb(
        call.head
    )[:11]
    place = StreamId(kind, ident), version, partition, position, at_us, command_id, correlation, causation
    return Call(call.key.hex(), call.number, timeout_s, call.stream.id, Recorded(*place), call.unknown)


def event_of(call: CallAttempt, catalogue: Catalogue) -> Event:
    """The event that led to the call, of the class that bears its name now. Raises `UnknownEvent`."""
    head = msgpack.unpackb(call.head)
    place = StreamId(head[0], head[1])
    return catalogue.decode_event(StoredEvent(head[5], place, head[2], head[3], head[6], call.payload, *head[7:11]))


def _prepared(
    call: CallAttempt, catalogue: Catalogue, subjects: Mapping[str, Any]
) -> tuple[Callable[[], Awaitable[Result]], float] | NotDone:
    """What calls the function, and its timeout; or why it cannot be called. `subjects`: the object of each class, by
    the name of its streams."""
    cls = catalogue.processes.get(call.stream.type)
    effect = None if cls is None else effect_of(cls, call.method)
    if cls is None or effect is None:
        return NotDone(f"{call.stream.type} has no function {call.method} here")
    try:
        event = event_of(call, catalogue)
    except RayfoldError as error:
        return NotDone(f"its event cannot be read: {error}")
    method = cls.effects.get(call.method) or cls.looks[call.method]
    timeout_s = effect.rules.timeout_s
    arguments = (call_of(call, timeout_s),) if method.takes_call else ()
    return (lambda: method.function(subjects[call.stream.type], event, *arguments)), timeout_s


async def made(call: CallAttempt, catalogue: Catalogue, subjects: Mapping[str, Any]) -> bytes:
    """Make the attempt. What it has come to, packed."""
    found = _prepared(call, catalogue, subjects)
    if isinstance(found, NotDone):
        return packed_result(found)
    function, timeout_s = found
    try:
        async with asyncio.timeout(timeout_s):
            return _packed(await function())
    except TimeoutError as error:
        return packed_result(Unknown(failure_text(error) if str(error) else f"it took over {timeout_s:g} s"))
    except BaseException as error:  # the user's code, which may raise anything
        return packed_result(Unknown(failure_text(error)))


def called_now(call: CallAttempt, catalogue: Catalogue, fake: Callable[[Any, Call], Any]) -> bytes:
    """As `made`, with another function, which does not wait for anything. What it raises is logged too."""
    event = event_of(call, catalogue)
    effect = effect_of(catalogue.processes[call.stream.type], call.method)
    assert effect is not None  # a courier names no other ones
    try:
        found = fake(event, call_of(call, effect.rules.timeout_s))
        if inspect.iscoroutine(found):
            found = _result_at_once(found, call.method)
        return packed_result(found)
    except Exception as error:
        logger.warning("the fake of %s.%s has failed: %s", call.stream.type, call.method, failure_text(error))
        return packed_result(Unknown(failure_text(error)))


def _result_at_once(coroutine: Coroutine[Any, Any, Any], method: str) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise CallerError(f"the fake of {method} waits; return its result at once")


def _packed(result: object) -> bytes:
    """A result, packed; `Unknown` where it is none, or cannot be stored."""
    try:
        return packed_result(result)
    except Exception as error:
        return packed_result(Unknown(failure_text(error)))
