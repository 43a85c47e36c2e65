"""Wire: errors on their way between processes, as plain values that msgpack can carry, and back with their type.

Beside all steps: outcomes of commands ([2], [3]), and what actors answer instead of raising (an exception through Ray
takes twice as long, and one in a list of outcomes could not travel at all).

Facts of a `Rejected` go as one value of bytes, in which each keeps its type (see `facts.py`).

Rule kept here: nothing is unpickled. What arrives names one of the classes of `errors.py`, or is refused.
"""

from __future__ import annotations

from typing import Any

from ..errors import RayfoldError, Rejected
from .facts import pack_facts, unpack_facts

__all__ = ["from_wire", "to_wire"]


def to_wire(error: RayfoldError) -> list[Any]:
    """The error as `[class name, argument, ...]`, of plain values that msgpack can carry.

    A class that is derived outside `errors.py` goes as the one it derives from: the reader may not know it.
    """
    cls = next(base for base in type(error).__mro__ if base.__module__ == RayfoldError.__module__)
    arguments: tuple[Any, ...]
    if isinstance(error, Rejected):
        arguments = (error.reason, pack_facts(error.facts), error._stream, error.command)
    else:
        arguments = error.args
    return [cls.__name__, *arguments]


def from_wire(wire: list[Any] | tuple[Any, ...]) -> RayfoldError:
    """The error that `to_wire` packed, of its own type."""
    name, *arguments = wire
    cls = RayfoldError.by_name[name]
    if issubclass(cls, Rejected):
        reason, facts, stream, command = arguments
        return cls.with_facts(reason, unpack_facts(facts), stream, command)
    return cls(*arguments)
