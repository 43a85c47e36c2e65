"""CallStep: what follows from an input about a call to the outside world. Pure.

Step [4] of the write path, inside `step.py`, for instances of `Effects`. Before it: an event asks for a call, its timer
is due, a runner has reported what an attempt has come to, or an operator settles it. After it: the record has what is
to be called next, and the courier hands it to a runner once that is committed.

The timer of a call bears the name of the function that is to begin: when it is fired the attempt has begun, in the log.
A second timer, `late call`, is armed with the attempt: if no end is stored by then, the end is unknown, whatever has
become of runner, partition and program.

Rules kept here:
- nothing is called that has not begun in the log; an attempt begins once
- an attempt whose end is unknown is looked up, or made again if the effect is `repeatable`, or waits for people: as the
  code has it when its timer is due, which an earlier release may have armed
- the key of a call, and the ids of what its result sends, are the same for all attempts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from ..effects.methods import EffectMethod, LookMethod
from ..effects.open_call import BEGUN_STATE, SENDING, OpenCall
from ..effects.results import DECLINED, DONE, NOT_CALLED, NOT_DONE, PackedResult, unpacked_result
from ..encoding.outputs import AFTER, BEGUN, CALL, FORGET, OVER, REST, SEND, WAKE, step_id
from .instance import Stuck
from .kinds import CALLED, EVENT, RETRIED, WOKEN

__all__ = ["LATE", "LATE_US", "UNKNOWN_END", "call_outputs", "over_entries"]

LATE: Final = "late call"
"""The timer after which the end of an attempt is unknown. No function has this name: it is not an identifier."""

LATE_US: Final = 5_000_000
"""How long after its timeout that is: the way to the runner and back. A runner begins nothing that is older."""

NOT_CALLED_PAUSE_US: Final = 1_000_000
"""The pause after an attempt that was not made: its runner has ended, and another one is there in a second."""

UNKNOWN_END: Final = "unknown: "
"""What the reason of an instance begins with that is parked because the end of a call is unknown."""


def call_outputs(
    calling: OpenCall | None,
    effects: Mapping[str, EffectMethod],
    looks: Mapping[str, LookMethod],
    count: int,
    kind: int,
    head: list[Any],
    payload: bytes,
    how: int,
) -> list[list[Any]]:
    """What follows from an input. `count`: of the commands that the instance has sent. Raises `Stuck`."""
    if kind == EVENT:
        return _asked(effects, head, payload)
    if calling is None or calling.state == SENDING:
        return []
    effect = effects.get(calling.method)
    if effect is None:
        raise Stuck(f"{calling.method} is no @effect any more; deploy it again, settle the call, or skip it")
    if kind == WOKEN and head[0] != LATE:
        return _begun(calling, effect, looks, head)
    if kind == WOKEN and calling.state == BEGUN_STATE:
        return _unknown(calling, effect, "no end was reported in time", how)
    if kind == CALLED:
        return _ended(calling, effect, unpacked_result(payload), count, how)
    return []


def over_entries(calling: OpenCall, result: PackedResult, count: int) -> list[list[Any]]:
    """The end of a call, and what its result sends."""
    entries: list[list[Any]] = [[FORGET, LATE], [FORGET, calling.method], [OVER, result.result, result.note]]
    seen: dict[tuple[str, str, str], int] = {}
    for place, (kind, ident, name, payload, content) in enumerate(result.sends):
        target = kind, ident, name
        number = seen[target] = seen.get(target, 0) + 1
        send_id = step_id("result", calling.key, *target, number)
        entries.append([SEND, count + place, send_id, kind, ident, name, payload, content, None, -1, 0])
    return entries


def _asked(effects: Mapping[str, EffectMethod], head: list[Any], payload: bytes) -> list[list[Any]]:
    name = next((one.name for one in effects.values() if one.event.message_name == head[3]), None)
    if name is None:
        raise Stuck(f"no @effect takes {head[3]} any more; deploy it again, or skip it")
    return [[CALL, name, msgpack.packb(head), payload], [WAKE, name, AFTER, 0]]


def _begun(
    calling: OpenCall, effect: EffectMethod, looks: Mapping[str, LookMethod], head: list[Any]
) -> list[list[Any]]:
    """The timer of the call is due: the attempt, or the look, begins with this record."""
    if calling.state == BEGUN_STATE or (head[0] != effect.name and head[0] not in looks):
        return []
    if calling.unknown and head[0] == effect.name and not effect.rules.repeatable:
        if effect.look:
            return [[REST, calling.made, 0, True, calling.why], [WAKE, effect.look, AFTER, 0]]
        raise Stuck(f"{UNKNOWN_END}{effect.name} is not repeatable any more: {calling.why}")
    begun = [BEGUN, head[0], calling.attempt + 1, head[3] if len(head) > 3 else b"", calling.version, calling.unknown]
    return [begun, [WAKE, LATE, AFTER, int(effect.rules.timeout_s * 1e6) + LATE_US]]


def _ended(calling: OpenCall, effect: EffectMethod, result: PackedResult, count: int, how: int) -> list[list[Any]]:
    """What an attempt, or a look, has come to."""
    if result.result in (DONE, DECLINED):
        return over_entries(calling, result, count)
    if result.result == NOT_CALLED:
        made = calling.made - (calling.running == effect.name)
        rest = [REST, made, calling.looks, calling.was_unknown, result.note]
        return [[FORGET, LATE], rest, [WAKE, calling.running, AFTER, NOT_CALLED_PAUSE_US]]
    if result.result != NOT_DONE:
        return _unknown(calling, effect, result.note, how)
    unknown = calling.was_unknown and calling.running == effect.name  # this one was not done, an earlier one may be
    if effect.rules.retry.ends(calling.made) and how != RETRIED:
        raise Stuck(f"{UNKNOWN_END if unknown else ''}given up after {calling.made} attempts: {result.note}")
    return _again(calling, effect, result.note, how, unknown=unknown)


def _unknown(calling: OpenCall, effect: EffectMethod, why: str, how: int) -> list[list[Any]]:
    """The end of the attempt is not known, or a look came to nothing."""
    retry, again = effect.rules.retry, how == RETRIED
    if effect.look:
        looks = calling.looks + 1 if calling.running == effect.look else 0
        if retry.ends(looks) and not again:
            raise Stuck(f"{UNKNOWN_END}attempt {calling.made} of {effect.name}, looked up {looks} times: {why}")
        pause_us = retry.pause_us(looks) if looks and not again else 0
        rest = [REST, calling.made, 0 if again else looks, True, why]
        return [[FORGET, LATE], rest, [WAKE, effect.look, AFTER, pause_us]]
    if effect.rules.repeatable:
        if retry.ends(calling.made) and not again:
            raise Stuck(f"{UNKNOWN_END}given up after {calling.made} attempts of {effect.name}: {why}")
        return _again(calling, effect, why, how, unknown=True)
    raise Stuck(f"{UNKNOWN_END}attempt {calling.made} of {effect.name}: {why}")


def _again(calling: OpenCall, effect: EffectMethod, why: str, how: int, *, unknown: bool = False) -> list[list[Any]]:
    """It is called again after a pause; at once, and counted anew, if an operator has it tried again."""
    made, pause_us = (0, 0) if how == RETRIED else (calling.made, effect.rules.retry.pause_us(calling.made))
    return [[FORGET, LATE], [REST, made, 0, unknown, why], [WAKE, effect.name, AFTER, pause_us]]
