"""The codec: messages as msgpack maps of their fields, and back through validation.

Used at step [1] of the write path to pack a command, at [4] to unpack it and to pack its events, and at [7] to unpack
them. State is packed in `saved_state.py`, whose functions this module hands on.

Rules kept here: nothing is ever unpickled; sizes are bounded before anything is decoded; equal messages pack to equal
bytes, in any process (they are hashed), a dict counting as equal only with its items in the same order.

What was acknowledged can be read again: `encode_checked` decodes what it has packed with the one decoder that all
readers use, under the one set of limits, and compares, in type too. A message that would come back as something else is
`InvalidMessage` before it is sent or stored, and names the field. What is done with the message afterwards is done with
the decoded one, since that is what all readers see. A class all of whose fields show by the type of their value that
they come back (numbers, text, dates without time, UUIDs, decimals, enums) is packed and not decoded: 0.4 us.

Why three ways of packing: a class whose fields are all plain scalars is packed straight from its `__dict__` by one
packer kept for it; one that also has dates, decimals, enums or containers needs
a hook for them; only one with nested models or serializers of its own goes through pydantic's `model_dump`.

Why there is a second form: msgpack has one kind of list, and text stands for dates and decimals, so that what is
annotated `Any`, `Sequence` or `str | Decimal` cannot come back by its annotation alone. Such a message, and only such a
one, is packed as one extension value of code 20, with a map in it where each value carries its type, in the tags of
`tagged.py`.

What does not survive: the name of a time zone (its offset does), `fold`, and which of its fields a maker has set.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import cached_property
from itertools import chain
from typing import Any, Final, TypeVar
from uuid import UUID

import annotated_types
import msgpack
from pydantic import AfterValidator, AllowInfNan, BaseModel, BeforeValidator, Strict, StringConstraints, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from ..domain.declaration import arguments_of_union
from ..domain.messages import Event, Message, Payload
from ..domain.reading import Reading, lenient_validator, makes_itself, rules_of
from ..errors import HandlerFailed, InvalidMessage
from ..user_code import class_name, is_ctrl_c
from .forms import FORMS, PACKER_BYTES, stored_form
from .sameness import Difference, difference
from .saved_state import decode_state, encode_state, state_fingerprint
from .tagged import pack_tagged, unpack_tagged

__all__ = [
    "MESSAGE_BYTES_MAX",
    "SMALL_BYTES",
    "check_limits",
    "comes_back_by_type",
    "decode_message",
    "decode_payload",
    "decode_state",
    "encode_checked",
    "encode_message",
    "encode_state",
    "problems_of",
    "state_fingerprint",
    "stored_form",
    "validated",
    "validator_of",
]

MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""One encoded message. A log moves messages whole through queues that are bounded in items; large things belong in a
file or an object store, with their address in the event."""

ITEMS_MAX: Final = 131_072
"""Items in one list or map of a message. With the bound on bytes it keeps the decoded size under about 75 MB, where
16 MB of empty maps would decode to 1.2 GB."""

SMALL_BYTES: Final = 64
"""A payload of so few bytes cannot be nested deeper, or hold more, than the limits allow: the loop over a page of
records (`event_applier.py`) unpacks it in line."""

DEPTH_MAX: Final = 64
"""Levels of nesting in one message, far under what makes Python's own recursion fail."""

_EXACT: Final = 20
"""The code of the extension value in which each value of a message carries its type."""

_KNOWN_MAX: Final = 256
"""Combinations of types that are kept for one class: two of each of eight optional fields."""

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


def _as_it_is(error: InvalidMessage) -> Exception:
    return error


def encode_checked(
    message: MessageType, otherwise: Callable[[InvalidMessage], Exception] = _as_it_is
) -> tuple[bytes, MessageType]:
    """The message as `encode_message` packs it, and as readers will see it: an equal one, in type too, which shares
    nothing that can change with the one that was given.

    Raises `InvalidMessage` for what `encode_message` refuses, and for what would come back as something else what
    `otherwise` makes of the `InvalidMessage` for it.
    """
    fields, reading = message.__dict__, message._rayfold_reading
    if reading.comes_back(fields) and len(message.__pydantic_fields_set__) == len(fields):
        if reading.packs is not None:
            try:
                packed = reading.packs(fields)
            except (ValueError, OverflowError):  # `encode_message` has the words for them
                packed = b""
            if 0 < len(packed) <= MESSAGE_BYTES_MAX:
                return packed, message
        return encode_message(message), message
    return _checked_by_decoding(message, otherwise)


def comes_back_by_type(message: Message) -> bool:
    """Whether the types of its fields alone prove that it comes back equal. False until `encode_checked` has seen the
    first of its kind."""
    return message._rayfold_reading.comes_back(message.__dict__)


def _checked_by_decoding(
    message: MessageType, otherwise: Callable[[InvalidMessage], Exception]
) -> tuple[bytes, MessageType]:
    cls = type(message)
    reading = _reading_of(cls)
    try:
        packed = encode_message(message)
    except Exception:
        raise
    except BaseException as error:  # of a serializer
        raise _code_failed(cls, error) from error
    seen, problem = _seen(cls, message, packed)
    if problem is not None:
        exact = _exactly(message, problem)
        if isinstance(exact, InvalidMessage):
            raise otherwise(exact)
        packed, seen = exact
    elif reading.known_by_type and len(reading.known) < _KNOWN_MAX:
        reading.learn(message.__dict__)
    assert seen is not None  # or there was a problem
    return packed, seen


def _seen(
    cls: type[MessageType], message: MessageType, packed: bytes
) -> tuple[MessageType | None, Difference | InvalidMessage | None]:
    """What readers make of the bytes, and in what it is not the message."""
    try:
        seen = decode_message(cls, packed)
    except InvalidMessage as error:
        return None, error
    try:
        return seen, difference(message, seen)
    except RecursionError:
        return None, InvalidMessage(cls.message_name, "it is nested too deep")


def _exactly(message: MessageType, problem: Difference | InvalidMessage) -> tuple[bytes, MessageType] | InvalidMessage:
    """The message in the form that keeps each type, or what is wrong where that does not help either."""
    cls = type(message)
    try:
        fields = message.__dict__ if cls.packing != _DUMPED else _dumped(message)
        packed: bytes = msgpack.packb(msgpack.ExtType(_EXACT, pack_tagged(fields)))
    except (TypeError, ValueError, OverflowError, PydanticSerializationError):
        return _comes_back_otherwise(message, problem)
    if len(packed) <= MESSAGE_BYTES_MAX:
        seen, still = _seen(cls, message, packed)
        if still is None and seen is not None:
            return packed, seen
        if isinstance(problem, InvalidMessage) and still is not None:
            problem = still
    return _comes_back_otherwise(message, problem)


def _comes_back_otherwise(message: Message, problem: Difference | InvalidMessage) -> InvalidMessage:
    """Which field, what it holds, what readers would see, and what to do."""
    cls = type(message)
    if isinstance(problem, InvalidMessage):
        remedy = problem.remedy or "give it a value of its annotation, or change the annotation"
        if "exceeds max_" in problem.what or "levels deep" in problem.what:
            remedy = f"a message has up to {ITEMS_MAX:,} items in one list or map, and {DEPTH_MAX} levels; split it"
        for name, value in message.__dict__.items():
            if type(value) is not str and _field_fails(cls, message, name):
                what = f"{name} is {_shown(value)}, which cannot be read back: {problem.what}"
                return InvalidMessage(cls.message_name, what, remedy)
        return InvalidMessage(cls.message_name, f"it cannot be read back: {problem.what}", remedy)
    path, left, right, missing = problem
    if missing:
        what = f"{path} is {_shown(left)}, which is not stored: readers would see {_shown(right)}"
        return InvalidMessage(cls.message_name, what, "declare it as a field without exclude=True, or leave it out")
    shown = _shown(left), _shown(right)
    if type(left) is not type(right):
        shown = f"{shown[0]} ({type(left).__name__})", f"{shown[1]} ({type(right).__name__})"
    remedy = "give it a value of its annotation, or change the annotation so that it names the type"
    if isinstance(left, type(right)) and type(left) is not type(right):
        remedy = f"annotate the field with {type(left).__name__}, or with a union that names it"
    elif rules_of(cls) and not _reads_leniently(cls):
        remedy = "its validators must give the same when they are applied again"
    return InvalidMessage(
        cls.message_name, f"{path or 'it'} is {shown[0]}, which readers would see as {shown[1]}", remedy
    )


def _field_fails(cls: type[Message], message: Message, name: str) -> bool:
    """Whether the limits of decoding are broken by this field alone."""
    try:
        value = message.__dict__[name] if cls.packing != _DUMPED else _dumped(message, {name})
        decode_payload(msgpack.Packer(default=stored_form).pack({name: value}))
    except (InvalidMessage, TypeError, ValueError, OverflowError, PydanticSerializationError):
        return True
    return False


def validator_of(cls: type[MessageType]) -> Callable[..., MessageType]:
    """What makes a message of decoded fields, by their names. Raises what pydantic raises, and what code of the class
    raises: `decode_message` has the words for it."""
    validate = _reading_of(cls).validate
    assert validate is not None  # `_reading_of` has made it
    return validate


def _reads_leniently(cls: type[Message]) -> bool:
    return issubclass(cls, Event) and not cls.validated_when_read


def _reading_of(cls: type[Message]) -> Reading:
    """How messages of this class are read, made at the first use."""
    reading: Reading = cls._rayfold_reading
    if reading.validate is None:
        if cls.packing == 0:
            cls.packing = _packing_of(cls)
        reading.packs = _scalar_packer.pack if cls.packing == _SCALARS else None
        lenient = _reads_leniently(cls)
        reading.known_by_type = _known_by_type(cls) and (lenient or not rules_of(cls))
        reading.validate = lenient_validator(cls, rules=not lenient)
    return reading


def _known_by_type(cls: type[Message]) -> bool:
    if cls.packing == _DUMPED or makes_itself(cls) or cls.__private_attributes__:
        return False
    return all(
        not any(getattr(item, "union_mode", None) for item in field.metadata)
        and _distinguishes_by_type(field.annotation)
        for field in cls.model_fields.values()
    )


def _distinguishes_by_type(annotation: Any) -> bool:
    """Whether every value of the types that it names comes back, whatever the value is."""
    parts = arguments_of_union(annotation)
    if all(part in _NATIVE for part in parts):
        return True
    (first, *others) = sorted(parts, key=lambda part: part in (None, type(None)))
    if any(part not in (None, type(None)) for part in others):
        return False  # text may be a date, or may not
    return first in _DISTINGUISHED_BY_TYPE or (
        isinstance(first, type) and issubclass(first, Enum) and _members_return(first)
    )


def _members_return(cls: type[Enum]) -> bool:
    return not issubclass(cls, Flag) and all(type(member.value) is str for member in cls)


_NATIVE: Final = (str, int, float, bool, bytes, None, type(None))
_DISTINGUISHED_BY_TYPE: Final = (date, timedelta, Decimal, UUID)


def decode_payload(data: bytes, name: str = "message") -> Payload:
    """The fields of a packed message as plain values, lists as tuples. Bounded; raises `InvalidMessage`."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise _too_big(name, len(data))
    try:
        payload = msgpack.unpackb(
            data, use_list=False, strict_map_key=False, max_array_len=ITEMS_MAX, max_map_len=ITEMS_MAX, max_ext_len=0
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        if data[:1] not in _OPENS_EXTENSION:
            raise _no_message(name, error) from error
        payload = _exact_payload(data, name)
    if type(payload) is not dict:
        raise InvalidMessage(name, f"its bytes hold a {type(payload).__name__}, not a map of fields")
    if _may_be_deep(data) and _deeper_than(payload, DEPTH_MAX):
        raise InvalidMessage(name, f"it is nested over {DEPTH_MAX} levels deep")
    return payload


def check_limits(payload: Mapping[Any, Any], name: str) -> None:
    """Raise `InvalidMessage` for fields of an upcaster that are over the limits of a message: what it gives obeys the
    rules of what is stored."""
    if len(payload) <= SMALL_BYTES and all(map(_is_small, payload.values())):
        return
    try:
        packed = msgpack.Packer(default=_form_or_name, buf_size=PACKER_BYTES).pack(dict(payload))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessage(name, f"its upcast fields are not fields of a message: {error}") from error
    decode_payload(packed, name)


def _is_small(value: Any) -> bool:
    kind = type(value)
    return kind in (int, float, bool, type(None)) or (kind in (str, bytes) and len(value) <= PACKER_BYTES)


def _form_or_name(value: Any) -> Any:
    try:
        return stored_form(value)
    except TypeError:
        return type(value).__name__  # an object that validation may know


def _exact_payload(data: bytes, name: str) -> Any:
    """Decode the form in which each value carries its type. Few messages have it, so the other is tried first."""
    try:
        return msgpack.unpackb(data, ext_hook=_exact_fields)
    except (ValueError, TypeError, ArithmeticError, RecursionError, msgpack.UnpackException) as error:
        raise _no_message(name, error) from error


def _no_message(name: str, error: Exception) -> InvalidMessage:
    return InvalidMessage(name, f"its bytes are not a message: {str(error) or type(error).__name__}")


def _exact_fields(code: int, data: bytes) -> Any:
    if code != _EXACT:
        raise ValueError(f"no message has an extension value of code {code}")
    return unpack_tagged(data, ITEMS_MAX)


_OPENS_EXTENSION: Final = frozenset(bytes([byte]) for byte in (0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))


def decode_message(cls: type[MessageType], data: bytes) -> MessageType:
    """The message that `encode_message` packed. Raises `InvalidMessage`: which field, what is wrong, what would be
    right."""
    payload: Any = None
    if len(data) <= SMALL_BYTES:  # `decode_payload` in line: so little breaks no limit
        try:
            payload = msgpack.unpackb(data, use_list=False, max_ext_len=0)
        except (ValueError, TypeError, msgpack.UnpackException):
            payload = None
    return validated(cls, payload if type(payload) is dict else decode_payload(data, cls.message_name))


def validated(cls: type[MessageType], payload: Mapping[Any, Any]) -> MessageType:
    """A message of these field values. Raises `InvalidMessage` as `decode_message` does."""
    try:
        validate = cls._rayfold_reading.validate or validator_of(cls)
        return validate(payload)  # type: ignore[no-any-return]
    except ValidationError as error:
        what, remedy = problems_of(cls, error)
        raise InvalidMessage(cls.message_name, what, remedy) from None
    except RecursionError:
        raise InvalidMessage(cls.message_name, "it is nested too deep") from None
    except Exception:
        raise
    except BaseException as error:  # of a validator
        raise _code_failed(cls, error) from error


def _code_failed(cls: type[Message], error: BaseException) -> BaseException:
    """What is raised for an exception of code of a message's class that is not an `Exception`."""
    return error if is_ctrl_c(error) else HandlerFailed.caused_by(f"the code of {cls.message_name}", "a message", error)


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
            lines.append(f"{field} is not a field of it" + (f", did you mean {close[0]}?" if close else ""))
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
    packings = [_packing_of_field(field) for field in cls.model_fields.values()]
    return max(packings, default=_SCALARS)


_VALIDATING_ONLY = (AfterValidator, AllowInfNan, BeforeValidator, Strict, StringConstraints)
_LIMITS = (annotated_types.BaseMetadata, annotated_types.GroupedMetadata)


def _packing_of_field(field: FieldInfo) -> int:
    for item in field.metadata:
        limits_only = isinstance(item, _LIMITS) and not hasattr(item, "__get_pydantic_core_schema__")
        if not limits_only and not isinstance(item, _VALIDATING_ONLY):
            return _DUMPED  # it may carry a serializer
    return _packing_of_type(field.annotation)


def _packing_of_type(annotation: Any) -> int:
    parts = arguments_of_union(annotation)
    if len(parts) > 1:
        return max(map(_packing_of_type, parts))
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
        return max((_PLAIN, *(_packing_of_type(argument) for argument in arguments if argument not in (Ellipsis, ()))))
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
    if not isinstance(cause, PydanticSerializationError):  # which is of a serializer
        if isinstance(value, int) or isinstance(cause, OverflowError):
            return "it does not fit 64 bits"
        if isinstance(value, str):
            return "it is not well-formed Unicode"
    return next(iter(str(cause).splitlines()), type(cause).__name__)


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
            if isinstance(item, _NESTING)
        ]
        if not layer:
            return False
    return True


_NESTING = (dict, tuple, list, set, frozenset, deque)


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = ascii(value) if isinstance(value, str) else repr(value)
    except BaseException as error:  # an int of over 4,300 digits, a circle, or what a class of the user's raises
        if is_ctrl_c(error):
            raise
        return f"a {class_name(value)} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
