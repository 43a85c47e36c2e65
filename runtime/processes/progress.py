"""Progress: where an instance of a process is. What it has sent, which timers are armed, what waits, why it is parked.

Step [4] of the write path, in the state of a process. Before it: `step.py` makes a record of what a step did. After it:
the fold of these records, here, is what the next step is decided on.

Rules kept here: it is a value, replaced and never changed, so that comparing it costs nothing (`write/purity.py`); it
is a fold of stored records alone, and each of them has all that it changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgpack

from ..domain.messages import Event
from ..encoding.outputs import ENDED, ENDING, FORGET, SEND, UNDO, UNDONE, WAKE
from ..stream import RESERVED_PREFIX
from .kinds import ACCEPTED, AHEAD, BEGIN, END, EVENT, OUTCOME, SETTLED, SKIPPED, WOKEN
from .step_text import step_text

__all__ = [
    "STEPPED",
    "Body",
    "Progress",
    "Sending",
    "Stepped",
    "Timer",
    "advanced",
]

STEPPED: Final = f"{RESERVED_PREFIX}Stepped"


_SHOWN_MAX: Final = 10
"""Commands and timers that are shown of an instance."""


class Stepped(Event):
    """One step of a process: its input, and what is to be carried out. Rayfold stores it before the events of the step.

    Attributes:
        body: Packed; see `docs/log-format.md`. `repr` shows it in words.
    """

    body: bytes

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in step_text(self.body).items())
        return f"{type(self).__name__}({parts})"


Stepped.message_name = STEPPED

Body = list[Any]
"""[how, kind, head of the input, input id, what waits, whether one that waited is done, why parked, outputs, by whom,
reason, and how many hops led to it where any did]"""


@dataclass(frozen=True)
class Sending:
    """A command that was sent and is not answered, or one that can be taken back."""

    send_id: bytes
    """Its command id."""
    aggregate_type: str
    id: str
    command: str
    payload: bytes
    """Of the command, while it is not answered."""
    content: bytes
    undo: bytes
    """The command that takes it back, packed; empty for none."""
    done: bool
    """Whether it took effect."""
    undoes: int
    """The number of the command that this one takes back; -1 for none."""
    attempt: int
    """How often it was sent again by hand."""
    lost: bool = False
    """Whether it was sent again since the log of its target has lost it: the instance has acted on its acceptance."""


@dataclass(frozen=True)
class Timer:
    """A timer that is armed."""

    arming: int
    """The version of the record that armed it. One that is due for an earlier arming is not fired."""
    input_id: bytes
    """Of the input that armed it."""
    schedule: str
    """Empty for a single time."""


@dataclass(frozen=True, repr=False)
class Progress:
    """Where an instance of a process is.

    Attributes:
        sends: By number, what is not answered, and what can be taken back.
        timers: By name.
        waiting: Inputs that wait behind one that failed, packed, in order.
        parked: Why the instance is parked; empty while it is not.
        ended: Why it ended; None while it has not.

    Example:
        progress = (await shop.state(Fulfilment, "order-1")).progress
        print(progress.parked, progress.timers.keys(), progress.ended)
    """

    count: int = 0
    sends: dict[int, Sending] = field(default_factory=dict)
    timers: dict[str, Timer] = field(default_factory=dict)
    waiting: tuple[bytes, ...] = ()
    parked: str = ""
    undoing: bool = False
    """Whether it is taking back what it has sent."""
    ending: str | None = None
    """Why it will end once everything is taken back."""
    ended: str | None = None
    started: tuple[int, int, int] | None = None
    """Partition, position and time (microseconds since 1970) of the event that started it."""

    def __repr__(self) -> str:
        """What matters to people, in one line."""
        open_sends = [f"{one.command} to {one.aggregate_type}/{one.id}" for one in self.sends.values() if not one.done]
        fields = {
            "sent": open_sends[:_SHOWN_MAX],
            "timers": [*self.timers][:_SHOWN_MAX],
            "waiting": len(self.waiting),
            "parked": self.parked,
            "undoing": self.undoing,
        }
        parts = [f"{name}={value!r}" for name, value in fields.items() if value]
        parts += [] if self.ended is None else [f"ended={self.ended!r}"]
        return f"Progress({', '.join(parts)})"


def body_of(event: Stepped) -> Body:
    """What a record of a step holds."""
    body: Body = msgpack.unpackb(event.body, strict_map_key=False)
    return body


def advanced(before: Progress, body: Body, version: int) -> Progress:
    """The progress after a step, whose record has this version."""
    how, kind, head, input_id, waits, pops, parked, outputs = body[:8]
    if not (waits or pops or outputs or before.parked or before.started is None) and kind != OUTCOME and kind != WOKEN:
        return before
    count, sends, timers, waiting = before.count, before.sends, before.timers, before.waiting
    undoing, ending, ended, started = before.undoing, before.ending, before.ended, before.started
    if waits:
        waiting = (waits, *waiting) if how == AHEAD else (*waiting, waits)
    elif pops or not parked:  # else it was tried again in vain
        if pops:
            waiting = waiting[1:]
        if kind == OUTCOME:
            sends = _answered(sends, head, how)
        elif kind == WOKEN:
            known = timers.get(head[0])
            if known is not None and known.arming == head[1]:
                timers = {name: timer for name, timer in timers.items() if name != head[0]}
        if started is None and kind == EVENT and how not in (END, SETTLED):
            started = head[4], head[5], head[6]
    if kind == BEGIN and not waits:
        ending = ended = None  # a schedule is started, or started again
    for entry in outputs:
        code = entry[0]
        if code == SEND:
            number, send_id, aggregate_type, ident, command, payload, content, undo, undoes, attempt = entry[1:11]
            packed = b"" if undo is None else msgpack.packb(undo)
            sent = (send_id, aggregate_type, ident, command, payload, content, packed, False, undoes, attempt)
            sends = sends | {number: Sending(*sent, *entry[11:12])}
            count = number + 1
        elif code == WAKE:
            timers = timers | {entry[1]: Timer(version, input_id, entry[3] if isinstance(entry[3], str) else "")}
        elif code == FORGET:
            timers = {name: timer for name, timer in timers.items() if name != entry[1]}
        elif code == UNDO:
            undoing = True
        elif code == ENDING:
            ending = entry[1]
        elif code == UNDONE:
            undoing = False
        elif code == ENDED:
            ended, timers, waiting, undoing = entry[1], {}, (), False
    if how == END:
        parked = ""
        sends = {number: replace(sent, lost=False) for number, sent in sends.items()}  # what comes of them is ignored
    return Progress(count, sends, timers, waiting, parked, undoing, ending, ended, started)


def _answered(sends: dict[int, Sending], head: list[Any], how: int) -> dict[int, Sending]:
    """What is left once an outcome is taken in: a command that can be taken back, or nothing of it."""
    number, result = head[:2]
    sent = sends.get(number)
    if sent is None:
        return sends
    left = {other: one for other, one in sends.items() if other != number}
    if sent.undoes >= 0:
        if result == ACCEPTED or how == SKIPPED:
            left.pop(sent.undoes, None)
    elif result == ACCEPTED and sent.undo:
        facts = (sent.send_id, sent.aggregate_type, sent.id, sent.command, b"", b"", sent.undo, True, -1, sent.attempt)
        left = {other: Sending(*facts) if other == number else one for other, one in sends.items()}
    return left
