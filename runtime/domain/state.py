"""State: the declared fields of an aggregate or a projection, and the fresh copies of their defaults.

Rule kept here: no two instances share anything that can change. So every field has a default, a default that can
change is copied for each instance, and a mutable class attribute that is not a field is a `DefinitionError`.

Why fields and no `__init__`: the runtime makes instances itself, to load a history or a snapshot, and the fields are
what a snapshot holds.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import sys
import typing
from collections import deque
from collections.abc import Callable, Container
from dataclasses import is_dataclass
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Any, ClassVar, Final
from uuid import UUID

from pydantic import BaseModel

from ..errors import DefinitionError
from .declaration import Scope, held_in, is_mutable, scope_of, where

__all__ = ["Stateful", "check_declared", "collect_state"]

_MISSING: Any = object()

_HEAP_TYPE: Final = 1 << 9
"""CPython's mark of a class that was made at run time: every class that is written in Python."""

_VALUES: Final = (
    *(Enum, str, bytes, int, float, complex, date, time, timedelta, tzinfo, Decimal, Fraction, UUID, PurePath),
    *(IPv4Address, IPv4Network, IPv6Address, IPv6Network),
)
"""What cannot change although its class, or a derived one, is written in Python."""


class Stateful:
    """What aggregates and projections share: declared fields."""

    state_fields: ClassVar[dict[str, Any]] = {}
    """The declared fields and their annotations, inherited ones first."""

    _shared_defaults: ClassVar[dict[str, Any]] = {}
    _fresh_defaults: ClassVar[dict[str, Callable[[], Any]]] = {}
    _reached: ClassVar[Any] = None
    """What can be reached from the handlers (`fingerprint.py`), found at the first use."""
    _form: ClassVar[Any] = None
    """How states of this class are packed (`saved_state.py`), found at the first use."""
    _own_attributes: ClassVar[frozenset[str]] = frozenset()
    """What instances have besides their fields."""
    attribute_count: ClassVar[int] = 0
    """How many attributes instances have; see `check_declared`."""

    def __init__(self) -> None:
        """Set every declared field to its default, to a fresh copy where it can change."""
        self.__dict__.update(self._shared_defaults)
        for name, make in self._fresh_defaults.items():
            self.__dict__[name] = make()

    def __repr__(self) -> str:
        """The class and the state, for messages and debuggers."""
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.state_fields)
        return f"{type(self).__name__}({fields})"


def collect_state(cls: type[Stateful], reserved: frozenset[str]) -> None:
    """Find the declared fields of `cls` and set its tables. Raises `DefinitionError`."""
    fields: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    fresh: dict[str, Callable[[], Any]] = {}
    for base in reversed(cls.__mro__[1:]):
        if issubclass(base, Stateful):
            fields |= base.state_fields
            shared |= base._shared_defaults
            fresh |= base._fresh_defaults
        else:
            _collect(base, cls, fields, shared, fresh, reserved)
    _collect(cls, cls, fields, shared, fresh, reserved)
    _check_attributes(cls, fields, reserved)
    cls.state_fields, cls._shared_defaults, cls._fresh_defaults = fields, shared, fresh
    cls.attribute_count = len(fields) + len(cls._own_attributes)


def check_declared(instance: Stateful, given: Container[str] = ()) -> None:
    """Take away what a handler has set without declaring it, and raise `DefinitionError`: it has no default, so it
    would be there or not, depending on what has happened. Called if an instance has not `attribute_count` attributes.
    `given`: what else it may have."""
    cls = type(instance)
    for name in [*instance.__dict__]:
        if name in cls.state_fields or name in cls._own_attributes or name in given:
            continue
        del instance.__dict__[name]
        if isinstance(getattr(cls, name, None), functools.cached_property):
            what, remedy = "what it keeps grows old when the state changes", "make it a property"
        else:
            what = "a handler sets it, and it is not declared"
            remedy = f"declare it with what it starts as: {name}: ... = ..."
        raise DefinitionError(where(cls, name), what, remedy)


def _collect(
    base: type,
    cls: type,
    fields: dict[str, Any],
    shared: dict[str, Any],
    fresh: dict[str, Callable[[], Any]],
    reserved: frozenset[str],
) -> None:
    # A mixin of another module is read in that module alone.
    scope = scope_of(cls) if base.__module__ == cls.__module__ else (_module_globals(base), {})
    annotations = _annotations(base, scope)
    for name in [*annotations, *(name for name in vars(base) if name in fields and name not in annotations)]:
        annotation = annotations.get(name, fields.get(name))
        if _is_constant_declaration(annotation) or _is_given_by_a_store(annotation):
            continue
        here, value = where(cls, name), vars(base).get(name, _MISSING)
        if name in reserved:
            raise DefinitionError(here, "the name is reserved by Rayfold", "give the field another name")
        if value is _MISSING and not (name in fields and (name in shared or name in fresh)):
            raise DefinitionError(here, "the field has no default", f"write what it starts as: {name}: ... = ...")
        fields[name] = annotation
        if value is _MISSING:
            continue
        shared.pop(name, None)
        fresh.pop(name, None)
        make = _factory(here, value)
        if make is None:
            shared[name] = value
        else:
            fresh[name] = make
            if isinstance(value, dataclasses.Field):
                delattr(base, name)  # the instance has the value; a Field on the class would be nonsense


def _module_globals(base: type) -> dict[str, Any]:
    module = sys.modules.get(base.__module__)
    return vars(module) if module is not None else {}


def _annotations(base: type, scope: Scope) -> dict[str, Any]:
    """The annotations of the body of `base` alone, resolved."""
    own = inspect.get_annotations(base)
    if not own:
        return {}
    stand_in = type(base.__name__, (), {"__annotations__": dict(own), "__module__": base.__module__})
    try:
        return typing.get_type_hints(stand_in, globalns=scope[0], localns=dict(scope[1]), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise DefinitionError(
            where(base),
            f"the annotations of its fields cannot be read: {error}",
            "define or import what they name above the class, not under TYPE_CHECKING",
        ) from error


def _is_constant_declaration(annotation: Any) -> bool:
    return annotation in (ClassVar, typing.Final) or typing.get_origin(annotation) in (ClassVar, typing.Final)


def _is_given_by_a_store(annotation: Any) -> bool:
    """`rows: Rows`: no field, but what the read store gives to a projection; annotated for the user's type checker."""
    return bool(getattr(annotation, "given_by_a_store", False))


def _factory(here: str, value: Any) -> Callable[[], Any] | None:
    """What makes a fresh default; None for a value that all instances may share. Raises `DefinitionError`."""
    if isinstance(value, dataclasses.Field):
        if value.default_factory is dataclasses.MISSING:
            raise DefinitionError(here, "its field(...) has no default_factory", "write field(default_factory=...)")
        return value.default_factory
    if _is_unchanging(value):
        return None
    if not _is_plain(value):
        raise DefinitionError(
            here,
            f"its default is one {type(value).__name__} that all instances would share",
            f"write dataclasses.field(default_factory={type(value).__name__}), or make the value frozen",
        )
    if not value and type(value) in (list, dict, set):
        return type(value)
    return functools.partial(copy.deepcopy, value)


def _is_unchanging(value: Any) -> bool:
    if value is None or isinstance(value, type):
        return True
    if isinstance(value, tuple | frozenset) or is_dataclass(value) or isinstance(value, BaseModel):
        return _is_value(value) and all(map(_is_unchanging, held_in(value)))
    # A class that is written in Python may change under the hash that it has written for itself.
    return _is_value(value) and (isinstance(value, _VALUES) or not type(value).__flags__ & _HEAP_TYPE)


def _is_value(value: Any) -> bool:
    # An object that is hashed by its identity would not be the same one when it is copied.
    identity_hash: Any = object.__hash__
    return not is_mutable(value) and type(value).__hash__ is not identity_hash


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_unchanging(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bytearray) or _is_unchanging(value) or _is_value(value)


def _check_attributes(cls: type[Stateful], fields: dict[str, Any], reserved: frozenset[str]) -> None:
    annotated = inspect.get_annotations(cls)
    for name, value in vars(cls).items():
        if name == "__init__":
            raise DefinitionError(where(cls, name), "the runtime makes the instances itself", "declare fields instead")
        if name in reserved and name not in annotated:
            raise DefinitionError(where(cls, name), "the name is reserved by Rayfold", "choose another name")
        if name.startswith("__") or name in fields or name in annotated:
            continue
        if is_mutable(value):
            raise DefinitionError(
                where(cls, name),
                f"it has no annotation, so all instances would share one {type(value).__name__}",
                f"annotate it to make it a field, or ClassVar to make it a constant: {name}: ... = ...",
            )
