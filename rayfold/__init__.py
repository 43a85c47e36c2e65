"""Rayfold: event-sourced aggregates as Ray actors, over an LMDB log.

The public names, each with its home in `runtime/` (what runs inside an actor) or `actors/` (where it runs).

Rule kept here: importing this package imports nothing else of it, and neither ray (which costs about a second)
nor lmdb. A name is looked up in its home when it is first used (PEP 562); type checkers read the same names from
the imports below, and `tests/test_tidy.py` holds the two to each other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .actors.api.blocking import BlockingOperations, BlockingRuntime, BlockingSession
    from .actors.api.connection import BlockingConnection, Connection, connect, connect_blocking
    from .actors.api.events import Events
    from .actors.api.gateway import BlockingGateway, Gateway
    from .actors.api.operations import Operations
    from .actors.api.portal import BlockingRebuild
    from .actors.api.replica import Replica
    from .actors.api.runtime import Runtime
    from .actors.api.session import Session
    from .actors.api.store_subscription import subscribe
    from .actors.api.subscriptions import Subscription
    from .actors.cluster.local import LocalCluster
    from .actors.nodes.move_result import MoveResult
    from .actors.observe.status import Status
    from .actors.packaging.application import Application
    from .actors.projection.rebuild import Rebuild, RebuildProgress
    from .actors.settings import Settings
    from .actors.system.health_check import Health
    from .runtime.backup.anchor import Anchor
    from .runtime.domain.aggregate import Aggregate, OwnActor, Shared, decide, evolve, woken
    from .runtime.domain.messages import Command, Event, Payload, Query, upcast
    from .runtime.domain.outputs import Ended, Forget, Send, Undo, Wake
    from .runtime.domain.projection import Projection, answer, forget, project
    from .runtime.domain.read_store import DuckDb, InMemory, Lmdb, ReadStore, StoreKind
    from .runtime.domain.recorded import Recorded
    from .runtime.domain.upcast import Stored, stored
    from .runtime.effects.backoff import Backoff
    from .runtime.effects.call import Call
    from .runtime.effects.results import Declined, Done, NotDone, Unknown
    from .runtime.encoding.envelope import Envelope, derived_id
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
    from .runtime.feed.events import BlockingEvents, read_events
    from .runtime.feed.named_subscriptions import SubscriptionStatus
    from .runtime.feed.subscription import BlockingSubscription
    from .runtime.processes.effects import Effects, Settle, effect, settle
    from .runtime.processes.inputs import End, Retry, Skip
    from .runtime.processes.process import Process, accepted, failed, react, refused, scheduled
    from .runtime.processes.progress import Progress
    from .runtime.read.stores.checkpoint import Quarantined
    from .runtime.read.stores.lmdb import Rows
    from .runtime.read.unreadable import UnreadableEvent
    from .runtime.receipt import Receipt
    from .runtime.sinks.cloud_event import CloudEvent
    from .runtime.sinks.kept_sinks import KeptSink
    from .runtime.sinks.nats import Nats
    from .runtime.sinks.sink import Sink
    from .runtime.sinks.target import NotConfirmed, Target
    from .runtime.sinks.webhook import Webhook
    from .runtime.stream import ANY, NO_STREAM, StreamId
    from .runtime.tables.export_files import Exported
    from .runtime.testing import given, on

__version__ = "0.1.0"

__all__ = [
    "ANY",
    "NO_STREAM",
    "Aggregate",
    "Anchor",
    "Application",
    "Backoff",
    "BlockingConnection",
    "BlockingEvents",
    "BlockingGateway",
    "BlockingOperations",
    "BlockingRebuild",
    "BlockingRuntime",
    "BlockingSession",
    "BlockingSubscription",
    "Call",
    "CallerError",
    "CloudEvent",
    "CodeMismatch",
    "Command",
    "CommandIdReused",
    "Conflict",
    "Connection",
    "Damaged",
    "Declined",
    "DefinitionError",
    "Done",
    "DuckDb",
    "Effects",
    "End",
    "Ended",
    "Envelope",
    "Event",
    "Events",
    "Exported",
    "Fenced",
    "Forget",
    "Gateway",
    "HandlerFailed",
    "Health",
    "InMemory",
    "InvalidId",
    "InvalidMessage",
    "KeptSink",
    "Lmdb",
    "LocalCluster",
    "Misfit",
    "MoveResult",
    "Nats",
    "NotConfirmed",
    "NotDone",
    "NotInHistory",
    "NotPrivate",
    "NotYetVisible",
    "Operations",
    "Overloaded",
    "OwnActor",
    "Payload",
    "Process",
    "Progress",
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
    "Retry",
    "Rows",
    "Runtime",
    "Sealed",
    "Send",
    "Session",
    "Settings",
    "Settle",
    "Shared",
    "Sink",
    "Skip",
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
    "SubscriptionStatus",
    "Target",
    "Unavailable",
    "Undo",
    "Unknown",
    "UnknownEvent",
    "UnknownName",
    "UnreadableEvent",
    "Wake",
    "Webhook",
    "accepted",
    "answer",
    "connect",
    "connect_blocking",
    "decide",
    "derived_id",
    "effect",
    "evolve",
    "failed",
    "forget",
    "given",
    "on",
    "project",
    "react",
    "read_events",
    "refused",
    "scheduled",
    "settle",
    "stored",
    "subscribe",
    "upcast",
    "woken",
]

_NAMES_BY_HOME: Final = {
    ".actors.packaging.application": ("Application",),
    ".actors.api.blocking": ("BlockingOperations", "BlockingRuntime", "BlockingSession"),
    ".actors.api.portal": ("BlockingRebuild",),
    ".actors.api.connection": ("BlockingConnection", "Connection", "connect", "connect_blocking"),
    ".actors.api.events": ("Events",),
    ".actors.api.gateway": ("BlockingGateway", "Gateway"),
    ".actors.api.operations": ("Operations",),
    ".actors.settings": ("Settings",),
    ".actors.cluster.local": ("LocalCluster",),
    ".actors.nodes.move_result": ("MoveResult",),
    ".actors.system.health_check": ("Health",),
    ".actors.projection.rebuild": ("Rebuild", "RebuildProgress"),
    ".actors.api.replica": ("Replica",),
    ".actors.api.session": ("Session",),
    ".actors.observe.status": ("Status",),
    ".actors.api.store_subscription": ("subscribe",),
    ".actors.api.subscriptions": ("Subscription",),
    ".actors.api.runtime": ("Runtime",),
    ".runtime.domain.aggregate": ("Aggregate", "OwnActor", "Shared", "decide", "evolve", "woken"),
    ".runtime.domain.outputs": ("Ended", "Forget", "Send", "Undo", "Wake"),
    ".runtime.effects.call": ("Call",),
    ".runtime.effects.results": ("Declined", "Done", "NotDone", "Unknown"),
    ".runtime.sinks.cloud_event": ("CloudEvent",),
    ".runtime.sinks.kept_sinks": ("KeptSink",),
    ".runtime.sinks.nats": ("Nats",),
    ".runtime.sinks.sink": ("Sink",),
    ".runtime.sinks.target": ("NotConfirmed", "Target"),
    ".runtime.sinks.webhook": ("Webhook",),
    ".runtime.effects.backoff": ("Backoff",),
    ".runtime.processes.effects": ("Effects", "Settle", "effect", "settle"),
    ".runtime.processes.inputs": ("End", "Retry", "Skip"),
    ".runtime.processes.process": ("Process", "accepted", "failed", "react", "refused", "scheduled"),
    ".runtime.processes.progress": ("Progress",),
    ".runtime.backup.anchor": ("Anchor",),
    ".runtime.encoding.envelope": ("Envelope", "derived_id"),
    ".runtime.domain.messages": ("Command", "Event", "Payload", "Query", "upcast"),
    ".runtime.domain.projection": ("Projection", "answer", "forget", "project"),
    ".runtime.read.stores.checkpoint": ("Quarantined",),
    ".runtime.domain.read_store": ("DuckDb", "InMemory", "Lmdb", "ReadStore", "StoreKind"),
    ".runtime.read.stores.lmdb": ("Rows",),
    ".runtime.receipt": ("Receipt",),
    ".runtime.domain.recorded": ("Recorded",),
    ".runtime.testing": ("given", "on"),
    ".runtime.tables.export_files": ("Exported",),
    ".runtime.stream": ("ANY", "NO_STREAM", "StreamId"),
    ".runtime.feed.events": ("BlockingEvents", "read_events"),
    ".runtime.feed.named_subscriptions": ("SubscriptionStatus",),
    ".runtime.feed.subscription": ("BlockingSubscription",),
    ".runtime.read.unreadable": ("UnreadableEvent",),
    ".runtime.domain.upcast": ("Stored", "stored"),
}
_HOME: Final = {name: home for home, names in _NAMES_BY_HOME.items() for name in names}
_HOME_OF_ERRORS: Final = ".runtime.errors"


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one that it cannot know

    def __getattr__(name: str) -> Any:
        """The public `name`, from its home, which is imported now. The error for a misspelt one has a suggestion."""
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
