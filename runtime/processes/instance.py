"""Instance: a process as its steps see it: where it is, and which method is for which input.

Step [4] of the write path. `process.py` fills the tables while a class is defined; `step.py` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, NamedTuple

from ..domain.aggregate import Aggregate
from ..domain.messages import Command, Event
from .progress import Body, Progress

__all__ = ["Instance", "OutcomeMethod", "Reaction", "Schedule", "Stuck"]


class Stuck(Exception):  # noqa: N818 - a signal between the files of steps, not an error
    """An input cannot be taken in for this reason. The instance is parked."""


class Reaction(NamedTuple):
    """One `@react` method."""

    name: str
    function: Callable[..., Any]
    event: type[Event]
    takes_recorded: bool
    starts: bool
    one: Callable[[Any], str | None] | None
    """Which instance an event is for; None for the one with the id of the event's aggregate."""


class OutcomeMethod(NamedTuple):
    """One `@accepted`, `@refused` or `@failed` method."""

    name: str
    function: Callable[..., Any]
    command: type[Command] | None
    """The class of what was sent; None for all that have no method of their own."""
    takes_command: tuple[bool, ...]
    """For each parameter, whether it is the command; otherwise it is the error."""


class Schedule(NamedTuple):
    """One `@scheduled` method."""

    name: str
    function: Callable[..., Any]
    text: str
    """When, as it is stored (`schedule.py`)."""
    takes_due: bool


class Instance(Aggregate):
    """The base of `Process`: its state of Rayfold's own, and its tables."""

    progress: Progress = field(default_factory=Progress)
    """Where the instance is."""

    is_process: ClassVar[bool] = True
    is_effects: ClassVar[bool] = False
    """True for `Effects`, whose instances are calls to the outside."""
    reactions: ClassVar[dict[str, Reaction]] = {}
    """By the stored name of the event."""
    outcome_methods: ClassVar[dict[tuple[int, str], OutcomeMethod]] = {}
    """By the result and the stored name of the command; an empty name for all others."""
    schedules: ClassVar[dict[str, Schedule]] = {}
    """By the name of the method."""

    @classmethod
    def instance_id(cls, ident: str, version: int) -> str:
        """Which instance an event is for that no function routes: `ident` is the id of its aggregate."""
        return ident

    # What the steps of a call to the outside do otherwise (`effects.py`):

    @property
    def is_busy(self) -> bool:
        """Whether further events wait although nothing is parked: until a call is over."""
        return False

    def runs_ahead(self, kind: int) -> bool:
        """Whether an input of this kind is run before those that wait: it is about the call that they wait for."""
        return False

    def awaits(self, head: list[Any]) -> bool:
        """Whether this is what the call that is on its way has come to."""
        return False

    def outputs_of(self, kind: int, head: list[Any], payload: bytes, how: int) -> list[list[Any]] | None:
        """What follows from an input, where no method decides that. Raises `Stuck`."""
        return None

    def resumes(self, body: Body) -> bool:
        """Whether the next input that waits is to be run after this step."""
        return bool(body[5]) and len(self.progress.waiting) > 1
