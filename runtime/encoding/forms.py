"""Stored forms: what stands for a date, a decimal or a set in msgpack, which knows none of them.

Used by the codec for messages and by saved state, steps [1], [4] and [7].

Rule kept here: a form is a plain value that pydantic's validation turns back into an equal one, and it is the same in
every process. Text is used wherever there is a standard one, so that a stored event can be read without Python.

What text cannot keep: the name of a time zone (its offset is kept) and the `fold` of an ambiguous local time.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import msgpack

__all__ = ["FORMS", "NESTED_MAX", "PACKER_BYTES", "stored_form", "unpack_nested"]

PACKER_BYTES = 1024
"""The first buffer of a packer that is used for one message; it grows. with msgpack's default of 256 KiB making and
using one took 0.50 us, with this 0.32 us."""


NESTED_MAX = 128
"""Extension values within one another. Each level takes 45 KB of the thread's stack, which has 8 MB: with some 180 of
them the process ends (SIGSEGV)."""


_depth: Final[ContextVar[int]] = ContextVar("depth", default=0)
"""Of what is being unpacked by this thread."""


def unpack_nested(data: bytes, from_form: Callable[[int, bytes], Any], **options: Any) -> Any:
    """`msgpack.unpackb` with this `ext_hook`, for bytes in which extension values may hold others: the hook calls this
    for what one holds. Raises `ValueError` for more than `NESTED_MAX` in one another, and what msgpack raises."""
    depth = _depth.get()
    if depth > NESTED_MAX:
        raise ValueError(f"values are nested more than {NESTED_MAX} deep")
    before = _depth.set(depth + 1)
    try:
        return msgpack.unpackb(data, ext_hook=from_form, strict_map_key=False, **options)
    finally:
        _depth.reset(before)


def stored_form(value: Any) -> Any:
    """A value that msgpack does not know, as one that it does and that validation turns back.
    Raises `TypeError`, or `OverflowError` for an int beyond 64 bits.
    """
    make = FORMS.get(type(value))
    if make is not None:
        return make(value)
    for kind, form in _FORMS_OF_SUBCLASSES:
        if isinstance(value, kind):
            return form(value)
    if isinstance(value, int):
        raise OverflowError("it does not fit 64 bits")
    raise TypeError(f"{type(value).__name__} cannot be stored")


def _duration(value: timedelta) -> str:
    """As ISO 8601, exact to the microsecond, which a float of seconds is not."""
    sign, size = ("-", -value) if value < timedelta(0) else ("", value)
    return f"{sign}P{size.days}DT{size.seconds}.{size.microseconds:06d}S"


def _sorted_items(value: AbstractSet[Any]) -> list[Any]:
    """The items of a set in the order of their packed bytes: the same in every process, whatever its hash seed."""
    if all(type(item) is str for item in value):  # most sets, and ten times as fast
        return sorted(value)
    return sorted(value, key=_sort_key) if len(value) > 1 else [*value]


def _sort_key(item: Any) -> bytes:
    packed: bytes = msgpack.Packer(default=stored_form, buf_size=PACKER_BYTES).pack(_formed(item))
    return packed


def _formed(item: Any) -> Any:
    """An item of a set with the sets in it as sorted lists already: were they left to the packer, each level of sets
    in sets would take twice the time of the one inside it."""
    if isinstance(item, AbstractSet):
        return (
            sorted((_formed(one) for one in item), key=_sort_key) if len(item) > 1 else [_formed(one) for one in item]
        )
    return tuple(map(_formed, item)) if type(item) is tuple else item


def _enum_value(value: Enum) -> Any:
    return value.value


FORMS: dict[type, Callable[[Any], Any]] = {
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _duration,
    Decimal: str,
    UUID: str,
    set: _sorted_items,
    frozenset: _sorted_items,
    **dict.fromkeys((IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network), str),
}

_FORMS_OF_SUBCLASSES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (Enum, _enum_value),
    (PurePath, str),
    (datetime, datetime.isoformat),
    (date, date.isoformat),
    (AbstractSet, _sorted_items),
)
