"""OpenCall: where one call to the outside world is, as the fold of what its instance has stored.

Step [4] of the write path, in the state of an `Effects` instance. An instance has one call at a time; others for it
wait behind it, in order. Before it: `processes/call_step.py` makes the records. After it: the next step is decided on
the fold of them, here.

Rules kept here: it is a value, replaced and never changed; it is a fold of stored records alone; an attempt that has
begun stays begun until its end is known, or declared unknown by a record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from ..encoding.outputs import BEGUN, CALL, OVER, REST

__all__ = ["ASKED", "BEGUN_STATE", "RESTING", "SENDING", "OpenCall", "called"]

ASKED: Final = "asked"
"""Nothing was called yet."""
BEGUN_STATE: Final = "begun"
"""An attempt, or a look, is on its way."""
RESTING: Final = "resting"
"""An attempt is over, and the next one, or a look, is due after a pause."""
SENDING: Final = "sending"
"""The call is over; what its result sends has no outcome yet."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """One call that is open.

    Attributes:
        method: The name of its `@effect` function.
        state: `asked`, `begun`, `resting` or `sending`.
        attempt: The number of the last attempt or look that has begun; 0 before the first.
        why: What the last attempt came to, in words.
    """

    key: bytes
    """What the other side is given, and the ids of what the result sends are derived from."""
    method: str
    head: bytes
    """Where the event is from, packed."""
    payload: bytes
    """The event."""
    version: int
    """Of the record that asked for it."""
    state: str = ASKED
    running: str = ""
    """The function that has begun: the effect's, or that of its `@settle`."""
    attempt: int = 0
    made: int = 0
    """Attempts that were called, since it was asked for or an operator had it tried again."""
    looks: int = 0
    """Looks that came to nothing, one after the other."""
    unknown: bool = False
    """Whether the end of an attempt is unknown."""
    was_unknown: bool = False
    """The same before the attempt that is on its way."""
    why: str = ""


def called(
    before: OpenCall | None, outputs: list[list[Any]], input_id: bytes, version: int, *, open_sends: bool
) -> OpenCall | None:
    """The call after a step, whose record has this version. `open_sends`: whether a command of its result has no
    outcome."""
    found = before
    for entry in outputs:
        code = entry[0]
        if code == CALL:
            found = OpenCall(input_id, entry[1], entry[2], entry[3], version)
        elif found is None:
            continue
        elif code == BEGUN:
            is_call = entry[1] == found.method
            found = replace(
                found,
                state=BEGUN_STATE,
                running=entry[1],
                attempt=entry[2],
                made=found.made + is_call,
                unknown=True if is_call else found.unknown,
                was_unknown=entry[5],
            )
        elif code == REST:
            _, made, looks, unknown, why = entry[:5]
            found = replace(found, state=RESTING, running="", made=made, looks=looks, unknown=unknown, why=why)
        elif code == OVER:
            found = replace(found, state=SENDING, running="", head=b"", payload=b"", unknown=False, why=entry[2])
    if found is not None and found.state == SENDING and not open_sends:
        return None
    return found
