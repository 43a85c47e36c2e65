"""MemoryProjector: a projector in this process; MemoryFleet: all of them.

Steps [7] and [8], in place of `projection/actor.py`. Before it: `partition.py`, which hands on what it has committed
before it answers, so that a read model has taken in whatever was executed. After it: `replicas.py`.

The read model is the one of production (`runtime/read/read_model.py`), and so is all that changes which of them serve:
replicas, rebuilds, mending (`projection/fleet.py`, `projection/rebuild.py`). What is different is how a projector is
started, and that its build keeps nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from itertools import product
from pathlib import Path
from typing import Any, Final

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.codec import encode_message
from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.errors import HandlerFailed, NotYetVisible, RayfoldError
from ...runtime.log.format import record_position
from ...runtime.log.memory import MemoryLog
from ...runtime.printable import printable_log
from ...runtime.read.answer_purity import own_copy
from ...runtime.read.read_model import Quarantined, ReadModel
from ...runtime.store.memory_logs import MemoryLogs
from ...runtime.stream import StreamId
from ...runtime.user_code import class_name, is_ctrl_c
from ..cluster.names import projector_name
from ..cluster.rpc import Reply, replies
from ..cluster.scheduling import Scheduling
from ..packaging.builds import Build, Builds, ProjectionFacts
from ..projection.fleet import Projector, ProjectorFleet, ServedBuild
from ..projection.readiness import Probed
from ..projection.status_records import Place, ProjectorAnswer
from ..settings import Settings
from .handle import LocalHandle

__all__ = ["Held", "MemoryFleet", "MemoryProjector"]

log = printable_log(__name__)

_ASKED_MAX: Final = 64
"""Kinds of queries of which the last one is kept, as by `ProjectorActor`."""

Held = dict[str, list[Mapping[int, int]]]
"""The projections that a test holds back, by name: for each of its blocks, where the logs ended as it began. No
projector of such a projection, whenever it was started, goes beyond the first of these places."""


class MemoryProjector:
    """One read model. As much of `ProjectorActor` as a system in memory asks for."""

    def __init__(
        self, projection: type[Projection], part: int, catalogue: Catalogue, logs: MemoryLogs, held: Held
    ) -> None:
        self._projection, self._logs, self._held = projection, logs, held
        readers = dict(enumerate(logs.logs))
        self._readers: Mapping[int, MemoryLog] = readers
        self._read_model = ReadModel(projection, catalogue, readers, part=part)
        self.watchers: set[Callable[[], None]] = set()
        """Called when it has taken something in, or has stopped."""
        self._caught_up_to: dict[int, int] | None = None
        self._asked: dict[str, PackedQuery] = {}
        """The last query of each kind, by name."""

    # --- for the partitions and the replicas ---------------------------------------------------------------------

    @property
    def positions(self) -> Mapping[int, int]:
        """How far it has come."""
        return self._read_model.positions

    @property
    def failed(self) -> RayfoldError | None:
        """Why it has stopped, if it has."""
        return self._read_model.failed

    def has(self, after: Mapping[int, int]) -> bool:
        """Whether it has come so far."""
        positions = self._read_model.positions
        return all(positions.get(partition, 0) >= position for partition, position in after.items())

    def lies_beyond(self, after: Mapping[int, int]) -> bool:
        """Whether any of these positions is beyond the end of its log."""
        return any(position > self._readers[partition].head() for partition, position in after.items())

    def apply(self, partition: int, records: Sequence[bytes]) -> None:
        """Step [7]: take in what was committed. What cannot be taken in is tried again with what comes next, and by
        every query that waits for it."""
        if self._held_at() is not None:
            return
        try:
            self._read_model.apply(partition, record_position(records[0]), records)
        except Exception as error:  # of a read store: none of the command, which is committed
            log.error("projection %s: %s", self._projection.projection_name, error)
        self._notify()

    def catch_up(self) -> MemoryProjector:
        """Read the logs up to where they end, or to where it is held back."""
        with contextlib.suppress(RayfoldError):
            self._read_on()
        return self

    def answer(self, query: PackedQuery) -> tuple[Any, dict[int, int]]:
        """Step [8]: the answer, errors too as values, and the positions it was read at."""

        def taken_out(answers: list[Any]) -> tuple[Any, dict[int, int]]:
            return _own(answers[0]), dict(self._read_model.positions)

        if query.name in self._asked or len(self._asked) < _ASKED_MAX:
            self._asked[query.name] = query
        return self._read_model.answer([query], taken_out)

    def go_on(self) -> None:
        """It may be held back no longer."""
        self.catch_up()
        self._notify()

    def _held_at(self) -> Mapping[int, int] | None:
        """Where a test holds it back, if one does."""
        return next(iter(self._held.get(self._projection.projection_name, ())), None)

    def _read_on(self) -> None:
        heads = self._held_at() or {partition: reader.head() for partition, reader in self._readers.items()}
        for partition, head in heads.items():
            self._read_model.catch_up(partition, head)
        self._caught_up_to = dict(heads)

    def _notify(self) -> None:
        for watcher in copy(self.watchers):
            watcher()

    # --- for the fleet and the status: see `ProjectorActor` -------------------------------------------------------

    @replies
    def open(self) -> None:
        """Catch up with the logs."""
        self._read_model.open()
        self._read_on()

    @replies
    def come_to(self, after: Mapping[int, int], _timeout_s: float) -> None:
        """Raises `NotYetVisible` where it has not come so far: nothing brings it there but what is executed."""
        if not self.catch_up().has(after):
            partition, position = next(iter(after.items()))
            name = self._projection.projection_name
            raise NotYetVisible(name, partition, position, self.positions.get(partition, 0))

    @replies
    def status(self) -> ProjectorAnswer:
        """How far it is, and what is wrong with it."""
        progress, quarantined = self._read_model.progress(), self._read_model.quarantined
        failed = str(progress.failed or "")
        return ProjectorAnswer(os.getpid(), progress.positions, failed, progress.events_applied, quarantined, False)

    @replies
    def place(self) -> Place:
        """How far it has come."""
        heads = {partition: reader.head() for partition, reader in self._readers.items()}
        read_model, reached = self._read_model, self._caught_up_to
        return Place(
            os.getpid(),
            dict(read_model.positions),
            heads,
            Reply.failed(read_model.failed),
            reached is not None,
            dict(reached or {}),
            read_model.quarantined,
        )

    @replies
    def asked(self) -> list[PackedQuery]:
        """The last query of each kind."""
        return list(self._asked.values())

    @replies
    def probe(self, asked: Sequence[PackedQuery]) -> list[Probed]:
        """What becomes of these queries, and of those of other kinds that need no value."""
        queries, known = list(asked), {query.name for query in asked}
        for cls in self._projection.answers:
            if cls.message_name not in known:
                with contextlib.suppress(Exception):  # it needs a value
                    queries.append(PackedQuery(cls.message_name, encode_message(cls())))
        answers = self._read_model.answer(queries, list)
        failed = (str(one) if isinstance(one, HandlerFailed) else "" for one in answers)
        return [Probed(query.name, error) for query, error in zip(queries, failed, strict=True)]

    @replies
    def rebuild_stream(self, stream: StreamId) -> None:
        """Forget what one aggregate has contributed and apply its events again."""
        self._read_model.rebuild_stream(stream, self._logs.partition_of(stream))

    @replies
    def retry_quarantined(self) -> tuple[Quarantined, ...]:
        """Apply the events in quarantine again. What is in it still."""
        return self._read_model.retry_quarantined()

    @replies
    def close(self, _save: bool) -> None:
        """Release the read store."""
        self._read_model.close()


def _own(answer: Any) -> Any:
    """The caller's own copy of an answer, or the error that it cannot be had: from a process it would not come."""
    try:
        return own_copy(answer)
    except BaseException as error:  # code of the user's runs here
        if is_ctrl_c(error):
            raise
        return HandlerFailed.caused_by("@answer", class_name(answer), error)


class MemoryBuilds(Builds):
    """Builds that keep nothing: which one serves is known as long as the system runs."""

    def __init__(self) -> None:
        super().__init__(Path())
        self._served: dict[str, dict[tuple[int, int], bool]] = {}

    async def served(self, projection: type[Projection] | ProjectionFacts) -> dict[tuple[int, int], bool]:
        """See `Builds`, as for all of these."""
        return self._served.get(projection.projection_name, {})

    async def mark_serving(self, build: Build) -> None:
        name = build.path.name.rpartition("-v")[0]
        self._served.setdefault(name, {})[build.order] = True

    async def lend_checkpoint(self, build: Build, part: int, replica: int) -> None:
        """There is none."""

    async def remove_older(self, projection: str, serving: Build) -> None:
        """Nothing is kept."""

    async def remove(self, build: Build) -> None:
        """Nothing is kept."""

    async def remove_folder(self, build: Build, part: int, replica: int) -> None:
        """Nothing is kept."""


class MemoryFleet(ProjectorFleet):
    """The projectors of a system in memory."""

    def __init__(self, logs: MemoryLogs, catalogue: Catalogue, name: str, settings: Settings, held: Held) -> None:
        super().__init__(lambda: logs, catalogue, name, "", MemoryBuilds(), Scheduling(), settings)
        self._logs, self._held = logs, held
        self._catalogues: list[Catalogue] = []

    def keep(self, catalogue: Catalogue) -> bytes:
        """What stands for these classes where a fleet hands on classes that were shipped."""
        self._catalogues.append(catalogue)
        return str(len(self._catalogues) - 1).encode()

    def broadcast(self, partition: int, records: Sequence[bytes]) -> None:
        """Step [6]: every projector takes in what was committed, at once."""
        for projector in self.present():
            projector.apply(partition, records)

    def hold_back(self, projections: Iterable[type[Projection]]) -> list[str]:
        """Have no projector of these projections, or of any, take in what is committed from now on. Returns their
        names. Raises `UnknownName`."""
        names = [self.serving_build(projection).projection.projection_name for projection in projections]
        place = {number: log.head() for number, log in enumerate(self._logs.logs)}
        for name in names or self.serving:
            self._held.setdefault(name, []).append(place)
        return names or list(self.serving)

    def go_on(self) -> None:
        """Have all take in what was committed, but those that are held back still."""
        for projector in self.present():
            projector.go_on()

    def present(self) -> list[MemoryProjector]:
        """All of them."""
        return [one for served in (*self.serving.values(), *self.joining) for one in self._held_by(served)]

    def _held_by(self, served: ServedBuild) -> list[MemoryProjector]:
        actors: list[Any] = [projector.actor for projector in served.projectors]
        return [actor.held for actor in actors]

    def _start(
        self, served: ServedBuild, replicas: Iterable[int], parts: Iterable[int] | None = None
    ) -> list[Projector]:
        catalogue = self._catalogues[int(served.catalogue)]
        projection = catalogue.projection(served.projection.projection_name)
        projectors = []
        for part, replica in product(range(projection.parts) if parts is None else parts, replicas):
            mark = self._scheduling.unused(served.generation)
            name = projector_name(self._name, served.build.path.name, part, replica, mark)
            actor: Any = LocalHandle(MemoryProjector(projection, part, catalogue, self._logs, self._held))
            folder = served.build.folder_of(part, replica)
            projectors.append(Projector(part, replica, name, folder, actor))
        return projectors
