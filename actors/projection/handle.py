"""ProjectorHandle: a projector's actor, as its fleet calls it, and as much of a partition's as it needs.

Beside steps [6] to [8]. Queries and broadcasts do not come this way. `start_projector` has the type checker compare it
with the actor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.stream import StreamId
from ..cluster.rpc import Method, Reply
from .readiness import Probed
from .status_records import Place, ProjectorAnswer

__all__ = ["BroadcasterHandle", "ProjectorHandle"]


class ProjectorHandle(Protocol):
    """The methods of `ProjectorActor` (`actor.py`) that open it, read its state, and mend it."""

    @property
    def open(self) -> Method[Reply[None]]: ...
    @property
    def come_to(self) -> Method[Reply[None], Mapping[int, int], float]: ...
    @property
    def tick(self) -> Method[None]: ...
    @property
    def status(self) -> Method[Reply[ProjectorAnswer]]: ...
    @property
    def place(self) -> Method[Reply[Place]]: ...
    @property
    def process_id(self) -> Method[Reply[int]]: ...
    @property
    def asked(self) -> Method[Reply[list[PackedQuery]]]: ...
    @property
    def probe(self) -> Method[Reply[list[Probed]], Sequence[PackedQuery]]: ...
    @property
    def rebuild_stream(self) -> Method[Reply[None], StreamId]: ...
    @property
    def retry_quarantined(self) -> Method[Reply[tuple[Quarantined, ...]]]: ...
    @property
    def close(self) -> Method[Reply[None], bool]: ...


class BroadcasterHandle(Protocol):
    """The method of a partition's actor that sets its projectors."""

    @property
    def set_projectors(self) -> Method[Reply[None], tuple[str, ...]]: ...
