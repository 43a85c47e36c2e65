"""Broadcast: what was committed goes to every projector, in position order, bounded.

Step [6] of the write path. Before it: the partition's log has fsynced a batch ([5]). After it: each projector
applies ([7]).

Rules kept here: only committed records are sent; a slow or dead projector never slows a partition: what does not
fit into its lane is not sent at all, and the projector reads it from the log, which is faster anyway. Every message
carries the head of the log, so that nothing left out stays unnoticed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, NamedTuple

from ray.actor import ActorProxy

from ..runtime.batching import Lane
from ..runtime.errors import Overloaded
from ..runtime.log.format import record_position
from .projector import ProjectorActor

__all__ = ["Broadcast"]

_WAITING_BATCHES_MAX: Final = 256
_WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
"""About a tenth of a second of full speed: a projector further behind is better off reading the log."""

_RETRY_S: Final = 0.25
"""How long to wait before telling a projector that did not take a batch: it is being restarted."""


class _Committed(NamedTuple):
    """One committed batch: records at adjoining positions."""

    first: int
    records: Sequence[bytes]


class Broadcast:
    """Sends a partition's committed records to all projectors, each through a lane of its own."""

    def __init__(self, partition: int, projectors: Sequence[ActorProxy[ProjectorActor]]) -> None:
        self.head = 0
        self._partition = partition
        self._lanes = [self._lane(projector) for projector in projectors]

    def send(self, records: Sequence[bytes]) -> None:
        """Send committed records, in position order and without gaps, to everybody. Returns at once."""
        if not records:
            return
        first = record_position(records[0])
        self.head = first + len(records) - 1
        committed, size_bytes = _Committed(first, records), sum(map(len, records))
        for lane in self._lanes:
            try:
                lane.put(committed, size_bytes)
            except Overloaded:
                continue  # what follows carries the head, and the projector reads the log up to there

    def _lane(self, projector: ActorProxy[ProjectorActor]) -> Lane[_Committed]:
        lane: Lane[_Committed] = Lane(
            f"broadcast of partition {self._partition}",
            lambda batch: self._leave(projector, lane.came_back, batch),
            waiting_items_max=_WAITING_BATCHES_MAX,
            waiting_bytes_max=_WAITING_BYTES_MAX,
        )
        return lane

    def _leave(
        self, projector: ActorProxy[ProjectorActor], came_back: Callable[[], None], batch: Sequence[_Committed]
    ) -> None:
        first, records = _joined(batch)
        try:
            sent = projector.apply.remote(self._partition, first, records, self.head)
            sent.future().add_done_callback(partial(self._arrived, projector, came_back))
        except Exception:  # the actor is gone or Ray is shutting down
            self._retry_later(projector, came_back)

    def _arrived(
        self, projector: ActorProxy[ProjectorActor], came_back: Callable[[], None], sent: Future[None]
    ) -> None:
        if sent.exception() is None:
            came_back()
        else:
            self._retry_later(projector, came_back)

    def _retry_later(self, projector: ActorProxy[ProjectorActor], came_back: Callable[[], None]) -> None:
        """Tell the projector where the head is, until it listens; it fetches the rest itself."""
        timer = threading.Timer(_RETRY_S, self._leave, (projector, came_back, ()))
        timer.daemon = True
        timer.start()


def _joined(batch: Sequence[_Committed]) -> tuple[int, list[bytes]]:
    """The records of as many batches as adjoin one another; what comes after a gap is left for the log."""
    if not batch:
        return 1, []
    first, records = batch[0].first, list(batch[0].records)
    for committed in batch[1:]:
        if committed.first != first + len(records):
            break
        records.extend(committed.records)
    return first, records
