"""Sameness: whether what readers see equals what was given, in value and in type, all the way down.

Used by the codec before anything is stored (step [4]), and wherever a restored state is compared with its source.

What counts as the same depends on the type. An aware datetime is the same when its clock and its offset are: the name
of a zone and `fold` do not survive, which is why what readers see, not what was made, goes on from there. Sets have no
order, dicts have. A NaN is the same as a NaN, and -0.0 is not 0.0.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import deque
from collections.abc import Iterator
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Any, Final, NamedTuple

import msgpack
from pydantic import BaseModel

__all__ = ["Difference", "difference"]


class Difference(NamedTuple):
    """The first place where two values are not the same."""

    path: str
    """From the field on: `lines[2].price`; empty for the whole."""
    left: Any
    right: Any
    missing: bool = False
    """True when one side has no such part."""


_PLAIN: Final = frozenset({int, str, bool, bytes, type(None)})
"""Types whose values are equal or not, and nothing else. `bool` and `int` are distinguished by their types."""

_MANY: Final = 16
"""Items from which on a list of plain values is compared as a whole, by msgpack: 40 times as fast as one by one."""


def difference(left: Any, right: Any, path: str = "") -> Difference | None:
    """Where two values first differ in value or type; None when they are the same."""
    kind = type(left)
    if kind is not type(right):
        return Difference(path, left, right)
    if kind in _PLAIN:
        return None if left == right else Difference(path, left, right)
    compare = _COMPARED.get(kind)
    if compare is None:
        compare = _compared_by(kind)
    return compare(left, right, path)  # type: ignore[no-any-return]


def _compared_by(kind: type) -> Any:
    for base, compare in _COMPARED_SUBCLASSES:
        if issubclass(kind, base):
            return compare
    return _dataclasses if dataclasses.is_dataclass(kind) else _others


def _floats(left: float, right: float, path: str) -> Difference | None:
    same = (left == right and struct.pack("d", left) == struct.pack("d", right)) or (left != left and right != right)
    return None if same else Difference(path, left, right)


def _decimals(left: Decimal, right: Decimal, path: str) -> Difference | None:
    return None if left.as_tuple() == right.as_tuple() else Difference(path, left, right)


def _clocks(left: datetime | time, right: datetime | time, path: str) -> Difference | None:
    zoned = (left.tzinfo is None) is (right.tzinfo is None)
    same = zoned and left.replace(tzinfo=None, fold=0) == right.replace(tzinfo=None, fold=0)
    return None if same and left.utcoffset() == right.utcoffset() else Difference(path, left, right)


def _enums(left: Enum, right: Enum, path: str) -> Difference | None:
    return None if left is right or difference(left.value, right.value) is None else Difference(path, left, right)


def _sequences(left: Any, right: Any, path: str) -> Difference | None:
    if len(left) != len(right):
        return Difference(path, left, right)
    if getattr(left, "maxlen", None) != getattr(right, "maxlen", None):
        return Difference(path, left, right)
    if len(left) >= _MANY and _same_plain(left, right):
        return None
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        found = difference(one, other, f"{path}[{index}]")
        if found is not None:
            return found
    return _attributes(left, right, path) if type(left) not in (list, tuple, deque) else None


def _same_plain(left: Any, right: Any) -> bool:
    kinds = [*map(type, left)]
    if not {*kinds} <= _PLAIN | {float} or kinds != [*map(type, right)]:
        return False
    try:
        return bool(msgpack.packb([*left]) == msgpack.packb([*right]))
    except (ValueError, OverflowError):
        return False


def _dicts(left: dict[Any, Any], right: dict[Any, Any], path: str) -> Difference | None:
    if len(left) != len(right) or getattr(left, "default_factory", 0) is not getattr(right, "default_factory", 0):
        return Difference(path, left, right)
    if len(left) >= _MANY and _same_plain(left, right) and _same_plain([*left.values()], [*right.values()]):
        return None
    for (key, one), (other_key, other) in zip(left.items(), right.items(), strict=True):
        if difference(key, other_key) is not None:
            return Difference(f"{path} (a key)", key, other_key)
        found = difference(one, other, f"{path}[{key!r}]")
        if found is not None:
            return found
    return None


def _sets(left: Any, right: Any, path: str) -> Difference | None:
    if len(left) != len(right):
        return Difference(path, left, right)
    known = {item: item for item in right}
    unknown = []
    for item in left:
        if item in known:
            if difference(item, known.pop(item)) is not None:
                return Difference(f"{path} (an item)", left, right)
        else:
            unknown.append(item)
    rest = [*known]
    for item in unknown:  # such as a NaN
        found = next((index for index, other in enumerate(rest) if difference(item, other) is None), None)
        if found is None:
            return Difference(f"{path} (an item)", left, right)
        del rest[found]
    return None


def _models(left: BaseModel, right: BaseModel, path: str) -> Difference | None:
    for name in {**dict.fromkeys(type(left).model_fields), **left.__dict__, **right.__dict__}:
        if isinstance(getattr(type(left), name, None), cached_property):
            continue  # made again from the others whenever it is asked for
        at = f"{path}.{name}" if path else name
        if name not in left.__dict__ or name not in right.__dict__:
            sides = left.__dict__.get(name, "nothing"), right.__dict__.get(name, "nothing")
            return Difference(at, *sides, missing=True)
        found = difference(left.__dict__[name], right.__dict__[name], at)
        if found is not None:
            return found
    for part in ("__pydantic_extra__", "__pydantic_private__"):
        for found in _parts(getattr(left, part, None) or {}, getattr(right, part, None) or {}, path):
            return found
    return None


def _parts(left: dict[str, Any], right: dict[str, Any], path: str) -> Iterator[Difference]:
    for name in {**left, **right}:
        at = f"{path}.{name}" if path else name
        if name not in left or name not in right:
            yield Difference(at, left.get(name, "nothing"), right.get(name, "nothing"), missing=True)
        else:
            found = difference(left[name], right[name], at)
            if found is not None:
                yield found


def _dataclasses(left: Any, right: Any, path: str) -> Difference | None:
    return _attributes(left, right, path)


def _attributes(left: Any, right: Any, path: str) -> Difference | None:
    for found in _parts(_state(left), _state(right), path):
        return found
    return None


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an instance: those in its `__dict__` and those in slots."""
    cached = [name for name in getattr(value, "__dict__", ()) if isinstance(_on_class(value, name), cached_property)]
    state = {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in cached}
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                state[name] = getattr(value, name)
    return state


def _on_class(value: Any, name: str) -> Any:
    return getattr(type(value), name, None)


def _others(left: Any, right: Any, path: str) -> Difference | None:
    if left is right:
        return None
    identity_only: Any = object.__eq__
    if type(left).__eq__ is identity_only:
        left_state, right_state = _state(left), _state(right)
        if not left_state and not right_state:
            return Difference(path, left, right)
        return _attributes(left, right, path)
    return None if left == right else Difference(path, left, right)


_COMPARED: Final[dict[type, Any]] = {
    float: _floats,
    Decimal: _decimals,
    datetime: _clocks,
    time: _clocks,
    list: _sequences,
    tuple: _sequences,
    dict: _dicts,
    set: _sets,
    frozenset: _sets,
}
_COMPARED_SUBCLASSES: Final[tuple[tuple[type, Any], ...]] = (
    (Enum, _enums),
    (BaseModel, _models),
    (float, _floats),
    (Decimal, _decimals),
    (datetime, _clocks),
    (time, _clocks),
    (dict, _dicts),
    (set, _sets),
    (frozenset, _sets),
    (list, _sequences),
    (tuple, _sequences),
    (deque, _sequences),
)
