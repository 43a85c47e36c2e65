"""Projections: read models as plain classes that project events and answer queries.

Steps [7] and [8] of the read path. Before them: the broadcast. After them: the caller.

Rules kept here: `@project` changes the fields by one event and is told where the event is recorded, so that it can be
exact about order; `@answer` reads and changes nothing; an answer has the type that its query promises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from .declaration import Handler, checked_name, described, handlers_of, is_count_from_1, mark, same_type, where
from .errors import DefinitionError
from .messages import Event, Query
from .state import Stateful, collect_state

__all__ = ["EventHandler", "Projection", "answer", "project"]

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


class EventHandler(NamedTuple):
    """One `@project` method."""

    name: str
    function: Callable[..., None]
    """Called with the projection, the event and, if it takes it, the event's `Recorded`."""
    takes_recorded: bool


class Projection(Stateful):
    """The base of your projections: its annotated attributes are the read model.

    `class Balances(Projection, name="Balances", version=1)`; both are optional. Raise the version when a handler
    changes, so that the read model is rebuilt from the log; without a name it is that of the class.
    """

    projection_name: ClassVar[str] = "Projection"
    projection_version: ClassVar[int] = 1
    projectors: ClassVar[dict[type[Event], EventHandler]] = {}
    answers: ClassVar[dict[type[Query[Any]], Callable[[Any, Any], Any]]] = {}
    _handlers: ClassVar[tuple[Handler, ...]] = ()

    def __init__(self) -> None:
        """Start from the declared defaults. The runtime does this, and a test may."""
        super().__init__()

    def __init_subclass__(cls, *, name: str = "", version: int = 1) -> None:
        """Find and check the fields and handlers. Raises `DefinitionError`."""
        super().__init_subclass__()
        collect_state(cls, RESERVED)
        cls.projection_name = checked_name(cls, name)
        if not is_count_from_1(version):
            raise DefinitionError(where(cls), f"version={version!r} is no version", "count from 1")
        cls.projection_version = version
        cls.projectors = {
            handler.message: EventHandler(handler.name, handler.function, handler.parameters > 1)
            for handler in handlers_of(cls, "project", Event, parameters_max=2)
        }
        cls.answers = {}
        for handler in handlers_of(cls, "answer", Query):
            _check_answer(cls, handler)
            cls.answers[handler.message] = handler.function


RESERVED = frozenset({"projection_name", "projection_version", "projectors", "answers", "state_fields"})


def project(function: FunctionType) -> FunctionType:
    """Mark a method that changes the read model by an event; it may also take the event's `Recorded`."""
    return mark(function, "project")


def answer(function: FunctionType) -> FunctionType:
    """Mark a method that answers a query from the read model. It changes nothing."""
    return mark(function, "answer")


def _check_answer(cls: type[Projection], handler: Handler) -> None:
    promised = handler.message.answer_type
    if promised is not Any and not same_type(handler.returns, promised):
        raise DefinitionError(
            where(cls, handler.name),
            f"it returns {described(handler.returns)}, but {handler.message.__name__} promises {described(promised)}",
            f"annotate it -> {described(promised)}, or derive the query from Query[{described(handler.returns)}]",
        )
