"""RelayControl: what a program that runs a system on one machine does for others: it answers their questions about the
system, and changes it for them.

Beside all steps. Before it: the `Relay` (`relay.py`), which passes on what a client asks of the system itself. After
it: the system, on the program's own event loop. Classes are named by their stored names, and are those of this program.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError
from ...runtime.read.stores.checkpoint import Quarantined
from ..control import system_calls
from ..control.system_calls import SystemCall
from ..observe.status import Status
from ..projection.rebuild import Rebuild, RebuildProgress, Rebuilds
from ..relay.relay import Control

__all__ = ["RelayControl"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class _Controlled(Protocol):
    """As much of a `LocalSystem` as is needed here."""

    catalogue: Catalogue
    rebuilds: Rebuilds

    async def heads(self) -> dict[int, int]: ...
    async def status(self) -> Status: ...
    async def scale(self, projection: type[Projection], replicas: int) -> None: ...
    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None: ...
    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]: ...
    def begin_own_rebuild(self, projection: type[Projection]) -> int: ...


class RelayControl:
    """The questions and changes, each with its name and the types of its arguments."""

    ANYWHERE: Final = frozenset({system_calls.HEADS.name})
    """What asks only the actors, and so needs nothing of the program's event loop, which may be busy."""

    def __init__(self, system: _Controlled) -> None:
        self._system = system

    def methods(self) -> Control:
        """What may be called."""
        return dict(
            (
                _answered_by(system_calls.HEADS, self._system.heads),
                _answered_by(system_calls.STATUS, self._system.status),
                _answered_by(system_calls.SCALE, self._scale),
                _answered_by(system_calls.REBUILD_STREAM, self._rebuild_stream),
                _answered_by(system_calls.RETRY_QUARANTINED, self._retry_quarantined),
                _answered_by(system_calls.BEGIN_REBUILD, self._begin_rebuild),
                _answered_by(system_calls.AWAIT_REBUILD, self._await_rebuild),
                _answered_by(system_calls.WATCH_REBUILD, self._watch_rebuild),
                _answered_by(system_calls.CANCEL_REBUILD, self._cancel_rebuild),
            )
        )

    async def _scale(self, projection: str, replicas: int) -> None:
        await self._system.scale(self._system.catalogue.projection(projection), replicas)

    async def _rebuild_stream(self, projection: str, aggregate: str, id: str) -> None:
        catalogue = self._system.catalogue
        await self._system.rebuild_stream(catalogue.projection(projection), catalogue.aggregate(aggregate), id)

    async def _retry_quarantined(self, projection: str) -> tuple[Quarantined, ...]:
        return await self._system.retry_quarantined(self._system.catalogue.projection(projection))

    async def _begin_rebuild(self, projection: str, version: int) -> int:
        """With the class of this program, of which the client has to have the same version."""
        cls = self._system.catalogue.projection(projection)
        if cls.projection_version != version:
            here = f"the program that runs the system has version {cls.projection_version}"
            what = f"{projection} version {version} cannot be built for this program: {here}"
            raise CallerError(f"{what}; rebuild it there, or start the system with the new class")
        return self._system.begin_own_rebuild(cls)

    def _rebuild(self, number: int) -> Rebuild:
        return self._system.rebuilds.of(number)

    async def _await_rebuild(self, number: int) -> RebuildProgress:
        return await self._rebuild(number)

    async def _watch_rebuild(self, number: int) -> RebuildProgress:
        return self._rebuild(number).progress()

    async def _cancel_rebuild(self, number: int) -> None:
        await self._rebuild(number).cancel()


def _answered_by(
    call: SystemCall[T, *Arguments], answer: Callable[[*Arguments], Coroutine[Any, Any, T]]
) -> tuple[str, tuple[Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...]]]:
    return call.name, (answer, call.types)
