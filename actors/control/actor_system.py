"""ActorSystem: the actors of one system, as the process has them that supervises them: this program on one machine
(`system/local.py`), a supervisor on a cluster (`supervision.py`). What both do with them is here.

Beside all steps. What differs is who places the actors, and so where they are (`Placement`); and who watches them
(`system/liveness.py`, `replacements.py`). A program of which neither is true has a `RemoteSystem`, which asks the
supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from ...runtime.checks.fit import check_fit
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import Unavailable
from ...runtime.printable import printable_log
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.sinks.sink import Sink
from ..cluster.retry import Patience, retried
from ..cluster.rpc import call, one_line
from ..nodes.store import AnyStore
from ..observe.metrics import Metrics
from ..observe.status import Observer, SinkStatus, Status
from ..partition.handle import PartitionHandle
from ..projection.fleet import ProjectorFleet
from ..projection.rebuild import FleetRebuild, Rebuilds
from ..settings import Settings
from ..sinks.handle import SinksAnswer, SinksHandle

__all__ = ["ActorSystem", "OneMachinePlacement", "Placement"]

log = printable_log(__name__)

_TICK_S: Final = 2.0
"""How often partitions look for own actors that came up or fell idle while no command arrived, projectors into the
logs, and metrics are recorded."""


class Placement(Protocol):
    """Where the actors of a system are placed now."""

    @property
    def store(self) -> AnyStore:
        """The store, with what is known now of where it is."""
        ...

    def partitions(self) -> Mapping[int, PartitionHandle]:
        """The actor of each partition."""
        ...

    def unreachable(self) -> Mapping[int, str]:
        """Partition -> why nothing reaches it now."""
        ...

    def called(self, partition: int) -> str:
        """What errors call a partition."""
        ...


S = TypeVar("S")


class OneMachinePlacement(Generic[S]):
    """The placement of a system on one machine: its partitions are where its program is."""

    def __init__(self, store: S, actors: Iterable[Any] = ()) -> None:
        self.store = store
        self.actors: list[Any] = [*actors]
        """By the number of their partition."""

    def partitions(self) -> dict[int, PartitionHandle]:
        """See `Placement`."""
        return dict(enumerate(self.actors))

    def unreachable(self) -> dict[int, str]:
        """See `Placement`: what does not answer is being started again."""
        return {}

    def called(self, partition: int) -> str:
        """See `Placement`."""
        return f"partition {partition}"


class ActorSystem:
    """One system. Used on one event loop only."""

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self.catalogue = catalogue
        self.rebuilds = Rebuilds()
        """Those that were begun here."""
        self.settings = settings
        """All bounds and deadlines."""
        self._observer: Observer | None = None
        """From the first status on."""
        self.sinks: SinksHandle | None = None
        """The actor that publishes; None where there are no sinks."""

    @property
    def placement(self) -> Placement:
        """Where its actors are."""
        raise NotImplementedError

    @property
    def fleet(self) -> ProjectorFleet:
        """Its projectors."""
        raise NotImplementedError

    async def heads(self) -> dict[int, int]:
        """The head of every partition's log. Raises `Unavailable` for one that does not answer in time, by name."""
        numbers = list(self.placement.partitions())
        return dict(zip(numbers, await asyncio.gather(*map(self._head, numbers)), strict=True))

    async def _head(self, number: int) -> int:
        """Asks until it is answered: a partition that was killed is there again in a second or two."""
        placement, limit_s = self.placement, self.settings.timeout_s

        async def asked(left_s: float) -> int:
            if number in placement.unreachable():
                raise _Unreachable
            return await call(placement.partitions()[number].head, timeout_s=left_s)

        try:
            return await retried(asked, Patience(limit_s, never=(_Unreachable,)))
        except Exception as error:
            why = placement.unreachable().get(number, f"no answer in {limit_s} s")
            raise Unavailable(placement.called(number), why) from error

    async def status(self) -> Status:
        """Asks every actor; one that does not answer within five seconds is shown as silent."""
        if self._observer is None:
            self._observer = Observer(self.placement.store)
        projectors = {one.name: one.actor for one in self.fleet.projectors()}
        seen, sinks = await asyncio.gather(
            self._observer.observe(self.placement.partitions(), projectors), self._sinks_answer()
        )
        heads = {one.partition: one.head for one in seen.partitions}
        return seen._replace(sinks=[_sink_status(sink, sinks, heads) for sink in self._sinks()])

    def _sinks(self) -> list[Sink]:
        """Those that are published: in memory none are."""
        return [one for one in self.catalogue.sinks if isinstance(one, Sink) and self.sinks is not None]

    async def _sinks_answer(self) -> SinksAnswer | None:
        """None where it does not answer, or there is none."""
        if self.sinks is not None:
            with contextlib.suppress(Exception):
                return await call(self.sinks.status)
        return None

    async def scale(self, projection: type[Projection], replicas: int) -> None:
        """See `Runtime.scale`."""
        await self.fleet.scale(projection, replicas)

    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """See `Runtime.rebuild_stream`."""
        await self.fleet.rebuild_stream(projection, aggregate, id)

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """See `Runtime.retry_quarantined`."""
        return await self.fleet.retry_quarantined(projection)

    def begin_rebuild(self, projection: type[Projection], classes: bytes) -> int:
        """Have a read model built anew from the log, beside the one that serves. The number of the rebuild."""
        return self.rebuilds.add(FleetRebuild(self.fleet, projection, classes))

    async def interrupt_rebuilds(self) -> None:
        """It stops: they end, and the next one goes on with what they have made."""
        await asyncio.gather(*(rebuild.interrupt() for rebuild in self.rebuilds))

    def check_fit(self, name: str, partitions: Iterable[int]) -> None:
        """Raises `CodeMismatch`, before anything runs, if the classes do not fit what these partitions hold. Reads the
        logs."""
        with contextlib.ExitStack() as opened:
            readers = {number: self.placement.store.open_reader(number) for number in partitions}
            for reader in readers.values():
                opened.callback(reader.close)
            check_fit(name, self.catalogue, readers, self.agendas_here())

    def agendas_here(self) -> Path | None:
        """The folder of the agendas, where they are on this machine."""
        return None

    async def tick(self) -> None:
        """Have actors do what has to happen now and then; permanently."""
        while True:
            await asyncio.sleep(_TICK_S)
            for actor in self.placement.partitions().values():
                with contextlib.suppress(Exception):
                    actor.tick.remote()
            self.fleet.tick()
            if self.sinks is not None:
                with contextlib.suppress(Exception):
                    self.sinks.open.remote()

    async def measure(self, name: str) -> None:
        """Record the metrics of all actors; permanently. Apart from the ticks, since it waits for actors that do not
        answer."""
        metrics = Metrics(name)
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                metrics.record(await self.status())
            except Exception as error:
                log.info("no metrics: %s", one_line(error))


def _sink_status(sink: Sink, answer: SinksAnswer | None, heads: Mapping[int, int]) -> SinkStatus:
    facts = next((one for one in answer.sinks if one.name == sink.name), None) if answer is not None else None
    if answer is None or facts is None:
        return SinkStatus(sink.name, answer.pid if answer is not None else 0, alive=answer is not None)
    at = facts.positions
    behind = sum(max(head - at[one], 0) for one, head in heads.items()) if at.keys() >= heads.keys() else None
    rest = facts.published, facts.failing_s, facts.failure, facts.unconfirmed
    return SinkStatus(sink.name, answer.pid, True, facts.on, at, behind, *rest)


class _Unreachable(Exception):
    """It need not be asked."""
