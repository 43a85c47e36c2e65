"""OwnActors: which aggregates have an actor of their own now, and who may append for them.

Beside step [3]. An aggregate answers its first command at once from inside its partition, while its own actor starts in
the background; once that is up, the partition hands the aggregate over and answers later commands here with a redirect.
A command that may be slow, or end its process, is not decided in the partition at all: it waits for the own actor
(`begin`).

Rules kept here:
- an actor's name carries the partition's epoch and a count, so that no two incarnations are ever mistaken
- at most one incarnation of an aggregate is at home; only that one may append, so losing one costs a retry and
  never an event
- how many there are is bounded: per node by a Ray resource of which each takes one, per partition by how many may wait
  for it; beyond that aggregates simply stay shared, and one line is logged
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from ...runtime.domain.aggregate import OwnActor
from ...runtime.printable import printable_log
from ...runtime.stream import StreamId

__all__ = ["OwnActorRecord", "OwnActors"]

log = printable_log(__name__)

_STARTING_MAX: Final = 2
"""Starts under way per partition: each takes half a CPU-second, which is taken from the commands."""

_STARTING_MAX_S: Final = 20.0
"""A start that takes longer is waiting for a slot: give up, and let the next in line try later. Commands may wait
for it, up to their deadlines."""

_WAITED_FOR_S: Final = 6.0
"""... and one that commands wait for, unless a process has ended on them: they are decided in the partition then,
within the time that they have by default."""

_WAITED_FOR_SHARE: Final = 4
"""The part of the own actors that a partition may be waiting for: partitions do not know of one another's starts, and
one that gets no slot is waited for in vain."""

_FULL_PAUSE_S: Final = 10.0
"""How long not to try again after there was no slot."""


_ENDED: Final = ("ActorDiedError", "ActorUnavailableError")
"""What Ray raises if a process has ended."""


class OwnActorRecord(NamedTuple):
    """One own actor: its name, its aggregate, and the handle that ends it."""

    name: str
    stream: StreamId
    actor: Any
    started: Future[int]
    """Its process id, once it is up."""
    since_s: float


class OwnActors:
    """The own actors of one partition. Used from the partition's thread."""

    def __init__(
        self,
        start: Callable[[str, StreamId, OwnActor, bool], tuple[Any, Future[int]]],
        end: Callable[[Any], None],
        name_of: Callable[[StreamId, int], str],
        *,
        own_actors_max: int,
        idle_s: float,
    ) -> None:
        self.by_stream: dict[StreamId, OwnActorRecord] = {}
        """Those that have been handed their aggregate; most are up."""
        self._start, self._end = start, end
        self._name_of = name_of
        self._own_actors_max = own_actors_max
        self._idle_s = idle_s
        self._starting: dict[StreamId, OwnActorRecord] = {}
        self._waited_for: dict[StreamId, bool] = {}
        """Those of `by_stream` that are not known to be up yet, and whether they are careful."""
        self._last_used_s: dict[StreamId, float] = {}
        self._count = 0
        self._full_until_s = 0.0
        self._noted_full = False

    def consider(self, stream: StreamId, placement: OwnActor) -> None:
        """Start an own actor for the aggregate in the background, if it has none and there may be one more."""
        if stream in self.by_stream or stream in self._starting or not self._own_actors_max:
            return
        now = time.monotonic()
        if len(self._starting) >= _STARTING_MAX or now < self._full_until_s:
            return
        if len(self.by_stream) + len(self._starting) >= self._own_actors_max and not self.passivate_idle():
            self._full(now)
            return
        self._starting[stream] = self._started(stream, placement, careful=False)
        self._check_bound()

    def begin(self, stream: StreamId, placement: OwnActor, *, careful: bool) -> str | None:
        """Start an own actor that alone decides the aggregate's commands, which wait until it is up. Returns its name,
        or None if there is no room. `careful`: it reports each command before it decides it."""
        record = self._starting.pop(stream, None)
        if record is not None and careful:  # it was started without
            self._end(record.actor)
            record = None
        if record is None:
            if not self.may_begin():
                return None
            record = self._started(stream, placement, careful=careful)
        assert stream not in self.by_stream, "an aggregate has one own actor at most"
        self.by_stream[stream] = record
        self._last_used_s[stream] = time.monotonic()
        self._waited_for[stream] = careful
        self._check_bound()
        return record.name

    def may_begin(self) -> bool:
        """Whether one more may be started now that is waited for: `has_room`, and few others are waited for."""
        return self.has_room() and len(self._waited_for) < max(1, self._own_actors_max // _WAITED_FOR_SHARE)

    def may_soon_begin(self) -> bool:
        """Whether there will be place for one more once an actor that commands wait for now is up."""
        now = time.monotonic()
        hopeful = (record for stream in self._waited_for if (record := self.by_stream.get(stream)) is not None)
        return self.has_room() and any(now - record.since_s < _WAITED_FOR_S for record in hopeful)

    def has_room(self) -> bool:
        """Whether there may be one more, as far as this partition knows."""
        if not self._own_actors_max or time.monotonic() < self._full_until_s:
            return False
        return len(self.by_stream) + len(self._starting) < self._own_actors_max or bool(self.passivate_idle())

    def _started(self, stream: StreamId, placement: OwnActor, *, careful: bool) -> OwnActorRecord:
        self._count += 1
        name = self._name_of(stream, self._count)
        actor, started = self._start(name, stream, placement, careful)
        return OwnActorRecord(name, stream, actor, started, time.monotonic())

    def _give_up_late(self) -> None:
        """Those that commands wait for, and that do not come up."""
        now = time.monotonic()
        for stream in list(self._waited_for):
            record = self.by_stream[stream]
            if not record.started.done():
                if now - record.since_s > (_STARTING_MAX_S if self._waited_for[stream] else _WAITED_FOR_S):
                    self._retire(record)
                    self._full(now)
                continue
            del self._waited_for[stream]
            failure = record.started.exception()
            if failure is not None and type(failure).__name__ not in _ENDED:  # its clients report that
                self._retire(record)
                self._full_until_s = now + _FULL_PAUSE_S
                log.warning("own actor %s did not start, %s stays shared: %s", record.name, stream, failure)

    def take_over(self) -> list[StreamId]:
        """The aggregates whose own actor has come up since the last call; from now on they are there."""
        moved: list[StreamId] = []
        if self._waited_for:
            self._give_up_late()
        if not self._starting:
            return moved
        now = time.monotonic()
        for stream, record in list(self._starting.items()):
            if record.started.done():
                del self._starting[stream]
                failure = record.started.exception()
                if failure is None:
                    self.by_stream[stream] = record
                    self._last_used_s[stream] = now
                    moved.append(stream)
                else:
                    self._end(record.actor)
                    self._full_until_s = now + _FULL_PAUSE_S
                    log.warning("own actor %s did not start, %s stays shared: %s", record.name, stream, failure)
            elif now - record.since_s > _STARTING_MAX_S:
                del self._starting[stream]
                self._end(record.actor)
                self._full(now)
        return moved

    def may_append(self, stream: StreamId, name: str) -> bool:
        """Whether this incarnation is the one at home; if so it counts as used now."""
        record = self.by_stream.get(stream)
        if record is None or record.name != name:
            return False
        self._last_used_s[stream] = time.monotonic()
        return True

    def lost(self, stream: StreamId, name: str) -> None:
        """A client could not reach this incarnation: it is not the valid one any more, whether it runs or not."""
        record = self.by_stream.get(stream)
        if record is not None and record.name == name:
            self._retire(record)

    def passivate_idle(self) -> int:
        """End the own actors that have appended nothing for long. Their aggregates stay in the partition."""
        now = time.monotonic()
        idle = [
            record
            for record in self.by_stream.values()
            if now - self._last_used_s[record.stream] > self._idle_s and record.stream not in self._waited_for
        ]
        for record in idle:
            self._retire(record)
        return len(idle)

    def end_all(self) -> None:
        """End every own actor, those that are still starting too."""
        for record in [*self.by_stream.values(), *self._starting.values()]:
            self._end(record.actor)
        self.by_stream.clear()
        self._starting.clear()
        self._waited_for.clear()

    def _check_bound(self) -> None:
        assert len(self.by_stream) + len(self._starting) <= self._own_actors_max
        assert self._waited_for.keys() <= self.by_stream.keys(), "who is waited for is at home"

    def _retire(self, record: OwnActorRecord) -> None:
        del self.by_stream[record.stream]
        self._last_used_s.pop(record.stream, None)
        self._waited_for.pop(record.stream, None)
        self._end(record.actor)

    def _full(self, now: float) -> None:
        self._full_until_s = now + _FULL_PAUSE_S
        if not self._noted_full:
            self._noted_full = True
            log.warning(
                "no room for another own actor (own_actors_max are alive on each node): further aggregates stay shared"
                " in their partition; raise own_actors_max, or declare placement=Shared() for aggregates that are many"
            )
