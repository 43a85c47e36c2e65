"""Shapes: what an event class stores, as plain text that a log can keep and a later class can be compared with.

Beside the write path. The log keeps the shape of every (event name, schema version) that it holds, written with the
first event of it; `fit.py` compares the classes of today with them before anything runs.

Rules kept here: a shape names fields and types and nothing else. Constraints, defaults, validators, descriptions, the
names of classes and the modules that they are in change nothing that is stored, so they are not in it. A nested model,
dataclass or TypedDict is expanded: its fields stand under paths (`lines.sku`), whatever containers are in between.
What is stored under another name than the code uses has its *meaning* there as well, under paths with an @: the value
of each member of an enum (`colour@RED`), the name at each place of a NamedTuple (`pair@0`). If one of those is another
now, what is stored would be read as something else.

A type that is not known is the empty text: of an old log only the names of fields are known.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import msgpack
from pydantic import BaseModel

from ..domain.declaration import arguments_of_union

if typing.TYPE_CHECKING:
    from ..domain.messages import Event

__all__ = ["FieldDifference", "Shape", "differences", "event_shape", "pack_shape", "shape_of_names", "unpack_shape"]

Shape = dict[str, str]
"""Path of a field -> its type as text, sorted by path. `{"amount": "int", "lines": "list[{sku}]", "lines.sku":
"str"}`."""

TEXT_MAX: Final = 1_000
"""Characters of one type. Of a longer one (an enum of hundreds of members) the rest is hashed."""

PATHS_MAX: Final = 1_000
"""Paths of one shape: a generated class with thousands of nested fields is compared by its first ones."""

MEANING: Final = "@"
"""Between the path of a field and what a meaning is of: no name of a field has it."""

MEANINGS_MAX: Final = 256
"""Meanings of one field: of a larger enum the first members are compared."""

_SAME_EVERYWHERE: Final = (str, bytes, int, float, type(None))
"""Values of members that have the same text in every process."""


def event_shape(cls: type[Event]) -> Shape:
    """What events of this class store: path of each field -> its type as text."""
    shape: Shape = {}
    paths = list(_paths("", _fields_of(cls) or {}, (cls,)))
    for path, text in sorted(paths, key=lambda one: MEANING in one[0]):  # what is most important first
        earlier = shape.get(path)  # two models of a union may have a field of the same name
        if earlier is not None and text not in earlier.split(" | "):
            text = " | ".join(sorted({*earlier.split(" | "), text}))
        elif earlier is not None:
            text = earlier
        if path in shape or len(shape) < PATHS_MAX:
            shape[path] = _bounded(text)
    return dict(sorted(shape.items()))


def shape_of_names(names: Iterable[object]) -> Shape:
    """The shape of a payload of which only the names of the fields are known."""
    return {str(name): "" for name in sorted(map(str, names))}


def pack_shape(shape: Shape) -> bytes:
    """The shape as a log keeps it: a msgpack map of texts. Equal shapes pack to equal bytes."""
    packed: bytes = msgpack.packb(dict(sorted(shape.items())))
    return packed


def unpack_shape(data: bytes) -> Shape:
    """The shape that `pack_shape` packed. Raises `ValueError` for bytes that are none."""
    try:
        found = msgpack.unpackb(data, max_map_len=PATHS_MAX, max_str_len=4 * TEXT_MAX, max_array_len=0, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"these bytes are not a shape: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in (*found, *found.values())):
        raise ValueError("these bytes are not a shape: they hold no map of texts")
    return found


class FieldDifference(NamedTuple):
    """One difference between what is stored and what a class stores now."""

    kind: Literal["gone", "new", "type", "fields", "meaning"]
    """`gone`: stored, and no field of the class. `new`: a field that is not stored. `type`: both, of other types.
    `fields`: a class in a union has gained or lost a field whose name another one of them has.
    `meaning`: what is stored would be read as another member of its enum, or under another name of its NamedTuple."""
    path: str
    held: str
    """The stored type; empty if it is not known, or for `new`."""
    now: str
    """The type of the class; empty for `gone`."""

    def __str__(self) -> str:
        if self.kind == "gone":
            return f"{self.path} is stored, and is not a field of the class"
        if self.kind == "new":
            return f"{self.path} is a field of the class, and is not stored"
        if self.kind == "fields":
            return f"{self.path} is stored with the fields {self.held}, and no class has just these there now"
        if self.kind == "meaning":
            path, _, of = self.path.partition(MEANING)
            what = f"place {of}" if of.isdecimal() else f"member {of}"
            return f"{path}: {what} is stored as {self.held}, and is {self.now} in the class"
        return f"{self.path} is stored as {self.held}, and is {self.now} in the class"


def differences(held: Shape, now: Shape) -> list[FieldDifference]:
    """How a class (`now`) differs from what is stored (`held`), in the order of the paths."""
    found = []
    for path in sorted(held.keys() | now.keys()):
        if MEANING in path:
            if held.get(path, "") != now.get(path, "") and _is_other_meaning(path, held, now):
                found.append(FieldDifference("meaning", path, held.get(path, "nothing"), now.get(path, "nothing")))
        elif path not in now:
            found.append(FieldDifference("gone", path, held[path], ""))
        elif path not in held:
            if not _under_unknown(path, held):
                found.append(FieldDifference("new", path, "", now[path]))
        elif held[path] and held[path] != now[path]:
            found.append(FieldDifference("type", path, held[path], now[path]))
    found += _other_fields(found)
    return _without_nested(found)


def _other_fields(found: list[FieldDifference]) -> list[FieldDifference]:
    """Of fields whose type is another: those in which a set of fields is stored that no class has now, and where it is
    not seen by a path, since another class of the union has a field of that name."""
    named = [one.path for one in found if one.kind in ("gone", "new")]
    different = []
    for one in found:
        if one.kind == "type" and not any(path.startswith(f"{one.path}.") for path in named):
            lost = _field_sets(one.held) - _field_sets(one.now)
            if lost and max(len(one.held), len(one.now)) <= TEXT_MAX:
                different.append(FieldDifference("fields", one.path, " and ".join(sorted(lost)), one.now))
    return different


def _field_sets(text: str) -> set[str]:
    """The names of the fields of each class in the text of a type; values of literals and enums are not fields."""
    return {*_FIELD_SETS.findall(_QUOTED.sub("", text))}


_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_FIELD_SETS: Final = re.compile(r"\{[A-Za-z_][^{}]*\}")


def _is_other_meaning(path: str, held: Shape, now: Shape) -> bool:
    """Whether what differs there is a change: a member of an enum may come, go or be renamed, a place may not; and of a
    log that was written before meanings were kept nothing is known."""
    if path in held and path in now:
        return True
    of = path.partition(MEANING)[2]
    first = path.removesuffix(of) + "0"
    return of.isdecimal() and first in held and first in now


def _under_unknown(path: str, held: Shape) -> bool:
    """Whether a field that holds this one is stored, with a type that is not known."""
    parts = path.split(".")
    return any(held.get(".".join(parts[:end])) == "" for end in range(1, len(parts)))


def _without_nested(found: list[FieldDifference]) -> list[FieldDifference]:
    """What is nested in a field that is new or gone as a whole is part of that difference."""
    whole = {one.path for one in found if one.kind != "type"}

    def is_part(path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:end]) in whole for end in range(1, len(parts)))

    return [one for one in found if not is_part(one.path)]


def _paths(above: str, fields: Mapping[str, Any], seen: tuple[type, ...]) -> Iterator[tuple[str, str]]:
    """Path and type of every field, and of what is nested in it."""
    for name, annotation in fields.items():
        path = f"{above}{name}"
        yield path, _text(annotation, seen)
        for of, meaning in islice(_meanings(annotation), MEANINGS_MAX):
            yield f"{path}{MEANING}{of}", meaning
        for nested in _nested(annotation, seen):
            yield from _paths(f"{path}.", _fields_of(nested) or {}, (*seen, nested))


def _nested(annotation: Any, seen: tuple[type, ...]) -> Iterator[type]:
    """The classes with fields of their own that an annotation names, at any depth of containers; each once."""
    for part in arguments_of_union(annotation):
        if isinstance(part, type) and not typing.get_args(part) and _fields_of(part) is not None:
            if part not in seen:
                yield part
            continue
        for argument in _arguments(part):
            yield from _nested(argument, seen)


def _meanings(annotation: Any) -> Iterator[tuple[str, str]]:
    """What is stored under another name than the code uses, at any depth of containers."""
    for part in arguments_of_union(annotation):
        if typing.get_origin(part) is Literal:
            yield from _values((one.name, one) for one in typing.get_args(part) if isinstance(one, Enum))
        elif isinstance(part, type) and not typing.get_args(part):
            if issubclass(part, Enum):
                yield from _values(part.__members__.items())
            elif _is_named_tuple(part):
                yield from ((str(place), name) for place, name in enumerate(part._fields))  # type: ignore[attr-defined]
                for hint in _hints(part).values():
                    yield from _meanings(hint)
        else:
            for argument in _arguments(part):
                yield from _meanings(argument)


def _values(members: Iterable[tuple[str, Enum]]) -> Iterator[tuple[str, str]]:
    return ((name, _value(member)) for name, member in members if isinstance(member.value, _SAME_EVERYWHERE))


def _text(annotation: Any, seen: tuple[type, ...]) -> str:
    parts = [_text_of(part, seen) for part in arguments_of_union(annotation)]
    return " | ".join(sorted(dict.fromkeys(parts)))


def _text_of(part: Any, seen: tuple[type, ...]) -> str:
    origin, arguments = typing.get_origin(part), _arguments(part)
    if part is None or part is type(None):
        return "None"
    if origin is Literal:
        return f"one of {', '.join(sorted(map(_value, typing.get_args(part))))}"
    if origin is not None:
        name = getattr(origin, "__name__", str(origin))
        inside = ", ".join("..." if one is Ellipsis else _text(one, seen) for one in arguments)
        return f"{name}[{inside}]" if inside else name
    if isinstance(part, typing.TypeVar):
        bounds = part.__constraints__ or ((part.__bound__,) if part.__bound__ is not None else ())
        return " | ".join(sorted(_text(bound, seen) for bound in bounds)) or "Any"
    if callable(getattr(part, "__supertype__", None)):  # typing.NewType
        return _text(part.__supertype__, seen)
    if not isinstance(part, type):
        return str(getattr(part, "__name__", part)).removeprefix("typing.")
    return _text_of_class(part, seen)


def _text_of_class(cls: type, seen: tuple[type, ...]) -> str:
    if issubclass(cls, Enum):
        return f"one of {', '.join(sorted(_value(member.value) for member in cls))}"
    if _is_named_tuple(cls):
        hints = _hints(cls)
        return f"tuple[{', '.join(_text(hint, seen) for hint in hints.values())}]"
    fields = _fields_of(cls)
    if fields is not None:
        return "{...}" if cls in seen else "{" + ", ".join(sorted(fields)) + "}"
    return cls.__name__


def _value(value: object) -> str:
    return repr(value.value) if isinstance(value, Enum) else repr(value)


def _arguments(part: Any) -> tuple[Any, ...]:
    if typing.get_origin(part) is Literal:
        return ()
    return tuple(one for one in typing.get_args(part) if one != ())


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _fields_of(cls: Any) -> dict[str, Any] | None:
    """Name -> annotation of the stored fields of a class that has such; None for one without."""
    if not isinstance(cls, type):
        return None
    if issubclass(cls, BaseModel):
        if not cls.__pydantic_complete__:
            cls.model_rebuild(raise_errors=False)
        return {name: field.annotation for name, field in cls.model_fields.items() if not field.exclude}
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        return {field.name: hints.get(field.name, field.type) for field in dataclasses.fields(cls)}
    if isinstance(getattr(cls, "__total__", None), bool) and hasattr(cls, "__required_keys__"):  # a TypedDict
        return _hints(cls)
    return None


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a class, resolved where that is possible."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, AttributeError, SyntaxError, TypeError):
        return dict(getattr(cls, "__annotations__", {}))


def _bounded(text: str) -> str:
    if len(text) <= TEXT_MAX:
        return text
    return f"{text[:TEXT_MAX]}... {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
