"""Storable: what a message class declares that no message of it could be stored with, found when the class is defined.

Beside step [1] of the write path: the codec (`encoding/codec.py`) refuses each value that would not be read back equal,
which for these would be the first command in production.

Rule kept here: only what can never work is refused. Where a class or an annotation brings a serializer of its own, only
the codec can know, so the check is left to it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum, Flag
from typing import Any, Final, Generic

from pydantic import BaseModel

from ..errors import DefinitionError
from .declaration import arguments_of_union, described, where

__all__ = ["check_storable"]

_DEPTH_MAX: Final = 32
"""Levels of an annotation that are walked; a type that names itself is deeper."""

_SETS: Final = (set, frozenset, AbstractSet)
_MAPPINGS: Final = (dict, Mapping)


def check_storable(cls: type[BaseModel]) -> None:
    """Raises `DefinitionError` for a generic message, for private attributes that only a program could set, and for
    fields of types that cannot be stored."""
    if Generic in cls.__mro__:
        what = "it is generic, and the classes that Python makes of it on the fly have no names to be stored under"
        raise DefinitionError(where(cls), what, "define one class for each type")
    if cls.__private_attributes__ and not _fills_them(cls):
        name = next(iter(cls.__private_attributes__))
        remedy = "make it a field, or set it in model_post_init, from the fields"
        raise DefinitionError(where(cls, name), "a private attribute is not stored, so no reader would see it", remedy)
    decorators = cls.__pydantic_decorators__
    if decorators.field_serializers or decorators.model_serializers:
        return
    for name, field in cls.model_fields.items():
        if any(not isinstance(item, str) for item in field.metadata):
            continue  # it may bring a serializer
        for problem, remedy in _problems(field.annotation, hashed=False, depth=0):
            raise DefinitionError(where(cls, name), problem, remedy)


def _fills_them(cls: type[BaseModel]) -> bool:
    """Whether the class sets its private attributes itself, when it is made and when it is read."""
    return any(
        getattr(vars(base).get("model_post_init"), "__name__", "") not in ("", "init_private_attributes")
        for base in cls.__mro__
        if base is not BaseModel
    )


def _problems(annotation: Any, *, hashed: bool, depth: int) -> Iterator[tuple[str, str]]:
    """What of an annotation cannot be stored, and what would be right. `hashed`: as an item of a set, or a key."""
    if depth > _DEPTH_MAX or typing.get_origin(annotation) is typing.Annotated:
        return
    parts = arguments_of_union(annotation)
    if len(parts) > 1 or parts[0] is not annotation:
        for part in parts:
            yield from _problems(part, hashed=hashed, depth=depth + 1)
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _SETS:
        for argument in arguments:
            yield from _problems(argument, hashed=True, depth=depth + 1)
    elif origin in _MAPPINGS and len(arguments) == 2:
        yield from _problems(arguments[0], hashed=True, depth=depth + 1)
        yield from _problems(arguments[1], hashed=False, depth=depth + 1)
    elif origin in (list, tuple):
        for argument in arguments:
            yield from _problems(argument, hashed=hashed, depth=depth + 1)
    elif isinstance(annotation, type) and origin is None:
        yield from _problems_of_class(annotation, hashed)


def _problems_of_class(cls: type, hashed: bool) -> Iterator[tuple[str, str]]:
    if issubclass(cls, Enum):
        if "__get_pydantic_core_schema__" not in dir(cls) and not issubclass(cls, Flag):
            for member in cls:
                if not _is_stored_as_it_is(member.value, hashed):
                    what = f"{cls.__name__}.{member.name} has the value {member.value!r}, which cannot be stored"
                    yield what, "give its members values of text or numbers"
    elif hashed and _is_stored_as_a_map(cls):
        what = f"it has {described(cls)} in a set or as a key, which is stored as a map, and a map can be neither"
        yield what, f"use tuple[{described(cls)}, ...], or text or numbers as keys"


def _is_stored_as_a_map(cls: type) -> bool:
    """Whether its instances are: models and dataclasses without a serializer or a schema of their own."""
    if issubclass(cls, BaseModel):
        own = cls.__pydantic_decorators__.model_serializers or cls.__pydantic_root_model__
        return not own and "__get_pydantic_core_schema__" not in _defined_in(cls)
    plain = dataclasses.is_dataclass(cls) and not hasattr(cls, "__get_pydantic_core_schema__")
    return plain and not getattr(getattr(cls, "__pydantic_decorators__", None), "model_serializers", None)


def _defined_in(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base.__module__ != BaseModel.__module__ for name in vars(base)}


def _is_stored_as_it_is(value: Any, hashed: bool) -> bool:
    """Whether a member's value is one that msgpack has, and that is equal to itself once it is read."""
    if value is None or isinstance(value, bool | str | bytes):
        return True
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, tuple):
        return all(_is_stored_as_it_is(item, hashed) for item in value)
    if hashed or not isinstance(value, list | dict):
        return False
    return all(_is_stored_as_it_is(item, hashed) for item in (value.values() if isinstance(value, dict) else value))
