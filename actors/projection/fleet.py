"""ProjectorFleet: the projectors of a running system, parts x replicas of each projection, and who broadcasts to them.

Beside steps [6] to [8]. Before it: the assembly, which starts the projectors first and the partitions after. After it:
the client, which gets the present projectors of each projection.

Rules kept here: a projector joins in this order: it starts and catches up with the log; the partitions broadcast to it;
it catches up with what was committed in between; only then is it asked. It leaves in the opposite order, and ends when
the queries sent to it are answered. Whatever fails on the way ends what was started and leaves what serves as it was.
One change of a projection at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.projection import Projection
from ...runtime.domain.read_store import InMemory
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.errors import CallerError, RayfoldError, Unavailable, UnknownName
from ...runtime.log.format import stream_id
from ...runtime.printable import printable_log
from ...runtime.read.read_model import Quarantined
from ..cluster.names import projector_name
from ..cluster.retry import Patience, retried
from ..cluster.rpc import Method, Reply, call, kill, one_line
from ..cluster.scheduling import Scheduling
from ..nodes.store import AnyStore
from ..packaging.application import check_replicas
from ..packaging.builds import Build, Builds, ProjectionFacts
from ..settings import Settings
from .handle import BroadcasterHandle, ProjectorHandle
from .readiness import Looked, Probed, check_answers, check_projector, furthest
from .status_records import Place

__all__ = [
    "CatchingUp",
    "ProjectorFleet",
    "Projector",
    "ServedBuild",
    "all_caught_up",
    "catch_up",
    "end",
    "look_at",
]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

log = printable_log(__name__)

_FAILURES_MAX: Final = 8
"""Calls that a projector may fail while it catches up: each stands for a process that was killed, or that Ray could not
start; after so many it is a rule and no accident."""

_RETRY_S: Final = 0.25

_PATIENCE_S: Final = 5.0
"""How long a start waits for projectors that are reading the log, when nothing else has to be waited for: some hundred
thousand events."""

_OPENING_S: Final = 60.0
"""The same for those that are up and have not restored their checkpoint: a problem with their code or their database is
known by then, also on a machine where everything starts at once."""

_UP_S: Final = 300.0
"""For the processes of projectors to be up. More means that something is broken."""

_COME_S: Final = 10.0
"""For a new projector to take in what was broadcast to those that serve: milliseconds, and more on a busy machine."""

_PROBE_TIMEOUT_S: Final = 30.0
"""For the answers to a few queries, one of each kind."""

_PROBES_MAX: Final = 2
"""Tries of one projector: its process may be killed in the middle of the first; a query that ends it does so twice."""


Serve = Callable[[type[Projection], Sequence[Sequence[Any]]], None]
"""Has the queries to a projection go to these actors from now on: for each part its replicas."""


class Projector(NamedTuple):
    """One projector: which part and replica it is, and how to reach it."""

    part: int
    replica: int
    name: str
    """In Ray; never used twice."""
    folder: Path
    actor: ProjectorHandle


@dataclass(slots=True)
class ServedBuild:
    """A build of a read model and the projectors that hold it."""

    projection: type[Projection] | ProjectionFacts
    build: Build
    catalogue: bytes
    """What its projectors are started with; see `shipping.py`."""
    projectors: list[Projector] = field(default_factory=list)
    generation: int | None = None
    """The generation of that code, if it is not the one that the system runs."""

    @property
    def replicas(self) -> int:
        """How many there are of each part."""
        return 1 + max((projector.replica for projector in self.projectors), default=-1)

    def by_part(self) -> list[list[Projector]]:
        """For each part its replicas."""
        parts = 1 + max((projector.part for projector in self.projectors), default=-1)
        return [[projector for projector in self.projectors if projector.part == part] for part in range(parts)]

    def parts(self) -> list[list[Any]]:
        """The actors: for each part its replicas."""
        return [[projector.actor for projector in part] for part in self.by_part()]


class CatchingUp(NamedTuple):
    """A projection that serves, and still reads what the logs hold."""

    projection: str
    events: int
    """Events applied by the slowest projector."""
    of: int
    """How many there are; 0 while that projector opens what it has saved."""


class ProjectorFleet:
    """The projections of one runtime. Used on its event loop only."""

    def __init__(
        self,
        store: Callable[[], AnyStore],
        catalogue: Catalogue,
        name: str,
        namespace: str,
        builds: Builds,
        scheduling: Scheduling,
        settings: Settings,
    ) -> None:
        """`store`: as it is now, for projectors that are started."""
        self.serving: dict[str, ServedBuild] = {}
        """By the projection's name: what queries go to."""
        self.joining: list[ServedBuild] = []
        """What is being built beside it."""
        self._store = store
        self._catalogue = catalogue
        self._name = name
        self._namespace = namespace
        self._builds = builds
        self._scheduling = scheduling
        self._settings = settings
        self._partitions: Sequence[BroadcasterHandle] = ()
        self._serve: Serve = _to_nobody
        self._changing: set[str] = set()
        self._ticks: dict[str, Any] = {}
        self._late: set[asyncio.Future[None]] = set()
        """Projectors that no call waits for any more while they catch up."""
        self._failed: set[str] = set()
        """The names of projectors whose processes kept ending while they caught up."""

    # --- starting and ending -------------------------------------------------------------------------------------

    async def start(self, projection: type[Projection], replicas: int, catalogue: bytes) -> None:
        """Start the projectors of a projection, with the build that served last."""
        served = ServedBuild(projection, await self._builds.to_serve(projection), catalogue)
        served.projectors = self._start(served, range(replicas))
        self.serving[projection.projection_name] = served

    async def open(self, projectors: Sequence[Projector] | None = None) -> None:
        """Return once these projectors, or all, have come to where the logs end now; without those that only have to
        read on, when the others have been there for a while: queries to them are answered from where they are.

        One whose process keeps ending holds up neither those that wait for it here nor its neighbours. Raises what
        keeps one from opening, and `Unavailable` if its process is not up."""
        waited = self.projectors() if projectors is None else projectors
        opening = {one.name: asyncio.ensure_future(self._caught_up_or_failed(one)) for one in waited}
        try:
            await self._wait_for(waited, opening)
            for task in opening.values():
                if task.done():
                    task.result()
        except BaseException:
            for task in opening.values():
                task.cancel()
            raise
        for name, task in opening.items():
            if not task.done():
                log.warning("%s is still reading the log; queries to it are answered from where it is", name)
                self._late.add(task)
                task.add_done_callback(partial(self._opened_late, name))

    async def _wait_for(self, projectors: Sequence[Projector], opening: Mapping[str, asyncio.Future[None]]) -> None:
        """Return once one has failed, or none of those that are missing has to be waited for."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while late := [one for one in projectors if not opening[one.name].done()]:
            tasks = [opening[one.name] for one in late]
            done, _ = await asyncio.wait(tasks, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() for task in done):
                return
            if done:
                continue
            places, waited_s = await self.places(late), loop.time() - began_s
            if len(places) < len(late) and waited_s > _UP_S:
                raise Unavailable(", ".join(one.name for one in late), f"it was not up within {_UP_S:g} s")
            if len(places) == len(late) and (waited_s > _OPENING_S or all(place.positions for place in places)):
                return

    async def _caught_up_or_failed(self, projector: Projector) -> None:
        """Once it has caught up, or its process has ended so often that nothing should wait for it any more. Ray starts
        it again with each call; queries to it are refused, with the event once one is known to end it."""
        try:
            await _caught_up(projector)
        except _ProjectorFailed as failure:
            self._failed.add(projector.name)
            log.error("%s; all others start without it", failure)

    def _opened_late(self, name: str, opened: asyncio.Future[None]) -> None:
        self._late.discard(opened)
        if not opened.cancelled() and (failure := opened.exception()) is not None:
            log.error("%s: %s", name, failure)

    async def attach(self, partitions: Sequence[Any], serve: Serve) -> None:
        """All are up: from now on `serve` gets the targets of queries, and `partitions` every change."""
        self.use_partitions(partitions)
        self._serve = serve
        for served in list(self.serving.values()):
            await self.put_in_charge(served)
            await self._builds.remove_older(served.projection.projection_name, served.build)

    def use_partitions(self, partitions: Sequence[Any]) -> None:
        """From now on these get the list of projectors to broadcast to."""
        self._partitions = partitions

    def names(self) -> tuple[str, ...]:
        """The names in Ray of all projectors to broadcast to."""
        return tuple(projector.name for projector in self.projectors())

    def projectors(self) -> list[Projector]:
        """Those that serve, and those that are about to."""
        return [projector for served in (*self.serving.values(), *self.joining) for projector in served.projectors]

    def tick(self) -> None:
        """Send partitions the list of projectors to broadcast to, which a restarted one has lost, and have projectors
        read the log and save their place. At most one tick of each is on its way."""
        names = self.names()
        for partition in self._partitions:
            with contextlib.suppress(Exception):
                partition.set_projectors.remote(names)
        ticks = {}
        for projector in self.projectors():
            tick = self._ticks.get(projector.name)
            with contextlib.suppress(Exception):
                ticks[projector.name] = projector.actor.tick.remote().future() if not tick or tick.done() else tick
        self._ticks = ticks

    async def close(self) -> None:
        """End every projector; each saves its place first, as far as it gets in five seconds."""
        for late in self._late:
            late.cancel()
        await end(self.projectors(), save=True)

    # --- changing ------------------------------------------------------------------------------------------------

    async def scale(self, projection: type[Projection], replicas: int) -> None:
        """Have this many replicas of each part. Returns once they serve."""
        check_replicas(projection, replicas)
        served = self.serving_build(projection)
        with self.change(projection.projection_name, "scaled"):
            if replicas > served.replicas:
                await self._add(served, range(served.replicas, replicas))
            elif replicas < served.replicas:
                await self._remove(served, replicas)

    async def _add(self, served: ServedBuild, replicas: range) -> None:
        before = list(served.projectors)
        assert isinstance(served.projection, type)
        if isinstance(served.projection.read_store, InMemory):
            for part, replica in product(range(served.projection.parts), replicas):
                await self._builds.lend_checkpoint(served.build, part, replica)
        added = self._start(served, replicas)
        try:
            await catch_up(added)
            served.projectors = before + added
            await self.announce()
            await catch_up(added)
            await self.check_ready(added, before)
            await self.put_in_charge(served)
        except BaseException:
            served.projectors = before
            await asyncio.shield(self._retire(served.build, added))
            raise

    async def _remove(self, served: ServedBuild, replicas: int) -> None:
        ended = [projector for projector in served.projectors if projector.replica >= replicas]
        served.projectors = [projector for projector in served.projectors if projector.replica < replicas]
        await self.put_in_charge(served)
        await asyncio.shield(self._retire(served.build, ended))

    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """Have every projector forget what one aggregate has contributed, and apply its events again."""
        known = self._catalogue.aggregates
        if aggregate is not known.get(getattr(aggregate, "aggregate_type", "")):
            raise UnknownName("aggregate", getattr(aggregate, "__name__", str(aggregate)), list(known))
        served, stream = self.serving_build(projection), stream_id(aggregate.aggregate_type, id)
        with self.change(projection.projection_name, "mended"):
            await _every(served.projectors, lambda actor: actor.rebuild_stream, stream)

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """Have every projector apply the events again that its handlers failed on. Returns those that fail still."""
        served = self.serving_build(projection)
        with self.change(projection.projection_name, "mended"):
            answers = await _every(served.projectors, lambda actor: actor.retry_quarantined)
        return tuple(dict.fromkeys(entry for entries in answers for entry in entries))

    # --- what rebuild.py is made of ------------------------------------------------------------------------------

    def serving_build(self, projection: type[Projection]) -> ServedBuild:
        """The build that answers the queries to a projection. Raises `UnknownName`."""
        served = self.serving.get(getattr(projection, "projection_name", ""))
        if served is None:
            raise UnknownName("projection", getattr(projection, "__name__", str(projection)), list(self.serving))
        return served

    def is_changing(self) -> bool:
        """Whether a change of any projection is under way."""
        return bool(self._changing)

    @contextlib.contextmanager
    def change(self, projection: str, what: str) -> Iterator[None]:
        """Hold a projection for one change. Raises `CallerError` if there is one under way."""
        if projection in self._changing:
            raise CallerError(f"{projection} cannot be {what} now: another change of it is under way; await that first")
        self._changing.add(projection)
        try:
            yield
        finally:
            self._changing.discard(projection)

    def join(
        self,
        projection: type[Projection] | ProjectionFacts,
        build: Build,
        replicas: int,
        catalogue: bytes,
        generation: int | None = None,
    ) -> ServedBuild:
        """Start the projectors of a build that is to serve once it is complete."""
        served = ServedBuild(projection, build, catalogue, generation=generation)
        served.projectors = self._start(served, range(replicas))
        self.joining.append(served)
        return served

    def check_version(self, projection: type[Projection]) -> None:
        """Raises `CallerError` for a class that is older than the one that serves, and `UnknownName`."""
        serving = self.serving_build(projection)
        if projection.projection_version < serving.build.version:
            older = f"{projection.projection_name} version {projection.projection_version}"
            what = f"{older} is older than version {serving.build.version}, which serves"
            raise CallerError(f"{what}; raise the version of the class")

    async def build_beside(self, projection: type[Projection]) -> Build:
        """The build that a rebuild of this class makes: a later one than the one that serves."""
        return await self._builds.to_make(projection, self.serving_build(projection).build)

    async def places(self, projectors: Sequence[Projector]) -> list[Place]:
        """How far they have come; without those that do not answer in time."""
        asked = (call(projector.actor.place) for projector in projectors)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def check_ready(self, projectors: Sequence[Projector], before: Sequence[Projector]) -> None:
        """Raises why these projectors, which have caught up, may not be asked (`readiness.py`). `before`: those that
        serve now; what they do not answer, and what they have set aside, is not a new fault."""
        serving = await look_at(before)
        coming = (call(one.actor.come_to, furthest(serving), _COME_S, timeout_s=2 * _COME_S) for one in projectors)
        await asyncio.gather(*coming, return_exceptions=True)
        for projector, looked in zip(projectors, await look_at(projectors), strict=True):
            check_projector(projector.name, looked, serving)
            beside = next((other for other in before if other.part == projector.part), None)
            if beside is None:
                continue
            asked = await _asked(beside)
            failing = [answer for answer in await _probe(projector, asked) if answer.error]
            if failing:
                check_answers(projector.name, await _probe(beside, asked, needed=False), failing)

    async def check_started(self) -> None:
        """Raises why a projector of what serves may not be asked. One that only has to read on may be: it answers from
        where it is. One whose process kept ending looks like that while it is being started again, and may not."""
        for served in list(self.serving.values()):
            looked = zip(served.projectors, await look_at(served.projectors), strict=True)
            waited = [
                one
                for one, found in looked
                if found.up_to_date or found.failed or found.quarantined or one.name in self._failed
            ]
            await self.check_ready(waited, ())

    async def catching_up(self) -> tuple[CatchingUp, ...]:
        """The projections of which a projector has not caught up yet since it was started."""
        served = list(self.serving.values())
        places = await asyncio.gather(*(self.places(one.projectors) for one in served))
        pairs = zip(served, map(_least_far, places), strict=True)
        return tuple(CatchingUp(one.projection.projection_name, *far) for one, far in pairs if far is not None)

    async def stopped(self) -> dict[str, RayfoldError]:
        """The projections of which a projector has stopped, by name, and why the first of them has."""
        found = {}
        for name, served in list(self.serving.items()):
            looked = await look_at(served.projectors)
            if why := next((one.failed for one in looked if one.answered and one.failed is not None), None):
                found[name] = why
        return found

    async def announce(self) -> None:
        """Have all partitions broadcast to what serves and what joins. One that is being restarted gets the list with
        the next tick; until then the projectors read the log."""
        names = self.names()
        sent = (call(partition.set_projectors, names) for partition in self._partitions)
        await asyncio.gather(*sent, return_exceptions=True)

    async def put_in_charge(self, served: ServedBuild) -> None:
        """From now on queries go to the projectors of this build. It is written down first: if everything ends in
        between, the next start goes on with it, for it is complete."""
        assert isinstance(served.projection, type)
        await self._builds.mark_serving(served.build)
        self.serving[served.projection.projection_name] = served
        self.joining = [joining for joining in self.joining if joining is not served]
        self._serve(served.projection, served.parts())

    async def dismiss(self, served: ServedBuild, *, remove: bool) -> None:
        """End the projectors of a build that serves no more, or never will, and perhaps remove what they have saved."""
        self.joining = [joining for joining in self.joining if joining is not served]
        await self.announce()
        await end(served.projectors, save=not remove)
        if remove:
            await self._builds.remove(served.build)

    # -------------------------------------------------------------------------------------------------------------

    def _start(
        self, served: ServedBuild, replicas: Iterable[int], parts: Iterable[int] | None = None
    ) -> list[Projector]:
        from .actor import ProjectorPlan, start_projector  # these import ray, which `Cluster` prepares

        projection, projectors = served.projection, list[Projector]()
        for part, replica in product(range(projection.parts) if parts is None else parts, replicas):
            folder = served.build.folder_of(part, replica)
            plan = ProjectorPlan(
                projection.projection_name,
                part,
                replica,
                folder,
                served.catalogue,
                self._store(),
                self._settings.standing_check_share,
                self._settings.answer_max_s,
                self._settings.local_sockets,
            )
            mark = self._scheduling.unused(served.generation)
            name = projector_name(self._name, served.build.path.name, part, replica, mark)
            where = self._scheduling.projector(name, [*self.names(), *(one.name for one in projectors)])
            actor = start_projector(plan, name, self._namespace, where)
            projectors.append(Projector(part, replica, name, folder, actor))
        return projectors

    async def _retire(self, build: Build, projectors: Sequence[Projector]) -> None:
        await self.announce()
        await end(projectors, save=False)
        for projector in projectors:
            await self._builds.remove_folder(build, projector.part, projector.replica)


def _to_nobody(_projection: type[Projection], _parts: Sequence[Sequence[Any]]) -> None:
    """Before `attach` there are no queries."""


def _least_far(places: Sequence[Place]) -> tuple[int, int] | None:
    """Events, and of how many, of the projector that has come the least far; None if all have caught up."""
    late = [place for place in places if not place.up_to_date]
    far = [(sum(place.positions.values()), sum(place.heads.values())) for place in late]
    return min(((min(events, of), of) for events, of in far), default=None)


async def look_at(projectors: Sequence[Projector]) -> list[Looked]:
    """How these are; of one that does not answer in time, that."""
    return list(await asyncio.gather(*map(_look, projectors)))


async def _look(projector: Projector) -> Looked:
    try:
        place = await call(projector.actor.place)
    except Exception as error:
        return Looked(
            False, False, {}, {}, Unavailable(f"projector {projector.name}", one_line(error) or "no answer"), ()
        )
    stopped = place.stopped.error
    return Looked(True, place.up_to_date, place.positions, place.caught_up_to, stopped, place.quarantined)


async def _asked(projector: Projector) -> list[PackedQuery]:
    """The last queries, one of each kind; nothing from a projector that does not answer."""
    try:
        return await call(projector.actor.asked)
    except Exception as error:
        log.info("%s does not return its last queries: %s", projector.name, one_line(error))
        return []


async def _probe(projector: Projector, asked: Sequence[PackedQuery], *, needed: bool = True) -> list[Probed]:
    """What becomes of these queries, and of those that can be asked without knowing anything."""
    patience = Patience(attempts_max=_PROBES_MAX, pause_s=_RETRY_S, never=())
    try:
        return await retried(lambda _: call(projector.actor.probe, asked, timeout_s=_PROBE_TIMEOUT_S), patience)
    except Exception as failure:
        if not needed:
            return []
        names = ", ".join(query.name for query in asked) or "any query"
        what = f"it does not answer {names}: {one_line(failure) or f'nothing in {_PROBE_TIMEOUT_S:g} s'}"
        raise Unavailable(f"projector {projector.name}", what) from None


async def catch_up(projectors: Sequence[Projector]) -> None:
    """Return once all have come to where the log ends now. Raises what keeps one from opening, and `Unavailable`."""
    await asyncio.gather(*map(_caught_up, projectors))


async def all_caught_up(served: ServedBuild) -> None:
    """The same for a build, one of whose projectors may be replaced meanwhile."""
    while True:
        waited_for = list(served.projectors)
        try:
            await catch_up(waited_for)
        except Unavailable:
            if served.projectors == waited_for:
                raise
        if served.projectors == waited_for:
            return


class _ProjectorFailed(Unavailable):
    """The process of a projector has ended each time while it caught up."""


async def _caught_up(projector: Projector) -> None:
    """However often it is killed meanwhile: it goes on from its checkpoint."""
    patience = Patience(attempts_max=_FAILURES_MAX, pause_s=_RETRY_S)
    try:
        await retried(lambda _: call(projector.actor.open, timeout_s=None), patience)
    except RayfoldError:
        raise
    except Exception as failure:
        what = f"it failed {_FAILURES_MAX} times while catching up: {one_line(failure)}"
        raise _ProjectorFailed(f"projector {projector.name}", what) from None


async def end(projectors: Sequence[Projector], *, save: bool) -> None:
    """End projectors, once they have answered what they were asked, and have them `save` where they are; in five
    seconds at most."""
    closing = (call(projector.actor.close, save) for projector in projectors)
    await asyncio.gather(*closing, return_exceptions=True)
    for projector in projectors:
        kill(projector.actor)


async def _every(
    projectors: Sequence[Projector],
    method: Callable[[ProjectorHandle], Method[Reply[T], *Arguments]],
    *arguments: *Arguments,
) -> list[T]:
    """Have all projectors do something that may take long, and what each answers. Raises what one replies, and
    `Unavailable`."""
    asked = (call(method(projector.actor), *arguments, timeout_s=None) for projector in projectors)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    found = []
    for projector, answer in zip(projectors, answers, strict=True):
        if isinstance(answer, RayfoldError):
            raise answer
        if isinstance(answer, BaseException):
            raise Unavailable(f"projector {projector.name}", "it ended before it was done; try again") from answer
        found.append(answer)
    return found
