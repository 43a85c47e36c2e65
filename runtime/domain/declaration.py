"""Declarations: how aggregates and projections declare what they handle, and the checks made while a class is defined.

Rule kept here: a handler is found by its annotation alone, and whatever cannot work is a `DefinitionError` at import,
with the class, the method and the remedy. Nothing is looked up by name at run time.

Why the results are plain tables on the class (`deciders`, `projectors`, ...): Ray ships the classes of a `__main__`
script by value. cloudpickle first makes an empty class of that name, which runs `__init_subclass__` with no class
arguments and an empty body, and then sets every attribute of the original that is not the very object that a base
has. So for that class nothing is computed (`being_unpickled`), and what is computed here must be an attribute that can
be set.

Why the frames of the caller are read: with `from __future__ import annotations` an annotation is text, and a message
class that is defined inside a function is known only to that function's frame.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from ..errors import DefinitionError
from ..stream import RESERVED_PREFIX, TYPE_NAME_PATTERN, is_reserved
from .recorded import Recorded

__all__ = [
    "Handler",
    "Mark",
    "Method",
    "Scope",
    "arguments_of_union",
    "being_unpickled",
    "checked_name",
    "described",
    "handlers_of",
    "held_in",
    "is_count_from_1",
    "is_mutable",
    "mark",
    "methods_of",
    "nearest",
    "same_type",
    "scope_of",
    "where",
]

Found = TypeVar("Found")
FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])

Scope = tuple[dict[str, Any], Mapping[str, Any]]
"""The globals and locals in which the annotations of a class are read."""

VERBS = {
    "decide": "Aggregate",
    "evolve": "Aggregate",
    "project": "Projection",
    "answer": "Projection",
    "forget": "Projection",
    "react": "Process",
    "accepted": "Process",
    "refused": "Process",
    "failed": "Process",
    "scheduled": "Process",
    "woken": "Aggregate",
    "effect": "Effects",
    "settle": "Effects",
}
"""The marks, and where each belongs."""

_YIELDING = frozenset({"decide", "react", "accepted", "refused", "failed", "scheduled", "woken"})
"""The marks of methods that may be generators."""

_ASYNC = frozenset({"effect", "settle"})
"""The marks of functions that run on an event loop, outside of every partition."""


class Mark(NamedTuple):
    """What a decorator leaves on a function: the function itself stays what the user wrote."""

    verb: str
    creates: bool = False
    route: Any = None
    """For an `@answer`, the parts of a partitioned projection that are asked; for the methods of a process what they
    are for."""


class Handler(NamedTuple):
    """One marked method, read and checked: which message it is for, and what it takes and gives."""

    name: str
    function: Callable[..., Any]
    mark: Mark
    message: type[Any]
    parameters: int
    """Without `self`."""
    returns: Any
    """The resolved return annotation; `inspect.Signature.empty` without one."""


def where(cls: type, member: str = "") -> str:
    """The class, or the member of it, that an error is about."""
    return f"{cls.__name__}.{member}" if member else cls.__name__


def mark(function: FunctionType, verb: str, *, creates: bool = False, route: Any = None) -> FunctionType:
    """Leave the mark of `@decide`, `@evolve`, `@project`, `@answer` or `@forget` on a method."""
    if not inspect.isfunction(function):
        raise DefinitionError(f"@{verb}", f"it marks a method, not a {type(function).__name__}", "put it on a def")
    earlier = getattr(function, "__rayfold__", None)
    if earlier is not None:
        raise DefinitionError(function.__qualname__, f"it is both @{earlier.verb} and @{verb}", "keep one of them")
    function.__rayfold__ = Mark(verb, creates, route)  # type: ignore[attr-defined]
    return function


def checked_name(cls: type, name: str | None) -> str:
    """The stored name of a class: `name`, or that of the class if that is None. Raises `DefinitionError`."""
    chosen = cls.__name__ if name is None else name
    if not isinstance(chosen, str) or not TYPE_NAME_PATTERN.fullmatch(chosen):
        raise DefinitionError(
            where(cls),
            f"{chosen!r} cannot be a stored name",
            'give name="..." in the class line: ASCII letters, digits, "_", "." and "-", 64 characters at most',
        )
    if is_reserved(chosen):
        what = f"{chosen!r} begins with {RESERVED_PREFIX!r}, which is for what Rayfold itself stores"
        raise DefinitionError(where(cls), what, "choose another name")
    return chosen


def being_unpickled() -> bool:
    """True inside cloudpickle's making of an empty class, whose attributes are set a moment later: those alone that
    are not the very objects that its bases have. So nothing may be computed for it: it would hide what is inherited."""
    frame = sys._getframe(1)
    for _ in range(16):  # class creation is 4 to 8 frames deep
        if frame.f_code.co_name == "_make_skeleton_class":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def scope_of(cls: type) -> Scope:
    """Where the annotations of a class that is being defined are read: its module, the functions around it, and the
    classes nested in it."""
    module = sys.modules.get(cls.__module__)
    module_globals: dict[str, Any] = vars(module) if module is not None else {}
    nested = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items() if _is_class(value)}
    layers: list[Mapping[str, Any]] = [nested, {cls.__name__: cls}]
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "builtins") == cls.__module__:
            module_globals = frame.f_globals
            if frame.f_locals is not frame.f_globals:
                layers.append(frame.f_locals)
        frame = frame.f_back
    return module_globals, ChainMap(*(dict(layer) for layer in layers))


def _is_class(value: object) -> bool:
    return isinstance(value, type)


def handlers_of(cls: type, verb: str, message_type: type, *, parameters_max: int = 1) -> Iterator[Handler]:
    """The methods of `cls` marked with `verb`, inherited ones included, checked. Raises `DefinitionError`."""
    scope = scope_of(cls)
    resolved = {handler.function: handler for base in cls.__mro__[1:] for handler in vars(base).get("_handlers", ())}
    own: list[Handler] = []
    for name, function in _marked(cls):
        found: Mark = function.__rayfold__
        if VERBS[found.verb] not in [base.__name__ for base in cls.__mro__]:
            raise DefinitionError(
                where(cls, name), f"@{found.verb} belongs to {_article(VERBS[found.verb])}", "move it there"
            )
        if found.verb == verb:
            handler = resolved.get(function) or _read(cls, name, function, scope, message_type, parameters_max)
            own.append(handler)
    cls._handlers = (*vars(cls).get("_handlers", ()), *own)  # type: ignore[attr-defined]
    _check_unique(cls, own)
    return iter(own)


class Method(NamedTuple):
    """One marked method of which each parameter is found by its annotation."""

    name: str
    function: Callable[..., Any]
    mark: Mark
    parameters: tuple[Any, ...]
    """The annotation of each, without `self`."""
    returns: Any


def methods_of(cls: type, verb: str) -> Iterator[Method]:
    """The methods of `cls` marked with `verb`, inherited ones included. Raises `DefinitionError` for annotations that
    are missing or cannot be read."""
    scope = scope_of(cls)
    for name, function in _marked(cls):
        found: Mark = function.__rayfold__
        if found.verb != verb:
            continue
        here = where(cls, name)
        _check_kind(here, verb, function)
        hints = _hints(cls, here, function, scope)
        parameters = []
        for parameter in list(inspect.signature(function).parameters.values())[1:]:  # without self
            if parameter.name not in hints:
                raise DefinitionError(here, f"its parameter {parameter.name!r} has no annotation", "annotate it")
            parameters.append(hints[parameter.name])
        returns = hints.get("return", inspect.Signature.empty)
        _check_returns(here, verb, returns)
        yield Method(name, function, found, tuple(parameters), returns)


def _marked(cls: type) -> Iterator[tuple[str, Any]]:
    """Name and function of every marked method that `cls` has in the end."""
    final: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            inner = getattr(value, "__func__", None) or getattr(value, "fget", None)
            if getattr(inner, "__rayfold__", None) is not None:
                kind = type(value).__name__
                raise DefinitionError(where(cls, name), f"a {kind} cannot be a handler", "use a plain method")
            before = getattr(final.get(name), "__rayfold__", None)
            if before is not None and value is not None and getattr(value, "__rayfold__", None) is None:
                raise DefinitionError(
                    where(cls, name),
                    f"it overrides a handler marked @{before.verb} without that mark",
                    f"mark it @{before.verb}, or set it to None to stop handling the message",
                )
            final[name] = value
    for name, value in final.items():
        if inspect.isfunction(value) and hasattr(value, "__rayfold__"):
            yield name, value


def _read(
    cls: type, name: str, function: Callable[..., Any], scope: Scope, message_type: type, parameters_max: int
) -> Handler:
    here, found = where(cls, name), function.__rayfold__  # type: ignore[attr-defined]
    _check_kind(here, found.verb, function)
    parameters = _checked_parameters(here, found.verb, function, message_type, parameters_max)
    hints = _hints(cls, here, function, scope)
    message = _message(here, parameters[0].name, hints, message_type)
    if parameters_max > 1 and len(parameters) > 1:
        _check_recorded(here, parameters[1].name, hints)
    returns = hints.get("return", inspect.Signature.empty)
    _check_returns(here, found.verb, returns)
    return Handler(name, function, found, message, len(parameters), returns)


def _check_kind(here: str, verb: str, function: Callable[..., Any]) -> None:
    if verb in _ASYNC:
        if not inspect.iscoroutinefunction(function):
            raise DefinitionError(here, f"a @{verb} function has to be async", "write async def")
        return
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(here, f"a @{verb} method cannot be async", "write a plain def without input or output")
    if verb not in _YIELDING and inspect.isgeneratorfunction(function):
        raise DefinitionError(here, f"a @{verb} method cannot yield, its body would never run", "take the yield out")


def _checked_parameters(
    here: str, verb: str, function: Callable[..., Any], message_type: type, parameters_max: int
) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())[1:]  # without self
    for parameter in parameters:
        if is_mutable(parameter.default):
            kind = type(parameter.default).__name__
            what = f"the default of {parameter.name!r} is one {kind} that all calls would share"
            raise DefinitionError(here, what, "take the default away")
    plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if not plain or not 1 <= len(parameters) <= parameters_max:
        wanted = f"self and one {message_type.__name__.lower()}" + (
            ", or also a Recorded" if parameters_max > 1 else ""
        )
        got = ", ".join(inspect.signature(function).parameters) or "nothing"
        raise DefinitionError(here, f"a @{verb} method takes {wanted}, this one takes {got}", "change its parameters")
    return parameters


def _hints(cls: type, here: str, function: Callable[..., Any], scope: Scope) -> dict[str, Any]:
    # A function of another module (a mixin's) is read in that module alone.
    local = scope[1] if function.__module__ == cls.__module__ else None
    try:
        return typing.get_type_hints(function, localns=dict(local) if local is not None else None)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise DefinitionError(
            here,
            f"its annotations cannot be read: {error}",
            "define or import the class above this one, not under TYPE_CHECKING",
        ) from error


def _message(here: str, parameter: str, hints: Mapping[str, Any], message_type: type) -> type[Any]:
    kind = message_type.__name__
    if parameter not in hints:
        raise DefinitionError(
            here, f"its parameter {parameter!r} has no annotation", f"annotate it with {_article(kind)} class"
        )
    message = hints[parameter]
    if message is message_type:
        raise DefinitionError(here, f"{parameter!r} is annotated with {kind} itself", "name the one class it handles")
    if not isinstance(message, type) or not issubclass(message, message_type):
        raise DefinitionError(
            here,
            f"{parameter!r} is annotated with {described(message)}, which is not {_article(kind)} class",
            f"annotate it with one {kind} class, and write one method for each",
        )
    return message


def _check_recorded(here: str, parameter: str, hints: Mapping[str, Any]) -> None:
    if hints.get(parameter) is not Recorded:
        annotation = f"annotated with {described(hints[parameter])}" if parameter in hints else "without an annotation"
        raise DefinitionError(here, f"its second parameter {parameter!r} is {annotation}", "annotate it with Recorded")


def _check_returns(here: str, verb: str, returns: Any) -> None:
    if verb in ("evolve", "project"):
        if returns not in (inspect.Signature.empty, type(None)):
            raise DefinitionError(
                here,
                f"a @{verb} method changes self and returns nothing, this one returns {described(returns)}",
                "annotate it -> None",
            )
    elif returns is inspect.Signature.empty:
        remedy = "annotate it with the query's answer type"
        if verb in _ASYNC:
            remedy = "name what it may return: Done, Declined, NotDone, Unknown, Send"
        if verb in _YIELDING:
            remedy = "name the events that it may return" + ("" if verb == "decide" else " and the outputs, or None")
        raise DefinitionError(here, "its return annotation is missing", remedy)


def _check_unique(cls: type, handlers: list[Handler]) -> None:
    by_message: dict[type, Handler] = {}
    by_name: dict[str, Handler] = {}
    for handler in handlers:
        here, stored_name = where(cls, handler.name), handler.message.message_name
        if handler.message in by_message:
            other = by_message[handler.message].name
            raise DefinitionError(
                here, f"{handler.message.__name__} is already handled by {other}", "keep one of the two methods"
            )
        if stored_name in by_name:
            other = by_name[stored_name].name
            raise DefinitionError(
                here,
                f"its {handler.message.__name__} has the stored name {stored_name!r}, as does that of {other}",
                'give one of the two classes another name="..."',
            )
        by_message[handler.message] = by_name[stored_name] = handler


def nearest(message: type, handlers: Mapping[Any, Found]) -> Found | None:
    """What handles this message class: its own handler, or else that of the nearest class it is derived from."""
    for base in message.__mro__:
        if base in handlers:
            return handlers[base]
    return None


def is_count_from_1(value: object) -> bool:
    """True for 1, 2, 3, ...: what versions of events and projections are."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_mutable(value: object) -> bool:
    """True for lists, dicts, sets and whatever else cannot be hashed; for models and dataclasses that are not frozen,
    whatever hash they have. Of what is frozen, what it holds counts."""
    if isinstance(value, list | dict | set | bytearray | deque):
        return True
    try:
        hash(value)
    except TypeError:
        return True
    if isinstance(value, Enum | type) or type(value).__hash__ is object.__hash__:
        return False
    if isinstance(value, BaseModel) and not value.model_config.get("frozen"):
        return True
    parameters = getattr(value, "__dataclass_params__", None)
    if parameters is not None and not parameters.frozen:
        return True
    return any(map(is_mutable, held_in(value)))


def held_in(value: Any) -> Iterable[Any]:
    """The values that a tuple, a frozenset, a dataclass or a model holds; of anything else none."""
    if isinstance(value, tuple | frozenset):
        return value
    if isinstance(value, BaseModel):
        return vars(value).values()
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return ()


def arguments_of_union(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else the thing alone. `Annotated` and `type` aliases are seen through."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = annotation.__origin__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            break
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(annotation) for part in arguments_of_union(member))
    return (annotation,)


def same_type(left: Any, right: Any) -> bool:
    """True when two annotations mean the same type, however they are spelled (`List[int]` and `list[int]`)."""
    lefts, rights = arguments_of_union(left), arguments_of_union(right)
    if len(lefts) > 1 or len(rights) > 1:
        return len(lefts) == len(rights) and all(any(same_type(a, b) for b in rights) for a in lefts)
    (left,), (right,) = lefts, rights
    if left == right or (left in (None, type(None)) and right in (None, type(None))):
        return True
    origin = typing.get_origin(left)
    if origin is None or origin is not typing.get_origin(right):
        return False
    left_args, right_args = typing.get_args(left), typing.get_args(right)
    return len(left_args) == len(right_args) and all(map(same_type, left_args, right_args))


def described(annotation: Any) -> str:
    """An annotation as a person would write it."""
    if annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"
