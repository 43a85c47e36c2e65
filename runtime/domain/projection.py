"""Projections: read models as plain classes that project events and answer queries.

Steps [7] and [8] of the read path. Before them: the broadcast. After them: the caller.

Rules kept here: `@project` changes the read model by one event and can take the place where it is recorded, so that it
can be exact about order; `@answer` reads and changes nothing; an answer has the type that its query promises.

Where the read model is kept, what happens to an event on which a handler fails, and the number of parts are declared in
the class line, because a reader has to know them to understand the handlers.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, TypeVar, overload

from ..errors import DefinitionError
from .declaration import (
    Handler,
    being_unpickled,
    checked_name,
    described,
    handlers_of,
    is_count_from_1,
    mark,
    same_type,
    where,
)
from .messages import Event, Query
from .read_store import InMemory, StoreKind
from .sql import Sql
from .state import Stateful, collect_state

__all__ = ["PARTS_MAX", "EventHandler", "Projection", "Route", "answer", "forget", "part_of", "project"]

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])

PARTS_MAX: Final = 256
"""Each part is an actor with a process of its own, like a partition."""


class EventHandler(NamedTuple):
    """One `@project` method."""

    name: str
    function: Callable[..., None]
    """Called with the projection, the event and, if it takes it, the event's `Recorded`."""
    takes_recorded: bool


class Route(NamedTuple):
    """Which parts of a partitioned projection a query goes to: the one of its `key`, or all, whose answers `merge`
    makes into one. Without either (only where there is one part) there is nothing to choose."""

    key: Callable[[Any], str] | None = None
    """From the query to the key whose part is asked: `part_of(key(query), parts)`."""
    merge: Callable[[list[Any]], Any] | None = None
    """From the parts' answers, in the order of the parts, to the one answer that the query promises."""


class Projection(Stateful):
    """The base of your projections: its annotated attributes are the read model.

    All of the class line is optional. Raises `DefinitionError` while the class is defined.

    `name`, `version`: without a name it is that of the class. Raise the version when a handler changes, so that the
    read model is rebuilt from the log.

    `store`: where the read model is kept: `InMemory()`, `Lmdb()`, `DuckDb("CREATE TABLE IF NOT EXISTS ...")`, or one of
    your own (`docs/read-models.md`). With a store other than memory there are no fields.

    `on_failure`: what happens when a handler raises on an event three times in a row. `"stop"`: the projection stops
    and every query raises the reason. `"quarantine"`: the event is set aside, visibly, and the projection continues.

    `parts`: above 1, the read model is split by key into so many parts, each in a process of its own. `key` returns the
    key of an event, from the event or from the event and its `Recorded`; without it that is the aggregate's id.

    Example:
        class Balances(Projection, version=1, store=InMemory(), on_failure="stop", parts=1):
            balances: dict[str, int] = {}

            @project
            def deposited(self, event: Deposited, recorded: Recorded) -> None:
                self.balances[recorded.aggregate_id] = self.balances.get(recorded.aggregate_id, 0) + event.amount

            @answer
            def balance(self, query: BalanceOf) -> int:
                return self.balances.get(query.account, 0)
    """

    projection_name: ClassVar[str] = "Projection"
    projection_version: ClassVar[int] = 1
    projectors: ClassVar[dict[type[Event], EventHandler]] = {}
    answers: ClassVar[dict[type[Query[Any]], Callable[[Any, Any], Any]]] = {}
    answer_routes: ClassVar[dict[type[Query[Any]], Route]] = {}
    """The parts that are asked, for every query that is answered."""
    read_store: ClassVar[StoreKind] = InMemory()
    on_failure: ClassVar[Literal["stop", "quarantine"]] = "stop"
    parts: ClassVar[int] = 1
    part_key: ClassVar[Callable[..., str] | None] = None
    """The value of `key=` in the class line; None for the aggregate's id."""
    forgets: ClassVar[Callable[..., None] | None] = None
    """The `@forget` method, if there is one: called with the projection and a `StreamId`."""
    _handlers: ClassVar[tuple[Handler, ...]] = ()

    if TYPE_CHECKING:
        # What a store gives to the instance when it is opened; missing with any other store.
        rows: Any
        """With `Lmdb()`: `read_store.lmdb.Rows`, sorted by key. A value that is read is a copy: assign it back. Any,
        because it is a likely name of a field too; write `rows: Rows` in the class for its type."""
        sql: Sql
        """With `DuckDb()`: `sql(query, parameters)` runs it in the page's transaction; DuckDB's result comes back."""
        append: Callable[[str, tuple[Any, ...]], None]
        """With `DuckDb()`: `append(table, row)`, buffered: a row at the end of the page, or before the next `sql`."""

    def __init__(self) -> None:
        """Start from the declared defaults. The runtime does this, and a test may."""
        super().__init__()

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        store: StoreKind | None = None,
        on_failure: Literal["stop", "quarantine"] | None = None,
        parts: int | None = None,
        key: Callable[..., str] | None = None,
    ) -> None:
        """Find and check the fields and handlers. Raises `DefinitionError`."""
        super().__init_subclass__()
        if being_unpickled():
            return
        collect_state(cls, RESERVED)
        cls.projection_name = checked_name(cls, name)
        if not is_count_from_1(version):
            raise DefinitionError(where(cls), f"version={version!r} is not a version", "count from 1")
        cls.projection_version = version
        _set_options(cls, store, on_failure, parts, key)
        cls.projectors = {
            handler.message: EventHandler(handler.name, handler.function, handler.parameters > 1)
            for handler in handlers_of(cls, "project", Event, parameters_max=2)
        }
        cls.answers, cls.answer_routes = {}, {}
        for handler in handlers_of(cls, "answer", Query):
            _check_answer(cls, handler)
            cls.answers[handler.message] = handler.function
            cls.answer_routes[handler.message] = handler.mark.route
        cls.forgets = _forgetting(cls)


RESERVED = frozenset(
    {
        "projection_name",
        "projection_version",
        "projectors",
        "answers",
        "answer_routes",
        "read_store",
        "on_failure",
        "parts",
        "part_key",
        "forgets",
        "state_fields",
    }
)


def part_of(key: str, parts: int) -> int:
    """The part of a key: CRC-32 of its UTF-8, modulo. The same in every process and version."""
    return zlib.crc32(key.encode()) % parts


@overload
def project(function: FunctionType, /) -> FunctionType: ...
@overload
def project() -> Callable[[FunctionType], FunctionType]: ...
def project(function: Any = None, /) -> Any:
    """Mark a method that changes the read model by an event; it may also take the event's `Recorded`.

    A method for a base class of events is for every event of the application that is derived from it and that no
    other `@project` is nearer to: also for those whose classes are defined later. Raises `DefinitionError` for
    annotations that do not fit.

    Example:
        @project
        def deposited(self, event: Deposited, recorded: Recorded) -> None:
            self.last[recorded.aggregate_id] = recorded.recorded_at
    """
    return mark(function, "project") if function is not None else lambda marked: mark(marked, "project")


@overload
def answer(function: FunctionType, /) -> FunctionType: ...
@overload
def answer(
    *, key: Callable[[Any], str] | None = ..., merge: Callable[[list[Any]], Any] | None = ...
) -> Callable[[FunctionType], FunctionType]: ...
def answer(
    function: Any = None,
    /,
    *,
    key: Callable[[Any], str] | None = None,
    merge: Callable[[list[Any]], Any] | None = None,
) -> Any:
    """Mark a method that answers a query from the read model. It changes nothing.

    In a projection of several parts each declares the parts to ask: `@answer(key=...)`, the one part that holds this
    key, or `@answer(merge=...)`, all parts, whose answers `merge` takes as a list. Raises `DefinitionError` for
    annotations that do not fit.

    Example:
        @answer(merge=sum)
        def total(self, query: Total) -> int:
            return sum(self.balances.values())
    """
    if key is not None and merge is not None:
        raise DefinitionError("@answer", "it has both a key and a merge", "one part is asked by key, or all are merged")
    route = Route(key, merge)
    if function is not None:
        return mark(function, "answer", route=route)
    return lambda marked: mark(marked, "answer", route=route)


@overload
def forget(function: FunctionType, /) -> FunctionType: ...
@overload
def forget() -> Callable[[FunctionType], FunctionType]: ...
def forget(function: Any = None, /) -> Any:
    """Mark the method that removes from the read model what one aggregate has added, so that it alone can be rebuilt.

    It takes `self` and a `StreamId`. Used by `rebuild_stream`, which raises `DefinitionError` where there is no
    such method.

    Example:
        @forget
        def forget(self, stream: StreamId) -> None:
            self.balances.pop(stream.id, None)
    """
    return mark(function, "forget") if function is not None else lambda marked: mark(marked, "forget")


def _set_options(
    cls: type[Projection], store: StoreKind | None, on_failure: Any, parts: Any, key: Callable[..., str] | None
) -> None:
    """Read the class line; what it leaves out is inherited."""
    if store is not None:
        if isinstance(store, type) or not callable(getattr(store, "make", None)):
            raise DefinitionError(where(cls), f"store={store!r} is not a store", "give store=Lmdb(), for example")
        if " at 0x" in repr(store):
            remedy = "make it a frozen dataclass: the repr has to distinguish one declaration from another"
            raise DefinitionError(where(cls), f"the repr of its store is {store!r}", remedy)
        cls.read_store = store
    if cls.state_fields and not isinstance(cls.read_store, InMemory):
        field = next(iter(cls.state_fields))
        kind = type(cls.read_store).__name__
        remedy = f"keep it in the {kind} store, or annotate it ClassVar if it is a constant"
        raise DefinitionError(where(cls, field), f"a projection in {kind} has no fields, they would be lost", remedy)
    if on_failure is not None:
        if on_failure not in ("stop", "quarantine"):
            raise DefinitionError(where(cls), f"on_failure={on_failure!r}", 'give "stop" or "quarantine"')
        cls.on_failure = on_failure
    if parts is not None:
        if not is_count_from_1(parts) or parts > PARTS_MAX:
            raise DefinitionError(where(cls), f"parts={parts!r} is not a number of parts", f"choose 1 to {PARTS_MAX}")
        cls.parts = parts
    if key is not None:
        if not inspect.isfunction(key) or not 1 <= len(inspect.signature(key).parameters) <= 2:
            remedy = "write a function or lambda that takes an event, or an event and its Recorded"
            raise DefinitionError(where(cls), f"key={key!r} is not a function of an event", remedy)
        cls.part_key = staticmethod(key)  # a plain function on the class would become a method of its instances


def _check_answer(cls: type[Projection], handler: Handler) -> None:
    here, promised = where(cls, handler.name), handler.message.answer_type
    if promised is not Any and not same_type(handler.returns, promised):
        raise DefinitionError(
            here,
            f"it returns {described(handler.returns)}, but {handler.message.__name__} promises {described(promised)}",
            f"annotate it -> {described(promised)}, or derive the query from Query[{described(handler.returns)}]",
        )
    if cls.parts > 1 and handler.mark.route == Route():
        raise DefinitionError(
            here,
            f"it does not declare which of the {cls.parts} parts to ask",
            "write @answer(key=...) for the one that holds a key, or @answer(merge=...) for all",
        )


def _forgetting(cls: type[Projection]) -> Callable[..., None] | None:
    """The method marked `@forget`. Raises `DefinitionError` for two, and for one that takes something else."""
    found = [
        value
        for name in dict.fromkeys(name for base in cls.__mro__ for name in vars(base))
        if name != "forgets"
        and inspect.isfunction(value := getattr(cls, name, None))
        and getattr(getattr(value, "__rayfold__", None), "verb", "") == "forget"
    ]
    if len(found) > 1:
        names = " and ".join(sorted(function.__name__ for function in found))
        raise DefinitionError(where(cls), f"both {names} are marked @forget", "keep one of them")
    for function in found:
        if len(inspect.signature(function).parameters) != 2:
            here = where(cls, function.__name__)
            raise DefinitionError(here, "a @forget method takes self and a StreamId", "change its parameters")
        return function
    return None
