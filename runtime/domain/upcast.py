"""Upcasting: how the payload of an old version of an event becomes that of the version its class has now.

Rules kept here: what is stored is never rewritten. Each version has one function that makes the next one of it, so the
chain is complete from version 1 and a new version adds one link. A function sees plain values and never a class.

Of one stored event an upcast may make several, of the same name or (`stored`) of others, or none. They have the place
of the stored one: its version in the stream, its position, its command.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar, cast

from ..errors import DefinitionError
from ..printable import shown
from .declaration import arguments_of_union, described, is_count_from_1, where

__all__ = [
    "UPCASTS_MAX",
    "Payload",
    "Stored",
    "Upcastable",
    "Upcaster",
    "collected_upcasters",
    "may_become_others",
    "stored",
    "upcast",
    "upcasted",
]

UPCASTS_MAX: Final = 1_000
"""Events that one stored event may become. It also ends upcasts that go in circles."""

Payload = dict[str, Any]
"""The fields of a message as plain values: what is stored, and what an upcaster receives and returns."""


class Stored(NamedTuple):
    """An event as it is stored: its name, the version of its schema, its fields as plain values. Made by `stored`.

    Example:
        old = stored("Deposited", version=1, amount=5)
        assert old.payload == {"amount": 5}
    """

    name: str
    schema_version: int
    payload: Payload
    cls: type[Upcastable] | None = None
    """The class, where it was named by that."""

    def __repr__(self) -> str:
        fields = "".join(f", {name}={value!r}" for name, value in self.payload.items())
        return f"stored({self.name!r}, version={self.schema_version}{fields})"


Upcaster = Callable[[Payload], "Payload | Stored | Iterable[Payload | Stored] | None"]
"""From the payload of one version to that of the next; to several, or none."""


class Upcastable(Protocol):
    """What upcasting needs of an event class (`Event` in `messages.py`)."""

    message_name: ClassVar[str]
    schema_version: ClassVar[int]
    upcasters: ClassVar[dict[int, Upcaster]]
    """From a version to the function that makes the next one of it."""


UpcasterType = TypeVar("UpcasterType", bound=Callable[..., Any])


def stored(
    event: str | type[Upcastable], /, *, version: int = 1, payload: Payload | None = None, **fields: Any
) -> Stored:
    """An event as an earlier release has stored it.

    `given(...)` may begin with such events, and an upcaster may return them, for events of other names than its
    own.

    Args:
        event: The stored name, or the class that has it now.
        version: Of the schema, from 1.
        payload: The fields, needed if one of them is called `version` or `payload`.
        fields: The fields, by name.

    Raises:
        DefinitionError: `event` is not an event, or `version` is not a number from 1.

    Example:
        given(Account, stored("Deposited", version=1, amount=5)).then_state(balance=5)
    """
    name = event if isinstance(event, str) else getattr(event, "message_name", "")
    if not name:
        raise DefinitionError("stored()", f"{shown(event)} is not an event", "give the stored name, or the event class")
    if not is_count_from_1(version):
        raise DefinitionError(f"stored({name!r})", f"version={shown(version)} is not a schema version", "count from 1")
    return Stored(name, version, {**(payload or {}), **fields}, event if isinstance(event, type) else None)


def upcast(from_version: int) -> Callable[[UpcasterType], UpcasterType]:
    """Mark a static method of an event as what turns the payload of `from_version` into that of the next version.

    It gets a payload of plain values and returns one. It never sees a class, so it keeps working when the class
    changes. It may also return a list: of payloads of the next version, and of `stored(...)` for events of other
    names; an empty list, or None, if nothing is left of the event. Raises `DefinitionError` for a version that is
    not below that of the class.

    Example:
        class Weighed(Event, version=2):
            grams: int

            @staticmethod
            @upcast(from_version=1)
            def in_grams(old: Payload) -> Payload:
                return {"grams": round(old["kg"] * 1000)}
    """
    if not is_count_from_1(from_version):
        raise DefinitionError("@upcast", f"from_version={from_version!r} is not a schema version", "count from 1")

    def mark(function: UpcasterType) -> UpcasterType:
        inner: Any = getattr(function, "__func__", function)
        inner.__rayfold_upcasts__ = from_version
        return function

    return mark


def collected_upcasters(cls: type[Upcastable]) -> dict[int, Upcaster]:
    """The upcasters in the body of an event class, by the version each starts from. Raises `DefinitionError`."""
    found: dict[int, Upcaster] = {}
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        from_version = getattr(function, "__rayfold_upcasts__", None)
        if from_version is None:
            continue
        here = where(cls, name)
        if from_version in found:
            other = getattr(found[from_version], "__name__", "another")
            raise DefinitionError(here, f"{other} already upcasts from version {from_version}", "keep one of them")
        if from_version >= cls.schema_version:
            raise DefinitionError(
                here,
                f"it upcasts from version {from_version}, but the class is at version {cls.schema_version}",
                f"give version={from_version + 1} in the class line",
            )
        if len(inspect.signature(function).parameters) != 1:
            raise DefinitionError(here, "an upcaster takes the old payload and nothing else", "make it a @staticmethod")
        _check_returns(here, function)
        found[from_version] = function
    for version in range(1, cls.schema_version):
        if version not in found:
            raise DefinitionError(
                where(cls),
                f"nothing upcasts its version {version} to version {version + 1}",
                f"add a static method marked @upcast(from_version={version})",
            )
    return found


def upcasted(cls: type[Upcastable], payload: Payload, from_version: int) -> list[Payload | Stored]:
    """What a stored payload is now: payloads as the present version of `cls` has them, and stored events of other
    names. Raises what an upcaster raises, and `TypeError` for a result that is not a payload."""
    now: list[Payload | Stored] = [payload]
    for version in range(from_version, cls.schema_version):
        upcaster = cls.upcasters[version]
        following: list[Payload | Stored] = []
        for one in now:
            following += [one] if isinstance(one, Stored) else _results(cls, upcaster, one)
        if len(following) > UPCASTS_MAX:
            raise TypeError(f"it makes over {UPCASTS_MAX:,} events of one")
        now = following
    return now


def may_become_others(cls: type[Upcastable]) -> bool:
    """Whether old events of this class may be upcast to events of other names: one of its upcasters is not annotated
    to return a payload alone."""
    return any(not _is_annotated_single(upcaster) for upcaster in cls.upcasters.values())


def _results(cls: type[Upcastable], upcaster: Upcaster, payload: Payload) -> Iterator[Payload | Stored]:
    result = upcaster(payload)
    name = getattr(upcaster, "__name__", "upcaster")
    if isinstance(result, dict):
        yield cast(Payload, result)
        return
    if _is_annotated_single(upcaster):
        raise TypeError(f"{name} is annotated to return a payload and returned {_kind(result)}")
    if result is None:
        return
    if isinstance(result, Stored):
        result = [result]
    if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
        raise TypeError(f"{name} returned {_kind(result)}; return a payload, a list of payloads, or None")
    several: Iterable[Any] = result
    for one in several:
        if not isinstance(one, dict | Stored):
            what = f"{name} returned {_kind(one)} in its list"
            raise TypeError(f"{what}; return payloads, and stored(...) for other events")
        if isinstance(one, Stored) and one.name == cls.message_name:
            raise TypeError(f"{name} returned a stored {one.name}, its own event; return its payload instead")
        yield one


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _returned(upcaster: Callable[..., Any]) -> Any:
    """What an upcaster is annotated to return, if that can be found out; else `inspect.Signature.empty`."""
    annotation = inspect.signature(upcaster).return_annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(upcaster, "__globals__", {}))
        except Exception:  # a name that only a type checker knows
            return inspect.Signature.empty
    return annotation


def _is_annotated_single(upcaster: Callable[..., Any]) -> bool:
    return getattr(upcaster, "__rayfold_single__", False)


def _check_returns(here: str, function: Callable[..., Any]) -> None:
    """Raises `DefinitionError` for an annotation that no result of an upcaster has. Its meaning is noted on the
    function: in another process its annotation may not be readable any more."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(here, "an upcaster cannot be async", "write a plain def without input or output")
    returned = _returned(function)
    function.__rayfold_single__ = (typing.get_origin(returned) or returned) is dict  # type: ignore[attr-defined]
    for part in arguments_of_union(returned):
        kind = typing.get_origin(part) or part
        if part is inspect.Signature.empty or part in (None, type(None), Any, Stored):
            continue
        is_list = isinstance(kind, type) and issubclass(kind, Iterable) and not issubclass(kind, str | bytes)
        if not isinstance(kind, type) or not (issubclass(kind, dict) or is_list) or hasattr(kind, "model_fields"):
            raise DefinitionError(
                here,
                f"it returns {described(part)}, and an upcaster sees plain values and no classes",
                "return a payload, a list of payloads, or None",
            )
