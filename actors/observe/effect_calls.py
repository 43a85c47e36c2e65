"""EffectCalls: the calls to the outside that wait for people, from a status.

Beside all steps. What an instance is parked for is text (`processes/call_step.py`); here it has a state again.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ...runtime.processes.call_step import UNKNOWN_END
from .status import Status

__all__ = ["CallState", "EffectCall", "effect_calls"]

CallState = Literal["unknown", "parked"]


class EffectCall(NamedTuple):
    """A call that waits for people.

    Example:
        for call in await bank.effects(state="unknown"):
            print(call.effects, call.id, call.why)
    """

    effects: str
    """The class, by the name of its streams."""
    id: str
    """Of its instance, to which `Settle`, `Retry` and `Skip` are sent."""
    state: CallState
    """`unknown`: whether the last attempt took effect is not known. `parked`: another reason."""
    why: str
    partition: int


def effect_calls(status: Status) -> list[EffectCall]:
    """Those of all partitions that answer: of each the first 200."""
    found = []
    for one in status.partitions:
        if one.courier is None:
            continue
        names = {queue.effects for queue in one.courier.calls}
        for stream, why in one.courier.parked:
            effects, _, ident = stream.partition("/")
            if effects in names:
                state: CallState = "unknown" if why.startswith(UNKNOWN_END) else "parked"
                found.append(EffectCall(effects, ident, state, why, one.partition))
    return found
