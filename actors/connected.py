"""Connected: a program's end of a spread system: a client that is told where everything is, and asks the supervisor.

Steps [1], [2] and [8], for a system that is supervised in an actor of its own (`supervision.py`). It has what an
`Assembly` has for a runtime. It waits at the board (`board.py`) all the time, so that a partition that has moved,
replicas that have joined and nodes that are gone are known here as soon as they are there.

Rule kept here: commands and queries go straight to the actors that execute and answer them, and go on when the
supervisor is away; only what changes the system needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

from ..runtime.catalogue import Catalogue
from ..runtime.errors import RayfoldError, Unavailable, UnknownName
from ..runtime.printable import printable_log
from ..runtime.projection import Projection
from ..runtime.wire import from_wire
from .board import Notice, ServedParts, supervisor_name
from .calls import call, one_line
from .client import Client
from .cluster import Cluster
from .garbage import look_less_often
from .remote_rebuild import RemoteRebuild
from .spread_store import SpreadStore
from .status import Status

__all__ = ["LONG_S", "Connected"]

log = printable_log(__name__)

_READ_TIMEOUT_S: Final = 20.0
"""For one wait at the board, which is answered at the latest then: an answer that was lost is asked for again."""

_SLOW_S: Final = 5.0
_RETRY_S: Final = 0.25
_ASK_TIMEOUT_S: Final = 60.0
"""For what the supervisor is asked to do; it may just be starting."""

_QUESTIONS: Final = frozenset({"heads", "status", "verify", "deployed", "deploying", "await_rebuild", "watch_rebuild"})
_PATIENCE_S: Final = 15.0
"""How long a question is asked again: a supervisor that was killed is there again in some 2 s."""

LONG_S: Final = 24 * 3600.0
"""For what moves or rebuilds something."""


class Connected:
    """A program's connection to one spread system. Lives on its event loop."""

    def __init__(self, name: str, catalogue: Catalogue | None) -> None:
        """`catalogue`: the classes of this program, if it has started the system; else those that were deployed."""
        self.store: SpreadStore
        self.client: Client
        self.catalogue: Catalogue
        self._name = name
        self._cluster: Cluster
        self._own = catalogue
        self._notice: Notice
        self._partitions: list[str] = []
        self._told_of: dict[str, int] = {}
        """Projections of which another version serves than this program has."""
        self._undo = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Find the system, and `attach` to it."""
        raise NotImplementedError

    async def attach(self, cluster: Cluster) -> None:
        """Return once commands and queries can be sent. Raises `Unavailable` if nothing of that name runs there."""
        self._cluster = cluster
        from .shipping import unship  # it imports ray, which `Cluster` prepares

        notice, handles = await self._first_notice()
        self.catalogue = self._own or unship(notice.catalogue, code_first=False)
        others = self._own is None
        self.client = Client(
            self.catalogue,
            handles,
            self._cluster.actor_named,
            notice.settings,
            placement=notice.store.placement,
            store_id=notice.store.store_id,
            classes_of_others=others,
        )
        self._undo.push_async_callback(self.client.drain, _SLOW_S)
        self._partitions = list(notice.partitions)
        self._take(notice)
        if notice.settings.tune_garbage_collector:
            self._undo.callback(look_less_often())
        watching = asyncio.create_task(self._watch())
        self._undo.callback(watching.cancel)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return self._cluster.address

    async def stop(self, grace_s: float = 0.0) -> None:
        """Let go; the system goes on."""
        await self._undo.aclose()

    async def heads(self) -> dict[int, int]:
        """The head of every partition's log. Raises `Unavailable` for one that cannot be reached, by name."""
        heads: dict[int, int] = await self.ask("heads")
        return heads

    async def status(self) -> Status:
        """See `Runtime.status`."""
        status: Status = await self.ask("status")
        return status

    async def scale(self, projection: type[Projection], replicas: int) -> None:
        """See `Runtime.scale`."""
        await self.ask("scale", self._named(projection), replicas, timeout_s=LONG_S)

    async def rebuild_stream(self, projection: type[Projection], aggregate: Any, id: str) -> None:
        """See `Runtime.rebuild_stream`."""
        kind = getattr(aggregate, "aggregate_type", str(aggregate))
        await self.ask("rebuild_stream", self._named(projection), kind, id, timeout_s=LONG_S)

    async def retry_quarantined(self, projection: type[Projection]) -> Any:
        """See `Runtime.retry_quarantined`."""
        return await self.ask("retry_quarantined", self._named(projection), timeout_s=LONG_S)

    def rebuild(self, projection: type[Projection]) -> RemoteRebuild:
        """See `Runtime.rebuild`."""
        from .shipping import ship

        self._named(projection)
        classes = ship(self.catalogue.narrowed(projection))
        return RemoteRebuild(self, projection, classes)

    async def ask(self, what: str, *arguments: Any, timeout_s: float = _ASK_TIMEOUT_S) -> Any:
        """Have the supervisor do something. Raises what it tells, and `Unavailable` if it does not answer.

        A mere question is asked again while the supervisor is being started again; what changes something is not, for
        nobody knows whether it was done."""
        deadline_s = time.monotonic() + (_PATIENCE_S if what in _QUESTIONS else 0.0)
        while True:
            try:
                error, answer = await call(self._supervisor().ask, what, *arguments, timeout_s=timeout_s)
            except RayfoldError:
                raise
            except Exception as failure:
                if time.monotonic() >= deadline_s:
                    raise Unavailable(self._name, f"its supervisor does not answer: {one_line(failure)}") from failure
                await asyncio.sleep(_RETRY_S)
            else:
                if error:
                    raise from_wire(error)
                return answer

    # -------------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Wait at the board, for ever."""
        while True:
            try:
                notice = await self._read(self._notice.edition)
                if notice is not None:
                    self._take(notice)
            except Exception as error:  # the supervisor is away: what is known here still holds
                log.info("%s tells no news: %s", self._name, one_line(error))
                await asyncio.sleep(_RETRY_S)

    async def _first_notice(self) -> tuple[Notice, list[Any]]:
        """A notice, and the partitions' actors that it names, however often it has to be asked for: the system may just
        be starting, or starting again, or replacing what is named."""
        deadline_s = time.monotonic() + _ASK_TIMEOUT_S
        while True:
            try:
                notice = await self._read("")
                if notice is not None:
                    return notice, [self._cluster.actor_named(name) for name in notice.partitions]
            except RayfoldError:
                raise
            except Exception as error:
                if time.monotonic() > deadline_s:
                    what = f"it has not come up within {_ASK_TIMEOUT_S:g} s: {one_line(error) or 'no answer'}"
                    raise Unavailable(self._name, what) from error
                await asyncio.sleep(_RETRY_S)

    async def _read(self, edition: str) -> Notice | None:
        reading = self._supervisor().read
        notice: Notice | None = await call(reading, edition, _READ_TIMEOUT_S, timeout_s=_READ_TIMEOUT_S + _SLOW_S)
        return notice

    def _take(self, notice: Notice) -> None:
        """This is how things are now."""
        self._notice, self.store = notice, notice.store
        for number, name in enumerate(notice.partitions):
            if self._partitions[number] != name:
                with contextlib.suppress(ValueError):  # it has been replaced again since
                    self.client.replace_partition(number, self._cluster.actor_named(name))
                    self._partitions[number] = name
        self.client.tell_unavailable(notice.unavailable)
        for name, served in notice.projections.items():
            projection = self.catalogue.projections.get(name)
            if projection is None or not self._may_serve(projection, served):
                continue
            try:
                parts = [[self._cluster.actor_named(replica) for replica in part] for part in served.parts]
            except ValueError:  # some have ended since, and another notice says so
                continue
            self.client.serve(projection, parts)

    def _may_serve(self, projection: type[Projection], served: ServedParts) -> bool:
        """Whether queries as this program's class makes them find their way to what serves."""
        name, version = projection.projection_name, projection.projection_version
        if version != served.version and self._told_of.get(name) != served.version:
            self._told_of[name] = served.version
            log.warning("%s version %d serves, and this program has version %d", name, served.version, version)
        return projection.parts == len(served.parts)

    def _supervisor(self) -> Any:
        try:
            return self._cluster.actor_named(supervisor_name(self._name))
        except ValueError:
            what = "nothing of that name runs on this cluster; `rayfold deploy` starts it"
            raise Unavailable(self._name, what) from None

    def _named(self, projection: type[Projection]) -> str:
        name = getattr(projection, "projection_name", "")
        if name not in self.catalogue.projections:
            known = list(self.catalogue.projections)
            raise UnknownName("projection", getattr(projection, "__name__", str(projection)), known)
        return str(name)
