"""Outcome: what one command is told, and how outcomes cross from an actor back to the client.

Between steps [5] and [1]: the write loop makes them, the router hands them to the callers.

Expected outcomes travel as values, because raising inside an actor method costs twice as much as returning. They
travel in msgpack: nothing an actor answers to a command is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack

from .errors import RayfoldError, Rejected, from_wire, to_wire
from .receipt import Receipt

__all__ = ["Answered", "Moved", "Outcome", "decode_outcomes", "encode_outcomes"]

Outcome = Receipt | RayfoldError
"""A receipt, or the error that says why there is none."""


class Moved(NamedTuple):
    """Not an outcome yet: the aggregate lives elsewhere now, ask there. Nothing has been decided here."""

    actor: str
    """The name of its own actor; empty for "back in its partition"."""


Answered = Receipt | RayfoldError | Moved
"""What an actor answers for one command; the router resolves `Moved` by itself."""

_RECEIPT: Final = 0
_ERROR: Final = 1
_MOVED: Final = 2


def encode_outcomes(outcomes: Sequence[Answered]) -> bytes:
    """The outcomes as one block of bytes, in order. Never raises: a fact that msgpack cannot carry becomes text."""
    return b"".join(_pack(outcome) for outcome in outcomes)


def decode_outcomes(blob: bytes, commands: Sequence[Any]) -> list[Answered]:
    """The outcomes for `commands` (each with `stream` and `command_id`), in order."""
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=max(len(blob), 1))
    unpacker.feed(blob)
    answered: list[Answered] = []
    for command, (kind, *facts) in zip(commands, unpacker, strict=True):
        if kind == _RECEIPT:
            partition, position, version, repeated = facts
            answered.append(Receipt(command.stream, partition, position, version, command.command_id, repeated))
        elif kind == _ERROR:
            answered.append(from_wire(facts))
        else:
            answered.append(Moved(*facts))
    return answered


def _pack(outcome: Answered) -> bytes:
    packed: bytes
    if isinstance(outcome, Receipt):
        packed = msgpack.packb((_RECEIPT, outcome.partition, outcome.position, outcome.version, outcome.repeated))
    elif isinstance(outcome, Moved):
        packed = msgpack.packb((_MOVED, outcome.actor))
    else:
        try:
            packed = msgpack.packb((_ERROR, *to_wire(outcome)), default=str)
        except (ValueError, OverflowError, TypeError, RecursionError):
            packed = msgpack.packb((_ERROR, *to_wire(_as_text(outcome))))
    return packed


def _as_text(error: RayfoldError) -> RayfoldError:
    """The same error with facts that any codec can carry: an integer beyond 64 bits, say, becomes text."""
    if isinstance(error, Rejected):
        facts = {_text(str(name)): _text(repr(value)) for name, value in error.facts.items()}
        return Rejected.told(_text(str(error.reason)), facts, error.stream, error.command)
    return type(error)(*(arg if isinstance(arg, int) and abs(arg) < 1 << 63 else _text(str(arg)) for arg in error.args))


def _text(text: str) -> str:
    return text[:500].encode("utf-8", "backslashreplace").decode()
