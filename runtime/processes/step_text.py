"""StepText: a stored step in words, for people: what came in, what is carried out, whether the instance is parked.

Beside all steps: `history` of a program and of the command line, and errors, show it in place of packed bytes.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from ..effects.results import DECLINED, DONE, NOT_CALLED, NOT_DONE
from ..encoding.outputs import (
    AFTER,
    AT,
    BEGUN,
    CALL,
    ENDED,
    ENDING,
    FORGET,
    OVER,
    REST,
    RESUME,
    SEND,
    UNDO,
    UNDONE,
    WAKE,
)
from .kinds import (
    ACCEPTED,
    AHEAD,
    BEGIN,
    CALLED,
    END,
    EVENT,
    OUTCOME,
    REFUSED,
    RESUMED,
    RETRIED,
    SETTLED,
    SKIPPED,
    WOKEN,
)

__all__ = ["step_text"]

_HOW: Final = {
    RESUMED: "after it waited",
    RETRIED: "retried",
    SKIPPED: "skipped",
    END: "ended by an operator",
    AHEAD: "",
    SETTLED: "settled by an operator",
}
_WORDS: Final = {
    FORGET: "forget timer",
    RESUME: "run the next input",
    ENDED: "ended:",
    UNDO: "take back",
    ENDING: "ends once all is taken back:",
    UNDONE: "all is taken back",
}
_OVER: Final = {DONE: "done", DECLINED: "declined", NOT_DONE: "not done", NOT_CALLED: "not made"}
_RESULTS: Final = {ACCEPTED: "accepted", REFUSED: "refused"}


def step_text(body: bytes) -> dict[str, Any]:
    """What a packed step holds, by name; parts that are empty are left out. Never raises."""
    try:
        how, kind, head, _, waits, _, parked, outputs, by, reason = msgpack.unpackb(body, strict_map_key=False)[:10]
        fields = {
            "input": _input(kind, head) if how != END and (head or how != SETTLED) else "",
            "how": _HOW.get(how, ""),
            "waits": bool(waits),
            "outputs": [_output(entry) for entry in outputs],
            "parked": parked,
            "by": by,
            "reason": reason,
        }
    except (ValueError, TypeError, IndexError, KeyError):
        return {"body": body}
    return {name: value for name, value in fields.items() if value}


def _input(kind: int, head: list[Any]) -> str:
    if kind == EVENT:
        return f"{head[3]}, version {head[2]} of {head[0]}/{head[1]}"
    if kind == OUTCOME:
        return f"number {head[0]} was {_RESULTS.get(head[1], 'not decided')}"
    if kind == WOKEN:
        return f"timer {head[0]}, armed by version {head[1]}"
    if kind == CALLED:
        return f"attempt {head[1]} was {_OVER.get(head[2], 'of unknown end')}"
    return f"schedule {head[0]}" if kind == BEGIN else f"input of kind {kind}"


def _output(entry: list[Any]) -> str:
    code = entry[0]
    if code == SEND:
        takes_back = f", takes back number {entry[9]}" if entry[9] >= 0 else ""
        return f"number {entry[1]}: {entry[5]} to {entry[3]}/{entry[4]}{takes_back}"
    if code == WAKE:
        mode, value = entry[2:4]
        due = f"after {value / 1e6:g} s" if mode == AFTER else f"at {value} us" if mode == AT else value
        return f"timer {entry[1]}: {due}"
    if code == CALL:
        return f"call {entry[1]}"
    if code == BEGUN:
        return f"attempt {entry[2]} has begun: {entry[1]}"
    if code == REST:
        return f"{'end unknown' if entry[3] else 'not done'}: {entry[4]}"
    if code == OVER:
        return f"{_OVER.get(entry[1], 'over')}: {entry[2]}".removesuffix(": ")
    return " ".join([_WORDS.get(code, f"output of kind {code}"), *map(str, entry[1:])])
