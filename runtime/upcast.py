"""Upcasting: how the payload of an old version of an event becomes that of the version its class has now.

Rule kept here: what is stored is never rewritten. Each version has one function that makes the next one of it, so the
chain is complete from version 1 and a new version adds one link. A function sees plain values and never a class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .declaration import is_count_from_1, where
from .errors import DefinitionError

if TYPE_CHECKING:
    from .messages import Event

__all__ = ["Payload", "Upcaster", "collected_upcasters", "upcast", "upcasted"]

Payload = dict[str, Any]
"""The fields of a message as plain values: what is stored, and what an upcaster receives and returns."""

Upcaster = Callable[[Payload], Payload]
"""From the payload of one version to that of the next."""

UpcasterType = TypeVar("UpcasterType", bound=Callable[..., Any])


def upcast(from_version: int) -> Callable[[UpcasterType], UpcasterType]:
    """Mark a static method of an event as what turns the payload of `from_version` into that of the next version.

    It gets a payload of plain values and returns one. It never sees a class, so it keeps working when the class
    moves on.
    """
    if not is_count_from_1(from_version):
        raise DefinitionError("@upcast", f"from_version={from_version!r} is no schema version", "count from 1")

    def mark(function: UpcasterType) -> UpcasterType:
        inner: Any = getattr(function, "__func__", function)
        inner.__rayfold_upcasts__ = from_version
        return function

    return mark


def collected_upcasters(cls: type[Event]) -> dict[int, Upcaster]:
    """The upcasters in the body of an event class, by the version each starts from. Raises `DefinitionError`."""
    found: dict[int, Upcaster] = {}
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        from_version = getattr(function, "__rayfold_upcasts__", None)
        if from_version is None:
            continue
        here = where(cls, name)
        if from_version in found:
            other = found[from_version].__name__
            raise DefinitionError(here, f"{other} already upcasts from version {from_version}", "keep one of them")
        if from_version >= cls.schema_version:
            raise DefinitionError(
                here,
                f"it upcasts from version {from_version}, but the class is at version {cls.schema_version}",
                f"say version={from_version + 1} in the class line",
            )
        if len(inspect.signature(function).parameters) != 1:
            raise DefinitionError(here, "an upcaster takes the old payload and nothing else", "make it a @staticmethod")
        found[from_version] = function
    for version in range(1, cls.schema_version):
        if version not in found:
            raise DefinitionError(
                where(cls),
                f"nothing upcasts its version {version} to version {version + 1}",
                f"add a static method marked @upcast(from_version={version})",
            )
    return found


def upcasted(cls: type[Event], payload: Payload, from_version: int) -> Payload:
    """The payload as the present version of `cls` has it. Raises what an upcaster raises."""
    for version in range(from_version, cls.schema_version):
        payload = cls.upcasters[version](payload)
    return payload
