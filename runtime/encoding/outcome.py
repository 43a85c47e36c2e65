"""Outcome: the answer to one command, and how outcomes cross from an actor back to the client.

Between steps [5] and [1]: the write loop makes them, the router hands them to the callers.

Expected outcomes travel as values, because raising inside an actor method costs twice as much as returning. They
travel in msgpack: nothing an actor answers to a command is ever unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple

import msgpack

from ..errors import RayfoldError
from ..receipt import Receipt
from ..user_code import class_name, is_ctrl_c
from .error_codec import from_wire, to_wire
from .facts import FACTS_BYTES_MAX

__all__ = [
    "ERROR_BYTES_MAX",
    "Answered",
    "RetryAfter",
    "Redirect",
    "Outcome",
    "decode_answer",
    "decode_outcomes",
    "encode_answer",
    "encode_outcomes",
]

Outcome = Receipt | RayfoldError
"""A receipt, or the error in its place."""


class Redirect(NamedTuple):
    """Not an outcome yet: the aggregate is in another process now, which has to be asked. Nothing has been decided
    here."""

    actor: str
    """The name of its own actor; empty for "back in its partition"."""


class RetryAfter(NamedTuple):
    """Not an outcome yet: the aggregate is being loaded (`loading.py`), ask here again. Nothing has been decided."""

    pause_s: float
    """After so long."""


Answered = Receipt | RayfoldError | Redirect | RetryAfter
"""What an actor answers for one command; the router resolves `Redirect` and `RetryAfter` by itself."""

_pack_facts: Final = msgpack.Packer(autoreset=True).pack
"""Safe to share between threads: it runs no Python while it packs numbers. Half the time of `packb`."""

_new: Final = tuple.__new__
"""Makes a named tuple in half the time (0.2 us): the class's own `__new__` is a function in Python."""

_RECEIPT: Final = 0
_ERROR: Final = 1
_MOVED: Final = 2
_LATER: Final = 3

_BATCH_COST: Final = struct.Struct(">f")
"""The beginning of an answer, in seconds."""


ERROR_BYTES_MAX: Final = 64 * 1024
"""Limit of one error's facts: they are for people, and outcomes travel best under Ray's 100 KB inline."""

_TEXT_CHARS_MAX: Final = 500
"""The length of a fact that has to become text."""

_FACTS_MAX: Final = 100
"""Facts that are shown of an error that does not fit as it is."""


def encode_answer(outcomes: Sequence[Answered], batch_cost_s: float) -> bytes:
    """What an actor answers to a batch: the outcomes, and what a batch costs it however few commands it has."""
    return _BATCH_COST.pack(batch_cost_s) + encode_outcomes(outcomes)


def decode_answer(blob: bytes, commands: Sequence[Any], store_id: str = "") -> tuple[list[Answered], float]:
    """The outcomes for `commands`, as `decode_outcomes` has them, and what a batch costs, in seconds."""
    [batch_cost_s] = _BATCH_COST.unpack_from(blob)
    return decode_outcomes(blob[_BATCH_COST.size :], commands, store_id), batch_cost_s


def encode_outcomes(outcomes: Sequence[Answered]) -> bytes:
    """The outcomes as one block of bytes, in order. Never raises: a fact that msgpack cannot carry becomes text."""
    return b"".join(_pack(outcome) for outcome in outcomes)


def decode_outcomes(blob: bytes, commands: Sequence[Any], store_id: str = "") -> list[Answered]:
    """The outcomes for `commands` (each with `stream` and `command_id`), in order. `store_id`: for the receipts, which
    the actor sends without it."""
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=max(len(blob), 1))
    unpacker.feed(blob)
    answered: list[Answered] = []
    for command, packed in zip(commands, unpacker, strict=True):
        if packed[0] == _RECEIPT:
            _, partition, position, version, repeated, count = packed
            facts = (command.stream, partition, position, version, command.command_id, repeated, store_id, count, None)
            answered.append(_new(Receipt, facts))
        elif packed[0] == _ERROR:
            answered.append(from_wire([*packed[1:]]))
        elif packed[0] == _LATER:
            answered.append(RetryAfter(*packed[1:]))
        else:
            answered.append(Redirect(*packed[1:]))
    return answered


def _pack(outcome: Answered) -> bytes:
    packed: bytes
    if isinstance(outcome, Receipt):
        _, partition, position, version, _, repeated, _, count, _ = outcome
        packed = _pack_facts((_RECEIPT, partition, position, version, repeated, count))
    elif isinstance(outcome, Redirect):
        packed = msgpack.packb((_MOVED, outcome.actor))
    elif isinstance(outcome, RetryAfter):
        packed = msgpack.packb((_LATER, outcome.pause_s))
    else:
        packed = _pack_error(to_wire(outcome))
    return packed


def _pack_error(wire: list[Any]) -> bytes:
    packed = b""
    with suppress(Exception):  # `str` of a fact is the user's code and may raise anything
        packed = msgpack.packb((_ERROR, *wire), default=str)
    if not 0 < len(packed) <= ERROR_BYTES_MAX:
        packed = msgpack.packb((_ERROR, *map(_as_text, wire)))
    return packed


def _as_text(argument: Any) -> Any:
    """An argument that any codec can carry, bounded, with each fact by itself: one that is odd spoils no other."""
    if isinstance(argument, dict):
        facts = {_text(name): _plain(value) for name, value in islice(argument.items(), _FACTS_MAX)}
        if len(argument) > _FACTS_MAX:
            facts["shown"] = f"{_FACTS_MAX} of {len(argument):,} facts"
        return facts
    if isinstance(argument, list):
        return [_text(item) for item in argument[:_FACTS_MAX]]
    return _plain(argument)


def _plain(fact: Any) -> Any:
    """A fact as it is if any codec can carry it; an integer over 64 bits, or a container, as text."""
    if type(fact) is bytes and len(fact) <= FACTS_BYTES_MAX:
        return fact  # the facts of a refusal, which are bounded already
    if fact is None or isinstance(fact, bool | float):
        return fact
    if isinstance(fact, int) and -(1 << 63) <= fact < 1 << 63:
        return int(fact)
    return _text(fact)


def _text(fact: Any) -> str:
    try:
        text = fact if isinstance(fact, str) else repr(fact)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        text = f"a {class_name(fact)} whose repr raises {class_name(error)}"
    return text[:_TEXT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
