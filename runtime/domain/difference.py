"""Difference: where two states differ, in value, in type, or in what is one object and what is two.

Beside all steps: what was restored is compared with what was saved (`saved_state.py`), and what is in memory with a
fold of the log (`standing.py`).

Rules kept here: nothing of the user's decides what is equal, so a class with an `__eq__` of its own is compared by what
it holds; floats are compared by their bits; the order of a dict counts, since handlers can see it; two places that hold
one changeable object differ from two that hold an object each.
"""

from __future__ import annotations

import copy
import functools
import reprlib
import struct
import types
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

__all__ = ["attributes_of", "caches_of", "difference", "differing_fields", "shown", "slots_of"]

_SHOWN_CHARS: Final = 80
"""Characters shown of each of two values that differ: enough to recognise them, and a line of a log holds both."""

_SHOWN_WHOLE: Final = (
    PurePath,
    UUID,
    Decimal,
    Fraction,
    date,
    timedelta,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
"""What two equal ones of have the same `repr` of; some keep caches in their slots."""

_COMPARED_BY_EQUALITY: Final = frozenset({type(None), bool, int, str, bytes, type(...)})


def difference(expected: Any, got: Any, path: str = "", *, ordered: bool = True) -> str:
    """The first place where they differ, as a line with both values; empty when there is none.

    `expected` and `got` are values, or two aggregates or projections: then the path begins with the field. Unless
    `ordered`, dicts may have their items in another order.
    """
    same: dict[int, int] = {}
    kept: list[Any] = []
    waiting: deque[tuple[str, Any, Any]] = deque([(path, expected, got)])
    while waiting:
        path, one, other = waiting.popleft()
        if one is other and type(one) in _COMPARED_BY_EQUALITY:
            continue
        if type(one) is not type(other):
            its, mine = f"a {type(other).__name__}, {shown(other)}", f"a {type(one).__name__}, {shown(one)}"
            return f"{path or 'it'} is {its}, where it was {mine}"
        kind = type(one)
        if kind in _COMPARED_BY_EQUALITY:
            if one != other:
                return _differ(path, one, other)
            continue
        if _can_be_shared(kind):
            before, back = same.get(id(one)), same.get(-id(other) - 1)
            if before is not None or back is not None:
                if before != id(other) or back != id(one):
                    return f"{path or 'it'} is one {kind.__name__} in two places on one side, and two on the other"
                continue
            same[id(one)], same[-id(other) - 1] = id(other), id(one)
            kept += (one, other)
        if not ordered and kind in (dict, defaultdict, Counter) and one.keys() == other.keys():
            other = _in_order_of(one, other)
            kept.append(other)
        found = _compared(path, one, other, waiting, kept)
        if found:
            return found
    return ""


def differing_fields(expected: Any, got: Any) -> dict[str, str]:
    """Every attribute of two aggregates or projections that differs, with the first place in it where it does.
    Dicts may have their items in another order."""
    mine, theirs = attributes_of(expected), attributes_of(got)
    found = {}
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in theirs or name not in mine:
            if not _is_cached(type(expected), name):
                found[name] = f"{name} is missing" if name in mine else f"{name} was not there"
        elif what := difference(mine[name], theirs[name], name, ordered=False):
            found[name] = what
    return found


def _in_order_of(one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    """A copy of the other dict, of its class, with its items in the order of the first."""
    again = copy.copy(other)
    keys = {key: key for key in dict.keys(other)}
    dict.clear(again)
    for key in dict.keys(one):
        dict.__setitem__(again, keys[key], dict.__getitem__(other, key))
    return again


def _compared(path: str, one: Any, other: Any, waiting: deque[tuple[str, Any, Any]], kept: list[Any]) -> str:
    """Compare two values of one class; what they hold is put to what waits."""
    kind = type(one)
    if isinstance(one, float | complex):
        bits = struct.pack("dd", one.real, one.imag) == struct.pack("dd", other.real, other.imag)
        if not bits:
            return _differ(path, one, other)
    elif isinstance(one, Enum | type | types.FunctionType):
        if one is not other and not (isinstance(one, types.FunctionType) and one.__code__ == other.__code__):
            return _differ(path, one, other)
        return ""
    elif isinstance(one, dict):
        found = _items(path, one, other, waiting)
        if found:
            return found
        if isinstance(one, defaultdict):
            waiting.append((f"{path}.default_factory", one.default_factory, other.default_factory))
    elif isinstance(one, set | frozenset):
        if found := _members(path, one, other, waiting):
            return found
    elif isinstance(one, list | tuple | deque):
        if len(one) != len(other):
            return f"{path or 'it'} has {len(other):,} items, {shown(other)}, where it had {len(one):,}, {shown(one)}"
        if isinstance(one, deque) and one.maxlen != other.maxlen:
            return f"{path or 'it'} has the maxlen {other.maxlen}, where it was {one.maxlen}"
        waiting.extend((f"{path}[{n}]", a, b) for n, (a, b) in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, datetime | time):
        if one.isoformat() != other.isoformat() or one.fold != other.fold or type(one.tzinfo) is not type(other.tzinfo):
            return _differ(path, one, other)
        if str(one.tzinfo) != str(other.tzinfo):
            return _differ(path, one, other)
    elif isinstance(one, _SHOWN_WHOLE):
        return "" if repr(one) == repr(other) else _differ(path, one, other)
    elif isinstance(one, int | str | bytes | bytearray) or not _holds_attributes(kind):
        by_text = any("__repr__" in vars(base) for base in kind.__mro__[:-1])
        if not (repr(one) == repr(other) if by_text else one is other):
            return _differ(path, one, other)
    if _holds_attributes(kind):
        mine, theirs = _comparable(one), _comparable(other)
        for name in [name for name in mine.keys() ^ theirs.keys() if _is_cached(kind, name)]:
            mine.pop(name, None)
            theirs.pop(name, None)
        if mine.keys() != theirs.keys():
            name = min(mine.keys() ^ theirs.keys())
            side = "is missing" if name in mine else "was not there"
            return f"{_joined(path, name)} {side}"
        kept += (mine, theirs)
        waiting.extend((_joined(path, name), value, theirs[name]) for name, value in mine.items())
    return ""


def _items(path: str, one: dict[Any, Any], other: dict[Any, Any], waiting: deque[tuple[str, Any, Any]]) -> str:
    its_class: Any = OrderedDict if isinstance(one, OrderedDict) else dict  # which keeps an order of its own
    mine, theirs = list(its_class.items(one)), list(its_class.items(other))
    if len(mine) != len(theirs):
        return f"{path or 'it'} has {len(theirs):,} keys, where it had {len(mine):,}: {_extra(one, other)}"
    for (key, value), (its_key, its_value) in zip(mine, theirs, strict=True):
        plain = type(key) in _COMPARED_BY_EQUALITY
        if type(key) is not type(its_key) or (plain and key != its_key):
            return f"{path or 'it'} has the key {shown(its_key)} where {shown(key)} was"
        if not plain:
            waiting.append((f"{path}'s key {shown(key)}", key, its_key))
        waiting.append((f"{path}[{shown(key)}]", value, its_value))
    return ""


def _extra(one: dict[Any, Any], other: dict[Any, Any]) -> str:
    for more, fewer, side in ((other, one, "new"), (one, other, "missing")):
        for key in dict.keys(more):
            if key not in fewer:
                return f"{shown(key)} is {side}"
    return "they differ"


def _members(path: str, one: Any, other: Any, waiting: deque[tuple[str, Any, Any]]) -> str:
    if len(one) != len(other):
        return _differ(path, one, other)
    theirs, lone = {item: item for item in other}, []
    for item in one:
        if item in theirs:
            waiting.append((f"{path}'s {shown(item)}", item, theirs.pop(item)))
        else:  # a NaN, perhaps, which equals nothing
            lone.append(item)
    waiting.extend((path, *pair) for pair in zip(sorted(lone, key=repr), sorted(theirs, key=repr), strict=True))
    return ""


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object holds, in its `__dict__` and in its slots: the very values, under their names."""
    found: dict[str, Any] = dict(getattr(value, "__dict__", None) or ())
    for name, slot in slots_of(type(value)):
        try:
            found[name] = slot.__get__(value)
        except AttributeError:
            continue
    return found


_SLOTS: dict[type, tuple[tuple[str, Any], ...]] = {}
_SLOTS_MAX: Final = 10_000
"""Classes that are remembered; beyond this number, all are examined anew."""


def slots_of(cls: type) -> tuple[tuple[str, Any], ...]:
    """Name and descriptor of every slot, also of those whose names two classes share."""
    known = _SLOTS.get(cls)
    if known is None:
        known = tuple(
            (f"{base.__name__}.{name}" if taken else name, slot)
            for base in cls.__mro__
            if base.__flags__ & _HEAP_TYPE
            for name, slot in vars(base).items()
            if isinstance(slot, types.MemberDescriptorType) and name not in ("__dict__", "__weakref__")
            for taken in [any(name in vars(other) for other in cls.__mro__[: cls.__mro__.index(base)])]
        )
        if len(_SLOTS) >= _SLOTS_MAX:
            _SLOTS.clear()
        _SLOTS[cls] = known
    return known


_HEAP_TYPE: Final = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that was not built into an extension."""


def _comparable(value: Any) -> dict[str, Any]:
    found = attributes_of(value)
    if isinstance(value, BaseModel):  # which fields were set is not part of what a model equals
        found.pop("__pydantic_fields_set__", None)
    return found


def _is_cached(kind: type, name: str) -> bool:
    """Whether it is a value that is computed on access: present or not, it is the same state."""
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in kind.__mro__)


@functools.lru_cache(1024)
def caches_of(kind: Any) -> frozenset[str]:
    """The names of the `cached_property`s of a class whose fields cannot change: what they keep is made of the fields,
    and the same whenever it is made. None of a class whose fields may change, where it may be old."""
    parameters = getattr(kind, "__dataclass_params__", None)
    frozen = kind.model_config.get("frozen") if issubclass(kind, BaseModel) else parameters and parameters.frozen
    if not frozen:
        return frozenset()
    return frozenset(name for base in kind.__mro__ for name, one in vars(base).items() if _is_cache(one))


def _is_cache(value: object) -> bool:
    return isinstance(value, functools.cached_property)


def _holds_attributes(kind: type) -> bool:
    return bool(kind.__flags__ & _HEAP_TYPE) and not issubclass(kind, Enum | type)


def _can_be_shared(kind: type) -> bool:
    """Whether it matters that two places hold the same one."""
    if issubclass(kind, tuple | frozenset | str | int | float | complex | bytes | date | time | Enum | type):
        return False
    if issubclass(kind, _SHOWN_WHOLE):
        return False
    if issubclass(kind, BaseModel):
        return not kind.model_config.get("frozen")
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is not None:
        return not parameters.frozen
    return issubclass(kind, dict | list | set | deque | bytearray) or _holds_attributes(kind)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _differ(path: str, one: Any, other: Any) -> str:
    mine, theirs = shown(one), shown(other)
    if mine == theirs:
        mine, theirs = f"{type(one).__name__} {mine}", f"another {theirs}"
    return f"{path or 'it'} is {theirs}, where it was {mine}"


def shown(value: Any) -> str:
    """A value as text of at most 80 characters, whatever its `__repr__` does."""
    try:
        text = _SHORT.repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _SHOWN_CHARS
