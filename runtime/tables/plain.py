"""Plain values: a field, an event or what is stored of one in a form that JSON has.

Beside the write path, for exports and for fields that no Arrow type is made for.

Rules kept here: what has a stored form (`encoding/forms.py`) has it here too, as text; bytes are in hexadecimal, keys
are text, and floats that JSON lacks are the texts `NaN`, `Infinity` and `-Infinity`. Equal values give equal JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel

from ..encoding.forms import stored_form

__all__ = ["encode_plain", "fields_of", "json_text", "plain"]

_PLAIN: Final = frozenset((str, int, bool, type(None)))

_CLASSES: Final = 1_024
"""Whose fields are remembered: far more than an application has."""

encode_plain: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""A plain value as one line of JSON. Kept: `json.dumps` makes an encoder for each value."""


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else json.dumps(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in fields_of(type(value))}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key if type(key) is str else _key(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | deque):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    for known in (str, int, float):
        if isinstance(value, known):
            return plain(known(value))
    try:
        return plain(stored_form(value))
    except (TypeError, ValueError, OverflowError):
        return str(value)


def json_text(value: Any) -> str:
    """The value as one line of JSON."""
    return encode_plain(plain(value))


@lru_cache(_CLASSES)
def fields_of(cls: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a message or model that are stored."""
    return tuple(name for name, field in cls.model_fields.items() if not field.exclude)


def _key(key: Any) -> str:
    made = plain(key)
    return made if isinstance(made, str) else json.dumps(made)
