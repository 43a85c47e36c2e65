"""Rayfold: event-sourced aggregates that live as Ray actors, over an LMDB log.

The public names, each with its home in `runtime/` (what runs inside an actor) or `actors/` (where it runs).

Rule kept here: importing this package imports nothing else of it, and neither ray (which costs about a second)
nor lmdb. A name is looked up in its home when it is first used (PEP 562); type checkers read the same names from
the imports below, and `tests/test_tidy.py` holds the two to each other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .actors.application import Application
    from .actors.blocking import BlockingRuntime
    from .actors.connecting import BlockingConnection, Connection, connect, connect_blocking
    from .actors.health_check import Health
    from .actors.local_cluster import LocalCluster
    from .actors.moved import Moved
    from .actors.rebuild import BlockingRebuild, Rebuild, RebuildProgress
    from .actors.replica import Replica
    from .actors.session import BlockingSession, Session
    from .actors.status import Status
    from .actors.subscriptions import Subscription
    from .actors.system import Runtime
    from .runtime.aggregate import Aggregate, OwnActor, Shared, decide, evolve
    from .runtime.anchor import Anchor
    from .runtime.envelope import Envelope, derived_id
    from .runtime.errors import (
        CallerError,
        CodeMismatch,
        CommandIdReused,
        Conflict,
        Damaged,
        DefinitionError,
        Fenced,
        HandlerFailed,
        InvalidId,
        InvalidMessage,
        Misfit,
        NotInHistory,
        NotPrivate,
        NotYetVisible,
        Overloaded,
        RayfoldError,
        RebuildCancelled,
        Refusal,
        Rejected,
        Sealed,
        StorageFailed,
        StoreError,
        StoreInUse,
        StoreMismatch,
        StoreMissing,
        SubscriptionInUse,
        Unavailable,
        UnknownEvent,
        UnknownName,
    )
    from .runtime.messages import Command, Event, Payload, Query, upcast
    from .runtime.projection import Projection, answer, forget, project
    from .runtime.read_store.checkpoint import Quarantined
    from .runtime.read_store.contract import ReadStore, StoreKind
    from .runtime.read_store.kinds import DuckDb, InMemory, Lmdb
    from .runtime.read_store.lmdb import Rows
    from .runtime.receipt import Receipt
    from .runtime.recorded import Recorded
    from .runtime.specification import given, on
    from .runtime.stream import ANY, NO_STREAM, StreamId
    from .runtime.subscription import BlockingSubscription, subscribe
    from .runtime.unreadable import UnreadableEvent
    from .runtime.upcast import Stored, stored

__version__ = "0.1.0"

__all__ = [
    "ANY",
    "NO_STREAM",
    "Aggregate",
    "Anchor",
    "Application",
    "BlockingConnection",
    "BlockingRebuild",
    "BlockingRuntime",
    "BlockingSession",
    "BlockingSubscription",
    "CallerError",
    "CodeMismatch",
    "Command",
    "CommandIdReused",
    "Conflict",
    "Connection",
    "Damaged",
    "DefinitionError",
    "DuckDb",
    "Envelope",
    "Event",
    "Fenced",
    "HandlerFailed",
    "Health",
    "InMemory",
    "InvalidId",
    "InvalidMessage",
    "Lmdb",
    "LocalCluster",
    "Misfit",
    "Moved",
    "NotInHistory",
    "NotPrivate",
    "NotYetVisible",
    "Overloaded",
    "OwnActor",
    "Payload",
    "Projection",
    "Quarantined",
    "Query",
    "RayfoldError",
    "ReadStore",
    "Rebuild",
    "RebuildCancelled",
    "RebuildProgress",
    "Receipt",
    "Recorded",
    "Refusal",
    "Rejected",
    "Replica",
    "Rows",
    "Runtime",
    "Sealed",
    "Session",
    "Shared",
    "Status",
    "StorageFailed",
    "StoreError",
    "StoreInUse",
    "StoreKind",
    "StoreMismatch",
    "StoreMissing",
    "Stored",
    "StreamId",
    "Subscription",
    "SubscriptionInUse",
    "Unavailable",
    "UnknownEvent",
    "UnknownName",
    "UnreadableEvent",
    "answer",
    "connect",
    "connect_blocking",
    "decide",
    "derived_id",
    "evolve",
    "forget",
    "given",
    "on",
    "project",
    "stored",
    "subscribe",
    "upcast",
]

_NAMES_BY_HOME: Final = {
    ".actors.application": ("Application",),
    ".actors.blocking": ("BlockingRuntime",),
    ".actors.connecting": ("BlockingConnection", "Connection", "connect", "connect_blocking"),
    ".actors.local_cluster": ("LocalCluster",),
    ".actors.moved": ("Moved",),
    ".actors.health_check": ("Health",),
    ".actors.rebuild": ("BlockingRebuild", "Rebuild", "RebuildProgress"),
    ".actors.replica": ("Replica",),
    ".actors.session": ("BlockingSession", "Session"),
    ".actors.status": ("Status",),
    ".actors.subscriptions": ("Subscription",),
    ".actors.system": ("Runtime",),
    ".runtime.aggregate": ("Aggregate", "OwnActor", "Shared", "decide", "evolve"),
    ".runtime.anchor": ("Anchor",),
    ".runtime.envelope": ("Envelope", "derived_id"),
    ".runtime.messages": ("Command", "Event", "Payload", "Query", "upcast"),
    ".runtime.projection": ("Projection", "answer", "forget", "project"),
    ".runtime.read_store.checkpoint": ("Quarantined",),
    ".runtime.read_store.contract": ("ReadStore", "StoreKind"),
    ".runtime.read_store.kinds": ("DuckDb", "InMemory", "Lmdb"),
    ".runtime.read_store.lmdb": ("Rows",),
    ".runtime.receipt": ("Receipt",),
    ".runtime.recorded": ("Recorded",),
    ".runtime.specification": ("given", "on"),
    ".runtime.stream": ("ANY", "NO_STREAM", "StreamId"),
    ".runtime.subscription": ("BlockingSubscription", "subscribe"),
    ".runtime.unreadable": ("UnreadableEvent",),
    ".runtime.upcast": ("Stored", "stored"),
}
_HOME: Final = {name: home for home, names in _NAMES_BY_HOME.items() for name in names}
_HOME_OF_ERRORS: Final = ".runtime.errors"


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one that it cannot know

    def __getattr__(name: str) -> Any:
        """The public `name`, from its home, which is imported now. A misspelt one hears what it may have meant."""
        if name not in __all__:
            raise AttributeError(_no_such_name(name))
        value = getattr(import_module(_HOME.get(name, _HOME_OF_ERRORS), __name__), name)
        globals()[name] = value  # the next use does not come here
        return value


def __dir__() -> list[str]:
    """The public names, for completion in a shell."""
    return sorted({*globals(), *__all__})


def _no_such_name(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, __all__, n=1)
    return f"module {__name__!r} has no attribute {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
