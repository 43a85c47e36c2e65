"""SystemCalls: what a program asks of a system that other processes run, or has changed there: one table for all.

Beside all steps. A call travels through Ray to the supervisor (`../system/remote.py`), over a relay to the program that
runs the system (`../system/relayed.py`, answered by `relay_control.py` there), or over the relay of a node agent to the
supervisor (`node_relay.py`).

Rule kept here: what only reads may be made again; what changes something is made once, since whether a lost call took
effect is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

from ..cluster.rpc import Method, Reply
from .handle import SupervisorHandle
from .supervisor_link import ASK_TIMEOUT_S, PATIENCE_S

__all__ = [
    "ALL",
    "AWAIT_REBUILD",
    "BEGIN_REBUILD",
    "CANCEL_REBUILD",
    "DRAIN",
    "HEADS",
    "LONG_S",
    "MOVE",
    "REBALANCE",
    "REBUILD_STREAM",
    "RETRY_QUARANTINED",
    "SCALE",
    "STATUS",
    "VERIFY",
    "WATCH_REBUILD",
    "SystemCall",
]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

LONG_S: Final = 24 * 3600.0
"""For what moves, rebuilds or verifies something."""


@dataclass(frozen=True, slots=True)
class SystemCall(Generic[T, *Arguments]):
    """One call: its name at a relay, and the method of the supervisor that answers it."""

    name: str
    method: Callable[[SupervisorHandle], Method[Reply[T], *Arguments]]
    types: tuple[Any, ...] = ()
    """Of the arguments, for a relay, which checks them."""
    timeout_s: float = ASK_TIMEOUT_S
    changes: bool = True
    """It is made once."""
    takes_nodes: bool = False
    """A system on one machine refuses it."""

    @property
    def patience_s(self) -> float:
        """How long it is made again."""
        return 0.0 if self.changes else PATIENCE_S


HEADS: Final = SystemCall("heads", lambda one: one.heads, changes=False)
STATUS: Final = SystemCall("status", lambda one: one.status, changes=False)
VERIFY: Final = SystemCall("verify", lambda one: one.verify, timeout_s=LONG_S, changes=False)
MOVE: Final = SystemCall("move", lambda one: one.move, (int, str), LONG_S, takes_nodes=True)
REBALANCE: Final = SystemCall("rebalance", lambda one: one.rebalance, (), LONG_S, takes_nodes=True)
DRAIN: Final = SystemCall("drain", lambda one: one.drain, (str, bool), LONG_S, takes_nodes=True)
SCALE: Final = SystemCall("scale", lambda one: one.scale, (str, int), LONG_S)
REBUILD_STREAM: Final = SystemCall("rebuild_stream", lambda one: one.rebuild_stream, (str, str, str), LONG_S)
RETRY_QUARANTINED: Final = SystemCall("retry_quarantined", lambda one: one.retry_quarantined, (str,), LONG_S)
BEGIN_REBUILD: Final = SystemCall("begin_rebuild", lambda one: one.begin_deployed_rebuild, (str, int))
AWAIT_REBUILD: Final = SystemCall("await_rebuild", lambda one: one.await_rebuild, (int,), LONG_S, changes=False)
WATCH_REBUILD: Final = SystemCall("watch_rebuild", lambda one: one.watch_rebuild, (int,), changes=False)
CANCEL_REBUILD: Final = SystemCall("cancel_rebuild", lambda one: one.cancel_rebuild, (int,))

ALL: Final[Sequence[SystemCall[Any, *tuple[Any, ...]]]] = (
    *(HEADS, STATUS, VERIFY, MOVE, REBALANCE, DRAIN, SCALE, REBUILD_STREAM, RETRY_QUARANTINED),
    *(BEGIN_REBUILD, AWAIT_REBUILD, WATCH_REBUILD, CANCEL_REBUILD),
)
