"""Saved state: the declared fields of an aggregate or projection as bytes, and the fingerprint of what wrote them.

What a snapshot (written at step [5], read at [3]) and a projector's checkpoint hold.

Rules kept here: what is restored equals what was saved, in type too, also inside a field annotated `Any`; a saved state
is never trusted beyond its fingerprint: when the declared state or the code that evolves it changes, the fingerprint
does, and the history is folded again.

Why tags: plain msgpack turns tuples into lists and dates into text. Here each such value is an extension type that
says what it was. Pydantic then restores what only the annotation knows: models, dataclasses, enums.
"""

from __future__ import annotations

import dataclasses
import dis
import hashlib
import types
import typing
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import msgpack
from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from .declaration import described, where
from .errors import DefinitionError, InvalidMessage
from .forms import PACKER_BYTES, stored_form
from .state import Stateful

__all__ = [
    "STATE_BYTES_MAX",
    "check_state_fields",
    "decode_state",
    "encode_state",
    "pack_value",
    "state_fingerprint",
    "unpack_value",
]

STATE_BYTES_MAX: Final = 1 << 30
"""One saved state: it is held in memory whole, twice while it is packed."""

S = TypeVar("S", bound=Stateful)


def encode_state(instance: Stateful) -> bytes:
    """The declared fields as bytes; equal states give equal bytes. Raises `InvalidMessage`, naming the field, for a
    value that is not what the field is annotated with, and `DefinitionError` for an annotation that cannot be saved."""
    pack = msgpack.Packer(default=_tagged, strict_types=True, buf_size=PACKER_BYTES).pack
    parts = [pack(len(instance.state_fields))]
    for name, adapter in _adapters(type(instance)).items():
        try:
            value = adapter.dump_python(getattr(instance, name), by_alias=False, round_trip=True, warnings="error")
            parts.append(pack(value))
        except (PydanticSerializationError, TypeError, ValueError, OverflowError, RecursionError) as error:
            what = f"its field {name} cannot be saved: {_first_line(error)}"
            annotation = described(instance.state_fields[name])
            raise InvalidMessage(where(type(instance)), what, f"keep it to its annotation, {annotation}") from error
    state = b"".join(parts)
    if len(state) > STATE_BYTES_MAX:
        raise InvalidMessage(where(type(instance)), f"its state has {len(state):,} bytes, over {STATE_BYTES_MAX:,}")
    return state


def decode_state(cls: type[S], data: bytes, id: str = "", version: int = 0) -> S:
    """An instance with the state that `encode_state` saved. `id` and `version` are for an aggregate.

    Raises `InvalidMessage` when the bytes hold anything else than the fields of this class.
    """
    adapters = _adapters(cls)
    try:
        unpacker = msgpack.Unpacker(
            ext_hook=_untagged, strict_map_key=False, max_buffer_size=min(len(data), STATE_BYTES_MAX) or 1
        )
        unpacker.feed(data)
        if unpacker.unpack() != len(adapters):
            raise ValueError("another number of fields")
        values = {
            name: adapter.validate_python(unpacker.unpack(), by_alias=False, by_name=True)
            for name, adapter in adapters.items()
        }
    except (ValidationError, ValueError, TypeError, ArithmeticError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidMessage(where(cls), f"these bytes are no state of it: {_first_line(error)}") from error
    instance = cls()
    if hasattr(instance, "version"):
        instance.__dict__.update(id=id, version=version)
    instance.__dict__.update(values)
    return instance


def pack_value(value: Any) -> bytes:
    """A plain value as bytes that `unpack_value` turns into an equal one, in type too. Raises `TypeError`, `ValueError`
    or `OverflowError` for what no tag stands for."""
    packed: bytes = msgpack.Packer(default=_tagged, strict_types=True, buf_size=PACKER_BYTES).pack(value)
    return packed


def unpack_value(data: bytes) -> Any:
    """The value that `pack_value` packed. Raises `ValueError` or `TypeError` for other bytes."""
    return msgpack.unpackb(data, ext_hook=_untagged, strict_map_key=False)


def state_fingerprint(cls: type[Stateful]) -> bytes:
    """16 bytes that change with the declared fields, their defaults and types, the events and the code that folds them.

    The code is the bytecode of `@evolve` or `@project` methods and of the plain methods they may call; comments,
    docstrings and line numbers do not count. Another Python version gives another fingerprint. What is outside the
    class (a function of a module) is not seen: raise the `version=` of a projection when such a function changes.
    """
    known = _FINGERPRINTS.get(cls)
    if known is None:
        digest = hashlib.blake2b(digest_size=16)
        for part in _parts(cls):
            text = part.encode()
            digest.update(len(text).to_bytes(4, "big") + text)
        known = _FINGERPRINTS[cls] = digest.digest()
    return known


def check_state_fields(cls: type[Stateful]) -> None:
    """Raise `DefinitionError` for a field whose annotation cannot be saved."""
    _adapters(cls)


def _adapters(cls: type[Stateful]) -> dict[str, TypeAdapter[Any]]:
    """One adapter for each field, made at the first use and kept on the class."""
    known: dict[str, TypeAdapter[Any]] | None = _ADAPTERS.get(cls)
    if known is None:
        known = {name: _adapter(cls, name, annotation) for name, annotation in cls.state_fields.items()}
        _ADAPTERS[cls] = known
    return known


def _adapter(cls: type[Stateful], name: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise DefinitionError(
            where(cls, name),
            f"values of {described(annotation)} cannot be saved in a snapshot",
            "use plain values, dataclasses or pydantic models",
        ) from error


_TAGS: tuple[tuple[int, type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
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
"""Number, type, what is packed under the number, and how that turns back. The numbers are stored: never reuse one."""

_FORM_BY_TYPE = {kind: (code, to_form) for code, kind, to_form, _ in _TAGS}
_FROM_FORM = {code: from_form for code, _, _, from_form in _TAGS}
_ADAPTERS: WeakKeyDictionary[type, dict[str, TypeAdapter[Any]]] = WeakKeyDictionary()
_FINGERPRINTS: WeakKeyDictionary[type, bytes] = WeakKeyDictionary()
"""Kept beside the classes and not on them: Ray ships what is on a class, and an adapter does not travel."""


def _tagged(value: Any) -> Any:
    """What the packer writes for a value that msgpack does not know. Raises `TypeError`."""
    tag = _FORM_BY_TYPE.get(type(value))
    if tag is not None:
        code, to_form = tag
        return msgpack.ExtType(
            code, msgpack.Packer(default=_tagged, strict_types=True, buf_size=PACKER_BYTES).pack(to_form(value))
        )
    if isinstance(value, Enum):
        return value.value
    kinds: tuple[Callable[[Any], Any], ...] = (str, bytes, int, float, dict, list)
    for kind in kinds:
        if isinstance(value, kind):  # type: ignore[arg-type]
            return kind(value)
    return stored_form(value)


def _untagged(code: int, data: bytes) -> Any:
    if code not in _FROM_FORM:
        raise ValueError(f"no value is tagged {code}")
    return _FROM_FORM[code](msgpack.unpackb(data, ext_hook=_untagged, strict_map_key=False))


def _first_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return (str(error) or type(error).__name__).splitlines()[-1].strip()


def _parts(cls: type[Stateful]) -> Iterator[str]:
    """Everything that the fingerprint covers, as text that is the same in every process."""
    # By stored names: code may move, and cloudpickle does not keep the place of a class that is inside a function.
    yield f"{getattr(cls, 'aggregate_type', '')} {getattr(cls, 'projection_name', '')}"
    yield f"{getattr(cls, 'state_version', '')} {getattr(cls, 'projection_version', '')}"
    for name, annotation in cls.state_fields.items():
        yield f"field {name}: {_type_text(annotation, set())}"
    try:
        yield encode_state(cls()).hex()
    except InvalidMessage:
        yield "defaults that are not what their fields are annotated with"
    handlers: dict[Any, Any] = {**getattr(cls, "evolvers", {}), **getattr(cls, "projectors", {})}
    for event, handler in handlers.items():
        yield f"event {event.message_name} {event.schema_version}"
        yield from (f"from {version} {_code_text(step.__code__)}" for version, step in event.upcasters.items())
        yield _code_text(getattr(handler, "function", handler).__code__)
    for name, function in _plain_methods(cls).items():
        yield f"method {name} {_code_text(function.__code__)}"
    store, key = getattr(cls, "read_store", None), getattr(cls, "part_key", None)
    if store is not None:
        yield f"kept in {store!r}, {getattr(cls, 'parts', 1)} parts"
        yield f"parted by {_code_text(key.__code__) if key else 'stream'}"


def _plain_methods(cls: type) -> dict[str, types.FunctionType]:
    """The methods and properties that a handler may call: all without a mark."""
    found: dict[str, types.FunctionType] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith(__package__ + "."):
            continue
        for name, value in vars(base).items():
            function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            if isinstance(function, types.FunctionType) and not hasattr(function, "__rayfold__"):
                found[name] = function
    return found


def _code_text(code: types.CodeType) -> str:
    """What the code does, without docstrings, lines and the numbering of its constants."""
    steps = (f"{step.opname} {_constant_text(step.argval)}" for step in dis.get_instructions(code))
    return f"{code.co_argcount} {'; '.join(steps)}"


def _constant_text(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code_text(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_constant_text, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_constant_text, value)))}}}"
    return f"{type(value).__name__} {value!r}"


def _type_text(annotation: Any, seen: set[Any]) -> str:
    """An annotation as text, with the fields of the dataclasses and models in it."""
    arguments = typing.get_args(annotation)
    if arguments:
        inner = ", ".join(_type_text(item, seen) if not isinstance(item, list) else str(item) for item in arguments)
        return f"{typing.get_origin(annotation)}[{inner}]"
    if not isinstance(annotation, type):
        return repr(annotation)
    text = annotation.__name__
    if annotation in seen:
        return text
    seen.add(annotation)
    if issubclass(annotation, BaseModel):
        fields: dict[str, Any] = {name: field.annotation for name, field in annotation.model_fields.items()}
    elif dataclasses.is_dataclass(annotation):
        fields = {field.name: field.type for field in dataclasses.fields(annotation)}
    elif issubclass(annotation, Enum):
        return f"{text}({', '.join(f'{name}={member.value!r}' for name, member in annotation.__members__.items())})"
    else:
        return text
    return f"{text}({', '.join(f'{name}: {_type_text(kind, seen)}' for name, kind in fields.items())})"
