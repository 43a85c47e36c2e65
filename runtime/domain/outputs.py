"""Outputs: what a process, or the decision of an ordinary aggregate, has carried out after its events are stored.

Beside step [4] of the write path. Before it: a handler yields them among its events. After it: they are stored with
those, in one transaction, and the courier of the partition carries them out (`processes/`).

Rule kept here: an output is a plain value. What it sends is checked when it is made: a command that its target does not
decide never reaches the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from ..errors import InvalidMessage
from ..printable import shown
from ..stream import ID_BYTES_MAX
from .aggregate import Aggregate, Output
from .messages import Command

__all__ = ["WAKE_NAME_BYTES_MAX", "Ended", "Forget", "Send", "Undo", "Wake"]

WAKE_NAME_BYTES_MAX: Final = 36
"""The length of a timer's name: the agenda has it in a key of LMDB, 511 bytes, behind a time (8) and a stream (467)."""


@dataclass(frozen=True, slots=True)
class Send(Output):
    """A command to an aggregate, sent once the step that yields it is stored. Raises `InvalidMessage`.

    It takes effect at most once, permanently, and a refusal of it is final. A process gets the outcome: `@accepted`,
    `@refused`, `@failed`.

    Args:
        aggregate: The class of the target.
        id: Which aggregate of that type.
        command: What it shall decide.
        undo: The command to the same aggregate that takes it back. `Undo()` sends it, if the command took effect.

    Example:
        yield Send(Till, event.till, Charge(amount=event.total), undo=Refund(amount=event.total))
    """

    aggregate: type[Aggregate]
    id: str
    command: Command
    undo: Command | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be carried out."""
        target: Any = self.aggregate
        if not (isinstance(target, type) and issubclass(target, Aggregate)):
            raise InvalidMessage("Send", f"{shown(target)} is not an Aggregate class", "give the class of the target")
        if type(self.id) is not str or not 0 < len(self.id.encode("utf-8", "replace")) <= ID_BYTES_MAX:
            remedy = f"give text of 1 to {ID_BYTES_MAX} bytes"
            raise InvalidMessage("Send", f"{shown(self.id)} is not the id of an aggregate", remedy)
        for command in (self.command,) if self.undo is None else (self.command, self.undo):
            if type(command) not in target.deciders:
                known = ", ".join(cls.__name__ for cls in target.deciders) or "none"
                what = f"{target.__name__} does not decide {type(command).__name__}"
                raise InvalidMessage("Send", what, f"its commands are: {known}")


@dataclass(frozen=True, slots=True)
class Wake(Output):
    """A timer: the method `@woken(name)` is called once, at that time or a little later, never before. Raises
    `InvalidMessage`.

    One that has the name of an earlier one takes its place. A time that has passed is due at once.

    Args:
        name: Of the timer, and of the `@woken` method.
        after: How long after the step that arms it was recorded.
        at: Or when; with a time zone.

    Example:
        yield Wake("unpaid", after=timedelta(minutes=15))
    """

    name: str
    after: timedelta | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        _check_name("Wake", self.name)
        if (self.after is None) == (self.at is None):
            what = "it has no time" if self.at is None else "it has two times"
            raise InvalidMessage(f"Wake {self.name!r}", what, "give after=timedelta(...) or at=datetime(...)")
        if self.after is not None and (not isinstance(self.after, timedelta) or self.after < timedelta(0)):
            what = f"after={shown(self.after)} is not a time from now on"
            raise InvalidMessage(f"Wake {self.name!r}", what, "give a timedelta from 0")
        if self.at is not None and (not isinstance(self.at, datetime) or self.at.utcoffset() is None):
            what = f"at={shown(self.at)} has no time zone"
            raise InvalidMessage(f"Wake {self.name!r}", what, "give a datetime with tzinfo")


@dataclass(frozen=True, slots=True)
class Forget(Output):
    """A timer that is not needed any more. One that is not armed is no error. Raises `InvalidMessage`.

    Example:
        yield Forget("unpaid")
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse what is no name."""
        _check_name("Forget", self.name)


@dataclass(frozen=True, slots=True)
class Undo(Output):
    """Take back what this instance has sent: the `undo` of every `Send` that took effect is sent, the last one first,
    each at most once. What is still on its way is waited for. If one is refused the instance stops there, visibly.

    Example:
        yield Undo()
    """

    of_aggregates: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Ended(Output):
    """The end of this instance: its timers are forgotten and later inputs are ignored. After an `Undo` in the same step
    or before, it ends once everything is taken back.

    Example:
        yield Ended("paid and shipped")
    """

    of_aggregates: ClassVar[bool] = False
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no reason."""
        if not isinstance(self.reason, str):
            raise InvalidMessage("Ended", f"{shown(self.reason)} is not a reason", "give text")


def _check_name(output: str, name: object) -> None:
    if type(name) is not str or not 0 < len(name.encode("utf-8", "replace")) <= WAKE_NAME_BYTES_MAX:
        remedy = f"give text of 1 to {WAKE_NAME_BYTES_MAX} bytes"
        raise InvalidMessage(output, f"{shown(name)} is not the name of a timer", remedy)
