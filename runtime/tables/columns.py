"""Columns: the Arrow type of a field, from its annotation, and what makes its values fit.

Beside the write path. Before it: the fields of an event class. After it: `event_tables.py`. docs/bulk-reads.md has the
list of types.

Rules kept here: no value is changed in silence. A type that Arrow has no exact counterpart for is text: of one value
its stored form, of anything composed JSON. The type of a column follows from the annotation alone, so that every batch
of every export of a class has the same columns.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    EmailStr,
    FutureDate,
    FutureDatetime,
    IPvAnyAddress,
    IPvAnyInterface,
    IPvAnyNetwork,
    NaiveDatetime,
    PastDate,
    PastDatetime,
)

from ..domain.declaration import arguments_of_union
from ..errors import CallerError
from .plain import fields_of, json_text

__all__ = ["TIME_ZONE", "Column", "column_of", "pyarrow"]

TIME_ZONE: Final = "UTC"

DECIMAL_DIGITS: Final = 38
"""Of a Decimal whose number of places is declared: all that Arrow's 128 bits, and nearly every reader, have."""

_TEXTS: Final = (
    *(UUID, PurePath, time, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network),
    *(IPvAnyAddress, IPvAnyInterface, IPvAnyNetwork, EmailStr),
)
_TIMES: Final = (datetime, AwareDatetime, PastDatetime, FutureDatetime)
_DATES: Final = (date, PastDate, FutureDate)


class Column(NamedTuple):
    """How the values of one annotation become those of an Arrow array."""

    type: Any
    """The `pyarrow.DataType`."""
    make: Callable[[Any], Any] | None = None
    """What Arrow takes for a value other than None; None if it takes the value itself."""


def pyarrow() -> Any:
    """The package, which is not installed with Rayfold itself. Raises `CallerError`."""
    try:
        import pyarrow
    except ImportError as error:
        raise CallerError("tables of events need the package pyarrow: pip install rayfold[arrow]") from error
    return pyarrow


def column_of(annotation: Any, metadata: Iterable[Any] = (), seen: tuple[type, ...] = ()) -> Column:
    """The column of a field. `metadata`: what Pydantic has taken out of its `Annotated`. `seen`: the models around."""
    while typing.get_origin(annotation) is typing.Annotated:
        metadata = (*metadata, *annotation.__metadata__)
        annotation = annotation.__origin__
    parts = [part for part in arguments_of_union(annotation) if part not in (None, type(None))]
    if len(parts) != 1:
        found = [column_of(part, metadata, seen) for part in parts]
        alike = all(one == found[0] and one.make is not json_text for one in found)
        return found[0] if found and alike else _json()
    if parts[0] is not annotation and typing.get_origin(annotation) is not None:  # `Annotated[...] | None`
        for member in typing.get_args(annotation):
            if typing.get_origin(member) is typing.Annotated:
                return column_of(member, metadata, seen)
    return _of_one(parts[0], tuple(metadata), seen)


def _of_one(part: Any, metadata: tuple[Any, ...], seen: tuple[type, ...]) -> Column:
    origin = typing.get_origin(part)
    if origin is Literal:
        return _of_values(typing.get_args(part))
    if isinstance(part, typing.TypeVar):
        return column_of(part.__bound__, (), seen) if part.__bound__ is not None else _json()
    if callable(getattr(part, "__supertype__", None)):  # typing.NewType
        return column_of(part.__supertype__, metadata, seen)
    if isinstance(origin, type):
        return _of_container(origin, typing.get_args(part), seen)
    if isinstance(part, type):
        return _of_class(part, metadata, seen)
    return _json()


def _of_class(cls: type, metadata: tuple[Any, ...], seen: tuple[type, ...]) -> Column:
    pa = pyarrow()
    if cls is NaiveDatetime:
        return Column(pa.timestamp("us"))
    if issubclass(cls, Enum):
        return _of_values([*cls])
    if issubclass(cls, Decimal):
        places = next((one for one in _facts(metadata, "decimal_places") if one is not None), None)
        return Column(pa.string(), str) if places is None else Column(pa.decimal128(DECIMAL_DIGITS, places))
    if issubclass(cls, _TEXTS):
        return Column(pa.string(), str)
    fields = _fields(cls)
    if fields is not None:
        return _of_fields(cls, fields, seen)
    if cls in _TIMES:
        return Column(pa.timestamp("us", TIME_ZONE))
    if cls in _DATES:
        return Column(pa.date32())
    if cls is timedelta:
        return Column(pa.duration("us"))
    known = ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()), (str, pa.string()), (bytes, pa.binary()))
    for base, kind in known:
        if issubclass(cls, base):
            return Column(kind, None if cls is base else base)
    return _json()


def _of_values(values: Iterable[Any]) -> Column:
    """Of an enum or a `Literal`: that of its values, where they are of one type."""
    kinds = {type(_value_of(value)) for value in values} - {type(None)}
    if len(kinds) != 1:
        return _json()
    kind, make = _of_class(kinds.pop(), (), ())
    return _json() if make is json_text else Column(kind, lambda value: _made(make, _value_of(value)))


def _value_of(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _of_container(origin: type, arguments: tuple[Any, ...], seen: tuple[type, ...]) -> Column:
    pa = pyarrow()
    if issubclass(origin, Mapping):
        key, value = (column_of(one, (), seen) for one in arguments)
        if pa.types.is_nested(key.type) or key.make is json_text:
            return _json()
        return Column(pa.map_(key.type, value.type), _pairs(key.make, value.make))
    if issubclass(origin, tuple):
        inner = {one for one in arguments if one is not Ellipsis}
        if len(inner) != 1:
            return _json()
        arguments = tuple(inner)
    if not issubclass(origin, Collection) or len(arguments) != 1:
        return _of_model(origin, seen) if issubclass(origin, BaseModel) else _json()
    item = column_of(arguments[0], (), seen)
    sort = issubclass(origin, AbstractSet)
    return Column(pa.list_(item.type), _items(item.make, sort=sort))


def _pairs(key: Callable[[Any], Any] | None, value: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def made(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        return [(_made(key, one), _made(value, other)) for one, other in mapping.items()]

    return made


def _items(make: Callable[[Any], Any] | None, *, sort: bool) -> Callable[[Any], Any]:
    def made(items: Iterable[Any]) -> list[Any]:
        if sort:  # the same in every process
            items = sorted(items, key=json_text)
        return [_made(make, item) for item in items]

    return made


def _of_model(cls: type[BaseModel], seen: tuple[type, ...]) -> Column:
    fields = _fields(cls)
    return _json() if fields is None else _of_fields(cls, fields, seen)


def _of_fields(cls: type, fields: Mapping[str, tuple[Any, Any]], seen: tuple[type, ...]) -> Column:
    """A struct; JSON for a model that contains itself, and for one without fields, which Parquet does not have."""
    if cls in seen or not fields:
        return _json()
    pa = pyarrow()
    columns = {name: column_of(*described, (*seen, cls)) for name, described in fields.items()}
    made = _struct({name: column.make for name, column in columns.items()}, is_map=issubclass(cls, dict))
    return Column(pa.struct([(name, column.type) for name, column in columns.items()]), made)


def _struct(makers: Mapping[str, Callable[[Any], Any] | None], *, is_map: bool) -> Callable[[Any], Any]:
    def made(value: Any) -> dict[str, Any]:
        if is_map:
            return {name: _made(make, value.get(name)) for name, make in makers.items()}
        return {name: _made(make, getattr(value, name)) for name, make in makers.items()}

    return made


def _made(make: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if make is None or value is None else make(value)


def _fields(cls: type) -> dict[str, tuple[Any, Any]] | None:
    """Name -> annotation and metadata of the fields of a class that has such; None for one without."""
    if issubclass(cls, BaseModel):
        return {name: (cls.model_fields[name].annotation, cls.model_fields[name].metadata) for name in fields_of(cls)}
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        return {one.name: (hints.get(one.name, Any), ()) for one in dataclasses.fields(cls)}
    if hasattr(cls, "__required_keys__") or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        return {name: (hint, ()) for name, hint in _hints(cls).items()}
    return None


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError):
        return dict.fromkeys(getattr(cls, "__annotations__", {}), Any)


def _facts(metadata: Iterable[Any], name: str) -> Iterable[Any]:
    """A constraint in what Pydantic keeps of a field, also where a `Field` is nested in an annotation."""
    for one in metadata:
        yield getattr(one, name, None)
        yield from _facts(getattr(one, "metadata", ()), name)


def _json() -> Column:
    return Column(pyarrow().string(), json_text)
