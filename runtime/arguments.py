"""Arguments: checks of what callers hand in, and the errors for what cannot be.

Beside all steps: whatever is public calls these before it does anything.

Rule kept here: a wrong argument is a `CallerError` that names the argument, what was given and what would be right;
never a traceback from further inside, and never taken for something else (`True` for 1, a model for the list of its
fields).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from .errors import CallerError, InvalidMessage, UnknownName
from .printable import shown

__all__ = [
    "checked_callable",
    "checked_class",
    "checked_path",
    "checked_timeout",
    "listed",
    "not_a_message",
    "read_here",
    "several",
    "unregistered",
    "unregistered_message",
]

T = TypeVar("T")

_KINDS: Final = {
    "Command": ("a Command", "commands are for execute(aggregate, id, command)"),
    "Query": ("a Query", "queries are for ask(projection, query)"),
    "Event": ("an Event", "events are returned by the @decide method of a command"),
}
"""Base class of a message -> with its article, and what it is for."""

SEVERAL_MAX: Final = 100_000
"""Items of an argument that is read whole before anything is done: some milliseconds. What has more, or no end, would
hold everything else that the program has under way."""

_STORED_NAMES = ("aggregate_type", "projection_name", "message_name")


def checked_timeout(timeout_s: object) -> float:
    """A number of seconds. Raises `CallerError` for anything else; infinity is one."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise CallerError(f"timeout_s is {shown(timeout_s)}; give a positive number of seconds")
    try:
        return float(timeout_s)
    except OverflowError:
        return math.inf


def checked_class(argument: str, given: object, base: type[T]) -> type[T]:
    """A class derived from `base`. Raises `InvalidMessage` for what is none."""
    if not isinstance(given, type) or not issubclass(given, base) or given is base:
        text = given.__name__ if isinstance(given, type) else shown(given)
        raise InvalidMessage(argument, f"{text} is not a subclass of {base.__name__}", "give the class itself")
    return given


def checked_path(of: str, path: object) -> Path:
    """The directory of a store, which the call or class `of` was given. Raises `InvalidMessage` for what cannot be one;
    for an empty text too, which would be the working directory."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidMessage(of, f"path is {shown(path)}", "give the directory of the store")
    return Path(text).absolute()


def checked_callable(argument: str, given: Callable[..., Any] | None) -> None:
    """Raises `InvalidMessage` for what is neither None nor a function."""
    if given is not None and not callable(given):
        raise InvalidMessage(argument, f"is {shown(given)}", "give a function")


def listed(argument: str, given: T, one: str, never: tuple[type, ...] = (), *, or_one: bool = False) -> T:
    """What was given, if it is a collection of `one` ("an Envelope"): no text, and none of `never`, which Python would
    iterate over too. `or_one`: the argument takes one alone as well, which the caller has seen to. Raises
    `InvalidMessage`."""
    if isinstance(given, (str, bytes, type, *never)) or not (hasattr(given, "__iter__") or hasattr(given, "__aiter__")):
        remedy = f"give {one}, or a list of them" if or_one else f"give a list, each item of it {one}"
        raise InvalidMessage(argument, f"{shown(given)} is not a list", remedy)
    return given


def several(argument: str, given: Iterable[T]) -> list[T]:
    """Its items. Raises `InvalidMessage` for over 100,000, and so for what has no end."""
    found = list(islice(given, SEVERAL_MAX + 1))
    if len(found) > SEVERAL_MAX:
        raise InvalidMessage(argument, f"has over {SEVERAL_MAX:,} items", "give fewer, in a list")
    return found


def read_here(given: T) -> T:
    """An argument for several, of which an iterator has been read: on the thread that gives it, where it may be slow,
    or call the runtime, and not on the one that does everything. One item more than `several` takes is kept."""
    taken: Any = list(islice(given, SEVERAL_MAX + 1)) if isinstance(given, Iterator) else given
    found: T = taken
    return found


def unregistered(kind: str, asked: object, known: Mapping[str, type]) -> CallerError:
    """The error for a class that is not one of those that are known by these names."""
    if not isinstance(asked, type):
        return InvalidMessage(kind, f"{shown(asked)} is not a class", "give the class itself")
    name = next((found for one in _STORED_NAMES if (found := getattr(asked, one, ""))), asked.__name__)
    other, differs = known.get(name), ""
    if other is not None and (here := _dotted(asked)) != (there := _dotted(other)):
        differs = f"it is {here}, and {there} was registered"
    return UnknownName(kind, name, list(known), differs)


def unregistered_message(kind: str, asked: object, known: Iterable[type[Any]], base: type) -> CallerError:
    """The error for a message whose class is not one of those that are known; `kind` as in `command of Account`."""
    if not isinstance(asked, base):
        return not_a_message(asked, base)
    return unregistered(kind, type(asked), {cls.message_name: cls for cls in known})


def not_a_message(asked: object, base: type) -> InvalidMessage:
    """The error for what is not an instance of `base`, which is Command or Query."""
    what = base.__name__
    if isinstance(asked, type):
        return InvalidMessage(asked.__name__, f"is a class and no {what}", f"make one of it: {asked.__name__}(...)")
    asked_as = type(asked)
    for cls in asked_as.__mro__:
        if cls.__module__ == base.__module__ and (found := _KINDS.get(cls.__name__)):
            known, use = found
            return InvalidMessage(asked_as.__name__, f"is not a {what}: it is {known}", use)
    if asked_as.__module__ == "builtins":
        return InvalidMessage(asked_as.__name__, f"is not a {what}", f"give an instance of a {what} class")
    of = "Query[Answer]" if what == "Query" else what
    return InvalidMessage(asked_as.__name__, f"is not a {what}", f"declare it as class X({of})")


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
