"""Records: values on their way between programs, in msgpack, and back with their types. Nothing is ever unpickled.

Beside all steps. msgpack has numbers, text, bytes, lists and maps. Tuples, sets, errors of ours and the records that
both ends know (named tuples and dataclasses, each by its name and the names of its fields) travel as extension values:
an unknown field is ignored, and a missing one has its default, or is refused.

Rule kept here: what arrives makes only objects of the classes that were listed, and has no more items than bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import msgpack

from ...runtime.encoding.error_codec import from_wire, to_wire
from ...runtime.encoding.forms import unpack_nested
from ...runtime.errors import InvalidMessage, RayfoldError

__all__ = ["Records"]

_RECORD: Final = 1
_TUPLE: Final = 2
_SET: Final = 3
_FROZENSET: Final = 4
_ERROR: Final = 5


class Records:
    """Packs and unpacks values that may hold records of these classes."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {cls.__name__: cls for cls in classes}
        self._fields: dict[type, tuple[str, ...]] = {cls: _fields_of(cls) for cls in self._classes.values()}

    def pack(self, value: Any) -> bytes:
        """The value as bytes. Raises `TypeError` for one that holds an object of no listed class."""
        packed: bytes = msgpack.packb(value, default=self._form, strict_types=True)
        return packed

    def unpack(self, data: bytes) -> Any:
        """The value that `pack` made these bytes of. Raises `InvalidMessage`."""
        try:
            return unpack_nested(data, self._made)
        except RayfoldError:
            raise
        except Exception as error:  # msgpack raises many, and so do the classes
            raise InvalidMessage("value", f"cannot be read: {error}", "") from error

    def _form(self, value: Any) -> msgpack.ExtType:
        kind = type(value)
        if (fields := self._fields.get(kind)) is not None:
            content: Any = [kind.__name__, {name: getattr(value, name) for name in fields}]
            return msgpack.ExtType(_RECORD, self.pack(content))
        if kind is tuple:
            return msgpack.ExtType(_TUPLE, self.pack(list(value)))
        if kind is set or kind is frozenset:
            return msgpack.ExtType(_SET if kind is set else _FROZENSET, self.pack(list(value)))
        if isinstance(value, RayfoldError):
            return msgpack.ExtType(_ERROR, self.pack(to_wire(value)))
        if isinstance(value, dict):
            return msgpack.ExtType(_RECORD, self.pack(["", dict(value)]))
        raise TypeError(f"a {kind.__name__} cannot be sent to another program")

    def _made(self, code: int, data: bytes) -> Any:
        content = self.unpack(data)
        if code == _RECORD:
            name, values = content
            if not name:
                return values
            cls = self._classes[name]
            return cls(**{field: value for field, value in values.items() if field in self._fields[cls]})
        if code == _TUPLE:
            return tuple(content)
        if code == _SET:
            return set(content)
        if code == _FROZENSET:
            return frozenset(content)
        if code == _ERROR:
            return from_wire(content)
        raise InvalidMessage("value", f"has the unknown code {code}", "use the same release of rayfold for both ends")


def _fields_of(cls: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls) if field.init)
    named: tuple[str, ...] = cls._fields
    return named
