"""Content: the part of a command that distinguishes a repeat from another command under the same id.

Step [1] of the write path makes it, and step [4] hashes it with the secret of the log (`PackedCommand.digest`).

Rule kept here: content is what the sender has set, and nothing else. So it is the same whatever release sends it: one
whose class has gained a field with a default, has another default, or names its fields in another order. What a
`default_factory` has made (a time, an id) is not part of it either.

Fields that were set are those of `model_fields_set`, in nested models too. A dataclass and a named tuple do not record
which of their fields were set: there, a field that equals its default counts as not set.

Equal content is equal bytes: msgpack, with the names of fields and the keys of maps in order, and the items of sets.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

import msgpack
from pydantic import BaseModel

from ..domain.messages import Command
from .codec import MESSAGE_BYTES_MAX, comes_back_by_type, decode_payload, encode_checked, encode_message
from .forms import PACKER_BYTES, stored_form

__all__ = ["RAW_BYTES_MAX", "condensed", "fields_in", "old_payloads", "pack_with_content"]

RAW_BYTES_MAX: Final = 1024
"""Content up to here travels as it is, and more as a hash: no command is sent twice."""

_RAW: Final = b"="
_HASHED: Final = b"#"

_SCALARS: Final = 1
"""`Message.packing` of a class whose fields are plain scalars."""

_pack_fields: Final = msgpack.Packer(autoreset=True).pack
"""Calls no Python while it packs scalars, so threads may share it."""

CLASSES_MAX: Final = 1024
"""Command classes whose order of fields is remembered."""


def pack_with_content(command: Command) -> tuple[bytes, bytes]:
    """The payload of a command, which has all its fields, and its content as it travels; empty where the payload is it.

    Raises `InvalidMessage` as `encode_checked` does.
    """
    cls, fields, was_set = type(command), command.__dict__, command.__pydantic_fields_set__
    known = cls._rayfold_reading.comes_back(fields)
    if known and cls.packing == _SCALARS and len(was_set) == len(fields):
        return _ordered(command, cls, fields), b""
    if not known:
        payload, _ = encode_checked(command)
        if not comes_back_by_type(command):
            return payload, condensed(_pack_canonical(command))
    if cls.packing == _SCALARS and len(was_set) == len(fields):
        return _ordered(command, cls, fields), b""
    payload = encode_message(command)  # first: it has the words for a field that cannot be packed
    if cls.packing == _SCALARS:
        content = _pack_fields({name: fields[name] for name in sorted(was_set)})
    else:
        content = _pack_canonical(command)
    return payload, condensed(content)


def condensed(content: bytes) -> bytes:
    """The content as it travels: with a sign for what it is, and hashed if it is long."""
    if len(content) <= RAW_BYTES_MAX:
        return _RAW + content
    return _HASHED + hashlib.blake2b(content, digest_size=32).digest()


def fields_in(content: bytes) -> frozenset[str] | None:
    """The names of the fields in content that has travelled; None where it was hashed."""
    if content[:1] != _RAW:
        return None
    try:
        fields = msgpack.unpackb(content[1:], strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return frozenset(fields) if isinstance(fields, dict) else None


def old_payloads(cls: type[Command], payload: bytes, content: bytes) -> Iterator[bytes]:
    """The payloads that a release before format 3 may have made of this command: all fields in the order of the class,
    and without those at the end that were not set, which an older class may not have had. Of a long command it is not
    known which were set: there, those that have their default count as not set."""
    fields = decode_payload(payload, cls.message_name)
    in_order = {name: fields[name] for name in cls.model_fields if name in fields}
    was_set = fields_in(content) if content else frozenset(fields)
    yield _pack(in_order)
    for name in reversed(list(in_order)):
        if not _is_default(cls, name, in_order[name]) if was_set is None else name in was_set:
            return
        del in_order[name]
        yield _pack(in_order)


def _is_default(cls: type[Command], name: str, value: Any) -> bool:
    """Whether a decoded field has the default that is stated in the class."""
    field = cls.model_fields[name]
    if field.is_required() or field.default_factory is not None:
        return False
    try:
        return _pack(field.default) == _pack(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _ordered(command: Command, cls: type[Command], fields: dict[str, Any]) -> bytes:
    """The payload with its fields in order of their names: then it is the content as well."""
    in_order = _order_of(cls)
    try:
        payload: bytes = _pack_fields(fields if in_order is None else in_order(fields))
    except (TypeError, ValueError, OverflowError, KeyError):
        return encode_message(command)  # which raises, and names the field
    return payload if len(payload) <= MESSAGE_BYTES_MAX else encode_message(command)


@lru_cache(CLASSES_MAX)
def _order_of(cls: type[Command]) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """What puts the fields in order; None where the class has them in it."""
    declared = list(cls.model_fields)
    names = sorted(declared)
    if names == declared:
        return None
    take = itemgetter(*names)
    return lambda fields: dict(zip(names, take(fields), strict=True))


def _pack_canonical(command: Command) -> bytes:
    try:
        return _pack(_canonical(command))
    except (TypeError, ValueError, OverflowError):  # values that only a serializer of the class's own knows
        dumped = command.model_dump(by_alias=False, round_trip=True, exclude_unset=True, warnings=False)
        return _pack(_canonical(dumped))


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.Packer(default=stored_form, buf_size=PACKER_BYTES).pack(value)
    return packed


def _canonical(value: Any) -> Any:
    """The value as msgpack packs it to the same bytes whenever it is equal."""
    if isinstance(value, BaseModel):
        was_set = value.model_fields_set
        return {name: _canonical(field) for name, field in sorted(value.__dict__.items()) if name in was_set}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _without_defaults(value, {field.name: _default_of(field) for field in dataclasses.fields(value)})
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, Mapping):
        pairs = sorted((_pack(_canonical(key)), key, item) for key, item in _items(value))
        return {_hashable(_canonical(key)): _canonical(item) for _, key, item in pairs}
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)) is not None:
        return _without_defaults(value, dict.fromkeys(names, _NONE) | getattr(value, "_field_defaults", {}))
    if isinstance(value, list | tuple | deque):
        return [_canonical(item) for item in value]
    if isinstance(value, AbstractSet):
        return sorted(map(_canonical, value), key=_pack)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return ["int", str(value)]
    return value


class _Nothing:
    """What stands for a default that there is not: equal to nothing else."""


_NONE: Final = _Nothing()


def _items(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(value.items())


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return _NONE if field.default_factory is dataclasses.MISSING else field.default_factory()


def _without_defaults(value: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields of a value that does not record which of them were set, without those that equal their default."""
    fields = {name: getattr(value, name) for name in sorted(defaults) if hasattr(value, name)}
    return {
        name: _canonical(field)
        for name, field in fields.items()
        if type(field) is not type(defaults[name]) or field != defaults[name]
    }
