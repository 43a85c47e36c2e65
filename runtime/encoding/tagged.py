"""Tagged values: plain values as bytes in which each carries its type.

Used for the facts of a refusal and for the second form of a message (`codec.py`), between steps [1] and [4].

Rules kept here: what is packed comes back equal, in type too; nothing of the user's is named, so nothing of it is ever
made; the numbers of the tags are stored and never used again for something else.

Why tags: msgpack has one kind of list and knows no date. With strict types it packs exactly `dict`, `list`, `str`,
`int`, `float`, `bool`, `bytes` and None by itself and leaves all else to a hook.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgpack

from .forms import PACKER_BYTES, stored_form, unpack_nested

__all__ = ["BY_TAG", "TAGS", "pack_tagged", "tagged", "unpack_tagged"]

TAGS: Final[tuple[tuple[int, type, Callable[[Any], Any], Callable[[Any], Any]], ...]] = (
    (1, tuple, list, tuple),
    (2, set, stored_form, set),
    (3, frozenset, stored_form, frozenset),
    (4, datetime, datetime.isoformat, datetime.fromisoformat),
    (5, date, date.isoformat, date.fromisoformat),
    (6, time, time.isoformat, time.fromisoformat),
    (7, timedelta, lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
    (8, Decimal, str, Decimal),
    (9, UUID, str, UUID),
    (10, bytearray, bytes, bytearray),
    (11, int, str, int),  # one beyond 64 bits: within them msgpack packs it itself
    (12, complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    (13, deque, lambda value: [value.maxlen, list(value)], lambda parts: deque(parts[1], parts[0])),
)
"""Number, type, what is packed under the number, and how that turns back."""

BY_TAG: Final = {code: from_form for code, _, _, from_form in TAGS}
_BY_TYPE: Final = {kind: (code, to_form) for code, kind, to_form, _ in TAGS}

_BASES: Final[tuple[Callable[[Any], Any], ...]] = (str, bytes, int, float, dict, list)


def tagged(value: Any) -> Any:
    """What the packer writes for a value that msgpack does not know: an instance of a subclass as one of its base, a
    member of an enum as its value. Raises `TypeError` for what no tag stands for."""
    tag = _BY_TYPE.get(type(value))
    if tag is not None:
        code, to_form = tag
        return msgpack.ExtType(code, pack_tagged(to_form(value)))
    if isinstance(value, Enum):
        return value.value
    for kind in _BASES:
        if isinstance(value, kind):  # type: ignore[arg-type]
            return kind(value)
    return stored_form(value)


def pack_tagged(value: Any, form: Callable[[Any], Any] = tagged) -> bytes:
    """A value as bytes that `unpack_tagged` turns into an equal one. Raises `TypeError`, `ValueError`,
    `OverflowError` or `RecursionError`."""
    packed: bytes = msgpack.Packer(default=form, strict_types=True, buf_size=PACKER_BYTES).pack(value)
    return packed


def unpack_tagged(data: bytes, items_max: int = -1) -> Any:
    """The value that `pack_tagged` packed, with up to `items_max` items in one list or map. Raises `ValueError`,
    `TypeError` or `ArithmeticError` for other bytes."""

    def untagged(code: int, inner: bytes) -> Any:
        if code not in BY_TAG:
            raise ValueError(f"no value is tagged {code}")
        return BY_TAG[code](unpack_tagged(inner, items_max))

    return unpack_nested(data, untagged, max_array_len=items_max, max_map_len=items_max)
