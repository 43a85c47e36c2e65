"""The codec: messages as msgpack maps of their fields, and back through validation.

Used at step [1] of the write path to pack a command, at [4] to unpack it and to pack its events, and at [7] to unpack
them. State is packed in `saved_state.py`, whose functions this module hands on.

Rules kept here: nothing is ever unpickled; sizes are bounded before anything is decoded; what is packed comes back
equal; equal messages pack to equal bytes, in any process (they are hashed), a dict counting as equal only with its
items in the same order.

Why three ways of packing: a class whose fields are all plain scalars is packed straight from its `__dict__` by one
packer kept for it; one that also has dates, decimals, enums or containers needs
a hook for them; only one with nested models or serializers of its own goes through pydantic's `model_dump`.

What cannot come back as it was: a list in a field annotated `Sequence` or `Any` comes back as a tuple, because there
the annotation does not say which, and a message holds nothing that can change if that can be helped.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import cached_property
from itertools import chain
from typing import Any, Final, TypeVar

import annotated_types
import msgpack
from pydantic import AfterValidator, AllowInfNan, BaseModel, BeforeValidator, Strict, StringConstraints, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from .declaration import arguments_of_union
from .errors import InvalidMessage
from .forms import FORMS, PACKER_BYTES, stored_form
from .messages import Message, Payload
from .saved_state import decode_state, encode_state, state_fingerprint

__all__ = [
    "MESSAGE_BYTES_MAX",
    "decode_message",
    "decode_payload",
    "decode_state",
    "encode_message",
    "encode_state",
    "problems_of",
    "state_fingerprint",
    "stored_form",
    "validated",
]

MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""One encoded message. A log moves messages whole through queues that are bounded in items; large things belong in a
file or an object store, with their address in the event."""

ITEMS_MAX: Final = 131_072
"""Items in one list or map of a message. With the bound on bytes it keeps the decoded size under about 75 MB, where
16 MB of empty maps would decode to 1.2 GB."""

DEPTH_MAX: Final = 64
"""Levels of nesting in one message, far under what makes Python's own recursion fail."""

_SCALARS: Final = 1
_PLAIN: Final = 2
_DUMPED: Final = 3

MessageType = TypeVar("MessageType", bound=Message)

_scalar_packer = msgpack.Packer()
"""Kept because making one costs twice what packing does. It calls no Python, so no other thread can come between."""


def encode_message(message: Message) -> bytes:
    """The message as a msgpack map of its fields. Raises `InvalidMessage`, naming the field, for what cannot be."""
    cls = type(message)
    try:
        if cls.packing == _SCALARS:
            packed: bytes = _scalar_packer.pack(message.__dict__)
        else:
            packed = _pack_other(cls, message)
    except (TypeError, ValueError, OverflowError, PydanticSerializationError) as error:
        raise _unencodable(message, error) from error
    if len(packed) > MESSAGE_BYTES_MAX:
        raise _too_big(cls.message_name, len(packed))
    return packed


def decode_payload(data: bytes, name: str = "message") -> Payload:
    """The fields of a packed message as plain values, lists as tuples. Bounded; raises `InvalidMessage`."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise _too_big(name, len(data))
    try:
        payload = msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=False,
            max_str_len=MESSAGE_BYTES_MAX,
            max_bin_len=MESSAGE_BYTES_MAX,
            max_array_len=ITEMS_MAX,
            max_map_len=ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidMessage(name, f"its bytes are no message: {str(error) or type(error).__name__}") from error
    if type(payload) is not dict:
        raise InvalidMessage(name, f"its bytes hold a {type(payload).__name__}, not a map of fields")
    if _may_be_deep(data) and _deeper_than(payload, DEPTH_MAX):
        raise InvalidMessage(name, f"it is nested over {DEPTH_MAX} levels deep")
    return payload


def decode_message(cls: type[MessageType], data: bytes) -> MessageType:
    """The message that `encode_message` packed. Raises `InvalidMessage`: which field, what is wrong, what would be
    right."""
    return validated(cls, decode_payload(data, cls.message_name))


def validated(cls: type[MessageType], payload: Mapping[Any, Any]) -> MessageType:
    """A message of these field values. Raises `InvalidMessage` as `decode_message` does."""
    try:
        # by_name, because fields are stored under their names whatever aliases the class has for its callers.
        return cls.__pydantic_validator__.validate_python(payload, by_alias=False, by_name=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        what, remedy = problems_of(cls, error)
        raise InvalidMessage(cls.message_name, what, remedy) from None
    except RecursionError:
        raise InvalidMessage(cls.message_name, "it is nested too deep") from None


def problems_of(cls: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """The first three problems as one line, and what would be right where a field's name is wrong or missing."""
    problems = error.errors(include_url=False, include_context=False)
    lines, wrong_names = [], False
    for problem in problems[:3]:
        field = ".".join(str(part) for part in problem["loc"]) or "it"
        if problem["type"] == "missing":
            lines.append(f"{field} is missing")
        elif problem["type"] == "extra_forbidden":
            wrong_names = True
            close = difflib.get_close_matches(str(problem["loc"][-1]), cls.model_fields, 1)
            lines.append(f"{field} is no field of it" + (f", did you mean {close[0]}?" if close else ""))
        else:
            lines.append(f"{field} is {_shown(problem['input'])}: {_lowered(problem['msg'])}")
    if len(problems) > 3:
        lines.append(f"and {len(problems) - 3} more")
    return ", ".join(lines), f"its fields are {', '.join(cls.model_fields) or 'none'}" if wrong_names else ""


def _pack_other(cls: type[Message], message: Message) -> bytes:
    if cls.packing == 0:
        cls.packing = _packing_of(cls)
        return encode_message(message)
    fields = message.__dict__ if cls.packing == _PLAIN else _dumped(message)
    # A packer of its own: the hook runs Python, so another thread may pack in between.
    packed: bytes = msgpack.Packer(default=stored_form, buf_size=PACKER_BYTES).pack(fields)
    if _may_be_deep(packed) and _deeper_than(fields, DEPTH_MAX):
        raise ValueError(f"it is nested over {DEPTH_MAX} levels deep")
    return packed


def _dumped(message: Message, only: set[str] | None = None) -> dict[str, Any]:
    return message.model_dump(include=only, by_alias=False, round_trip=True, warnings="error")


def _packing_of(cls: type[Message]) -> int:
    """How messages of this class are packed, from its fields."""
    decorators = cls.__pydantic_decorators__
    own_serializers = decorators.field_serializers or decorators.model_serializers
    caches = any(isinstance(value, cached_property) for base in cls.__mro__ for value in vars(base).values())
    if own_serializers or caches:  # a cached_property keeps its value in the __dict__ that would be packed
        return _DUMPED
    ways = [_way_of_field(field) for field in cls.model_fields.values()]
    return max(ways, default=_SCALARS)


_VALIDATING_ONLY = (AfterValidator, AllowInfNan, BeforeValidator, Strict, StringConstraints)
_LIMITS = (annotated_types.BaseMetadata, annotated_types.GroupedMetadata)


def _way_of_field(field: FieldInfo) -> int:
    for item in field.metadata:
        limits_only = isinstance(item, _LIMITS) and not hasattr(item, "__get_pydantic_core_schema__")
        if not limits_only and not isinstance(item, _VALIDATING_ONLY):
            return _DUMPED  # it may carry a serializer
    return _way_of(field.annotation)


def _way_of(annotation: Any) -> int:
    parts = arguments_of_union(annotation)
    if len(parts) > 1:
        return max(map(_way_of, parts))
    (part,) = parts
    if part is not annotation:
        return _DUMPED  # an Annotated inside may carry a serializer
    if part in (str, int, float, bool, bytes, None, type(None)):
        return _SCALARS
    origin, arguments = typing.get_origin(part), typing.get_args(part)
    if origin is typing.Literal:
        return max(_SCALARS if type(value) in (str, int, bool, bytes, type(None)) else _PLAIN for value in arguments)
    if part in FORMS or (isinstance(part, type) and issubclass(part, Enum)):
        return _PLAIN
    if origin in _CONTAINERS:
        return max((_PLAIN, *(_way_of(argument) for argument in arguments if argument not in (Ellipsis, ()))))
    return _DUMPED


_CONTAINERS = (list, tuple, dict, set, frozenset, Sequence, Mapping, AbstractSet)


def _unencodable(message: Message, error: Exception) -> InvalidMessage:
    """Which field it is: each is packed alone, until one fails."""
    cls = type(message)
    for name in cls.model_fields:
        value = message.__dict__.get(name)
        try:
            msgpack.Packer(default=stored_form, buf_size=PACKER_BYTES).pack(
                value if cls.packing != _DUMPED else _dumped(message, {name})
            )
        except (TypeError, ValueError, OverflowError, PydanticSerializationError) as cause:
            return InvalidMessage(
                cls.message_name, f"{name} is {_shown(value)}: {_reason(value, cause)}", _remedy(value)
            )
    return InvalidMessage(cls.message_name, str(error))


def _reason(value: object, cause: Exception) -> str:
    if isinstance(value, int) or isinstance(cause, OverflowError):
        return "it does not fit 64 bits"
    if isinstance(value, str):
        return "it is not well-formed Unicode"
    return str(cause).splitlines()[0]


def _remedy(value: object) -> str:
    return "store it as text" if isinstance(value, int) else ""


def _too_big(name: str, size_bytes: int) -> InvalidMessage:
    return InvalidMessage(
        name,
        f"it has {size_bytes:,} bytes, over {MESSAGE_BYTES_MAX:,}",
        "keep large things elsewhere and send their address",
    )


def _may_be_deep(data: bytes) -> bool:
    """False for nearly every message, at once: each level takes a byte that opens a map or list, and ASCII has none."""
    return len(data) > DEPTH_MAX and len(data.translate(None, _OPENS_NOTHING)) > DEPTH_MAX


_OPENS_NOTHING = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))


def _deeper_than(value: object, levels: int) -> bool:
    """True when containers are nested deeper than `levels`; looks level by level, never recursing."""
    layer: list[Any] = [value]
    for _ in range(levels):
        layer = [
            item
            for container in layer
            for item in (chain(container, container.values()) if isinstance(container, dict) else container)
            if isinstance(item, dict | tuple | list)
        ]
        if not layer:
            return False
    return True


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = ascii(value) if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # ValueError: an int of over 4,300 digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
