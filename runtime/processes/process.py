"""Process: the vocabulary of what spans aggregates and time, as a plain class, and the checks when it is defined.

Step [4] of the write path: an instance is an aggregate, whose inputs are commands that couriers send. Before it: an
event, a timer or an outcome. After it: `step.py` runs the method that it is for, and what that yields is stored.

Rules kept here: a method looks and never changes anything, but for `@evolve`; it is pure, without input or output,
clock or randomness; what cannot work is a `DefinitionError` while the class is defined.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast, overload

from ..domain.aggregate import (
    Decider,
    Shared,
    evolved_by_base,
    evolved_events,
    may_be_refused,
)
from ..domain.declaration import (
    Method,
    arguments_of_union,
    being_unpickled,
    described,
    handlers_of,
    mark,
    methods_of,
    where,
)
from ..domain.messages import Command, Event
from ..errors import DefinitionError, RayfoldError, Rejected
from ..printable import shown
from .inputs import End, Input, Retry, Skip
from .instance import Instance, OutcomeMethod, Reaction, Schedule
from .kinds import ACCEPTED, FAILED, REFUSED
from .progress import Stepped, advanced, body_of
from .schedule import schedule_text
from .step import end, retry, skip, take

__all__ = [
    "End",
    "OutcomeMethod",
    "Process",
    "Reaction",
    "Retry",
    "Schedule",
    "Skip",
    "accepted",
    "failed",
    "react",
    "refused",
    "scheduled",
]

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


class Process(Instance):
    """The base of your processes: what spans aggregates and time. Its annotated attributes are the state.

    An instance has an id and a stream, as an aggregate has. It starts with an event for which a method is marked
    `@react(starts=True)`, reacts to events, timers and the outcomes of what it has sent, and yields commands (`Send`),
    timers (`Wake`, `Forget`), events of its own, `Undo()` and `Ended()`. Each input is taken in at most once. What a
    method yields is stored in one transaction and carried out afterwards.

    A method that raises parks its instance: later inputs wait behind it, in order, until `Retry`, `Skip` or `End`. All
    other instances go on. Raises `DefinitionError` while the class is defined.

    Attributes:
        id: Of this instance.
        version: How many records it has; 0 before the first.
        progress: What it has sent, which timers are armed, what waits, and why it is parked or has ended.

    Example:
        class Welcome(Process):
            @react(starts=True)
            def registered(self, event: Registered) -> Iterator[Send]:
                yield Send(Mailbox, event.email, Deliver(text="welcome"))
    """

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        placement: object = None,
        snapshot_every: int | None = None,
        state_version: int | None = None,
    ) -> None:
        """Find and check the fields and methods. Raises `DefinitionError`."""
        _check_body(cls)
        if placement is not None:
            what = f"placement={shown(placement)} is given, and a process runs in its partition"
            raise DefinitionError(where(cls), what, "take it away")
        super().__init_subclass__(
            name=name, placement=Shared(), snapshot_every=snapshot_every, state_version=state_version
        )
        if being_unpickled():
            return
        if cls.deciders:
            decider = next(iter(cls.deciders.values()))
            what = "a process takes events, and no commands of its own"
            raise DefinitionError(where(cls, decider.name), what, "write an aggregate for it, and react to its event")
        cls.evolvers = {**cls.evolvers, Stepped: _evolve}
        cls.reactions = _reactions(cls)
        cls.reacts_to = tuple(reaction.event for reaction in cls.reactions.values())
        cls.outcome_methods = _outcome_methods(cls)
        cls.schedules = _schedules(cls)
        for method in methods_of(cls, "woken"):
            _learn_events(cls, method.name, method.returns)
        if not cls.schedules and not any(reaction.starts for reaction in cls.reactions.values()):
            remedy = "mark a method @react(starts=True), for the event that starts one"
            raise DefinitionError(where(cls), "nothing starts an instance of it", remedy)
        cls.deciders = {
            Input: Decider("take", take, False, ()),
            Retry: Decider("retry", retry, False, ()),
            Skip: Decider("skip", skip, False, ()),
            End: Decider("end", end, False, ()),
        }


@overload
def react(function: FunctionType, /) -> FunctionType: ...
@overload
def react(
    *, starts: bool = False, one: Callable[[Any], str | None] | None = None
) -> Callable[[FunctionType], FunctionType]: ...
def react(function: Any = None, /, *, starts: bool = False, one: Any = None) -> Any:
    """Mark a method that reacts to an event: that of its parameter's annotation. It may take a `Recorded` as well.

    Args:
        function: The method.
        starts: Whether the event starts an instance that does not exist. Other events to such an id are ignored.
        one: Which instance an event is for: a function of the event that returns an id, or None for no instance. By
            default the one that has the id of the event's aggregate.

    Raises:
        DefinitionError: Annotations that are missing or do not fit.

    Example:
        @react(starts=True, one=lambda event: event.order)
        def charged(self, event: Charged) -> Iterator[Send | Wake]:
            yield Send(Stock, event.item, Reserve(order=self.id))
            yield Wake("late", after=timedelta(hours=1))
    """
    if one is not None and not _takes_one(one):
        what = f"one={one!r} is not a function of one event"
        raise DefinitionError("@react", what, "write one=lambda event: event.order")
    if function is None:
        return lambda later: mark(later, "react", creates=starts, route=one)
    return mark(function, "react", creates=starts, route=one)


def _takes_one(one: object) -> bool:
    if not callable(one):
        return False
    try:
        inspect.signature(one).bind(None)
    except TypeError:
        return False
    except ValueError:  # of a function that shows no signature nothing is known
        return True
    return True


def accepted(*commands: type[Command]) -> Callable[[FunctionType], FunctionType]:
    """Mark a method that is called when one of these commands has taken effect. It may take the command.

    Without commands it is for all that have no method of their own, and takes no command. Raises `DefinitionError`.

    Example:
        @accepted(Ship)
        def shipped(self) -> Ended:
            return Ended("shipped")
    """
    checked = _checked_commands("accepted", commands)
    return lambda function: mark(function, "accepted", route=checked)


def refused(*commands: type[Command]) -> Callable[[FunctionType], FunctionType]:
    """Mark a method that is called when one of these commands was refused: it may take the `Rejected`, and the command.

    Without commands it is for all that have no method of their own, and takes none. A refusal that no method takes
    parks the instance. Raises `DefinitionError`.

    Example:
        @refused(Charge)
        def no_money(self, refusal: Rejected) -> Iterator[Undo | Ended]:
            yield Undo()
            yield Ended(refusal.reason)
    """
    checked = _checked_commands("refused", commands)
    return lambda function: mark(function, "refused", route=checked)


def failed(*commands: type[Command]) -> Callable[[FunctionType], FunctionType]:
    """Mark a method that is called when one of these commands could not be decided, for good: the target's code raised,
    or nothing has its name. It may take the `RayfoldError`, and the command.

    Without commands it is for all that have no method of their own, and takes none. A failure that no method takes
    parks the instance. Raises `DefinitionError`.

    Example:
        @failed(Charge)
        def broken(self, error: RayfoldError) -> Undo:
            return Undo()
    """
    checked = _checked_commands("failed", commands)
    return lambda function: mark(function, "failed", route=checked)


def scheduled(
    _marked: None = None, /, *, every: timedelta | str | None = None, cron: str | None = None, zone: str = "UTC"
) -> Callable[[FunctionType], FunctionType]:
    """Mark a method that is called again and again, in an instance of its own, `schedule:NAME`. It may take the time
    that it was due at, as a `datetime`. Times that passed while nothing ran are made up for by one call.

    Args:
        every: A `timedelta`, or text like `"90s"`, `"15m"`, `"1h"`, `"1d"`: at the multiples of it since 1970, UTC.
        cron: Or five fields: minute, hour, day of month, month, day of week.
        zone: The time zone of `cron`, by its IANA name.

    Raises:
        DefinitionError: It is neither, or both, or cannot be read.

    Example:
        @scheduled(cron="0 3 * * *", zone="Europe/Berlin")
        def close_books(self) -> Send:
            return Send(Books, "main", Close())
    """
    if (marked := cast(Any, _marked)) is not None:
        what = f"it marks {getattr(marked, '__name__', shown(marked))} without parentheses"
        raise DefinitionError("@scheduled", what, 'write @scheduled(every="1h"), or cron= with five fields')
    text = schedule_text(every, cron, zone)
    return lambda function: mark(function, "scheduled", route=text)


def _evolve(process: Process, event: Stepped) -> None:
    """A step has happened. The version of its record is the next one."""
    process.progress = advanced(process.progress, body_of(event), process.version + 1)


def _check_body(cls: type[Process]) -> None:
    if "progress" in vars(cls) or "progress" in vars(cls).get("__annotations__", {}):
        raise DefinitionError(where(cls, "progress"), "the name is reserved by Rayfold", "give the field another name")


def _checked_commands(verb: str, commands: tuple[object, ...]) -> tuple[type[Command], ...]:
    for command in commands:
        if inspect.isfunction(command):
            what = f"it marks {command.__name__} without parentheses"
            raise DefinitionError(f"@{verb}", what, f"write @{verb}(Charge), or @{verb}() for all others")
        if not (isinstance(command, type) and issubclass(command, Command)):
            what = f"{command!r} is not a Command class"
            raise DefinitionError(f"@{verb}", what, f"write @{verb}(Charge), with the class of what was sent")
    return commands  # type: ignore[return-value]  # checked above


def _learn_events(cls: type[Process], name: str, returns: Any) -> None:
    """The events of its own that a method may yield. Raises `DefinitionError` for one that nothing evolves, and for
    `Rejected`: an input has happened."""
    if may_be_refused(returns):
        what = "it returns Rejected, and what has happened cannot be refused"
        raise DefinitionError(where(cls, name), what, "send a command, or yield Ended")
    cls.evolvers = cls.evolvers | evolved_by_base(cls, where(cls, name), returns)
    evolved_events(cls, where(cls, name), returns)


def _reactions(cls: type[Process]) -> dict[str, Reaction]:
    found: dict[str, Reaction] = {}
    for handler in handlers_of(cls, "react", Event, parameters_max=2):
        event, one = handler.message, handler.mark.route
        _learn_events(cls, handler.name, handler.returns)
        takes_recorded = handler.parameters > 1
        reaction = Reaction(handler.name, handler.function, event, takes_recorded, handler.mark.creates, one)
        found[event.message_name] = reaction
    return found


_RESULTS = {"accepted": ACCEPTED, "refused": REFUSED, "failed": FAILED}


def _outcome_methods(cls: type[Process]) -> dict[tuple[int, str], OutcomeMethod]:
    found: dict[tuple[int, str], OutcomeMethod] = {}
    for verb, result in _RESULTS.items():
        for method in methods_of(cls, verb):
            takes_command = _taken(cls, method)
            _learn_events(cls, method.name, method.returns)
            for command in method.mark.route or [None]:
                name = "" if command is None else command.message_name
                outcome_method = OutcomeMethod(method.name, method.function, command, takes_command)
                if (other := found.setdefault((result, name), outcome_method)) is not outcome_method:
                    what = f"@{verb} of {name or 'all other commands'} is already handled by {other.name}"
                    raise DefinitionError(where(cls, method.name), what, "keep one of the two methods")
    return found


def _taken(cls: type[Process], method: Method) -> tuple[bool, ...]:
    """For each parameter, whether it is the command that was sent; otherwise it is the error."""
    verb, commands = method.mark.verb, method.mark.route
    error = {"accepted": None, "refused": Rejected, "failed": RayfoldError}[verb]
    takes_command = []
    for annotation in method.parameters:
        parts = arguments_of_union(annotation)
        is_command = all(inspect.isclass(one) and issubclass(one, Command) for one in parts)
        fits = is_command and commands and all(issubclass(one, parts) for one in commands)
        if not fits and annotation is not error:
            wanted = [error.__name__] if error is not None else []
            wanted += ["the command that was sent"] if commands else []
            what = (
                f"a @{verb} method takes {', and '.join(wanted) or 'nothing'}, this one takes {described(annotation)}"
            )
            raise DefinitionError(where(cls, method.name), what, "annotate its parameters so")
        takes_command.append(is_command)
    return tuple(takes_command)


def _schedules(cls: type[Process]) -> dict[str, Schedule]:
    found: dict[str, Schedule] = {}
    for method in methods_of(cls, "scheduled"):
        if method.parameters not in ((), (datetime,)):
            what = "a @scheduled method takes self, or self and a datetime, this one takes other parameters"
            raise DefinitionError(where(cls, method.name), what, "take them away")
        if method.name in cls.wakers:
            what = f"a timer of {cls.wakers[method.name].name} has its name"
            raise DefinitionError(where(cls, method.name), what, "give one of the two another name")
        _learn_events(cls, method.name, method.returns)
        found[method.name] = Schedule(method.name, method.function, method.mark.route, bool(method.parameters))
    return found
