"""Broadcast: what was committed goes to every projector, in position order, bounded.

Step [6] of the write path. Before it: the partition's log has fsynced a batch ([5]). After it: each projector
applies ([7]).

Rules kept here: only committed records are sent; a slow or dead projector never slows a partition: what does not fit
into its batcher is not sent at all, and the projector reads it from the log, which is faster anyway. Every message
carries the head of the log, so that nothing left out stays unnoticed.

Projectors come and go while the partition runs (replicas are scaled, read models rebuilt). They are given by name,
again with every tick, because a partition that Ray restarts has only the names of its plan. So a set may be outdated
for a moment, on either side, and that costs nothing but time: a name that is no more is passed over, and a projector
without broadcasts reads the log by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from ray.actor import ActorProxy

from ...runtime.batcher import Batcher
from ...runtime.errors import Overloaded
from ...runtime.log.format import record_position
from ...runtime.printable import printable_log

__all__ = ["Broadcast"]

log = printable_log(__name__)

_WAITING_BATCHES_MAX: Final = 256
_WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
"""About a tenth of a second of full speed: a projector further behind is better off reading the log."""

_RETRY_S: Final = 0.25
"""How long to wait before notifying a projector that did not take a batch: it is being restarted."""


class _Committed(NamedTuple):
    """One committed batch: records at adjoining positions."""

    first: int
    records: Sequence[bytes]


class Broadcast:
    """Sends a partition's committed records to all projectors, each through a batcher of its own.

    `actor_named` finds a projector; it raises `ValueError` for one that has ended. `send` and `set_projectors` may be
    called from different threads.
    """

    def __init__(self, partition: int, actor_named: Callable[[str], ActorProxy[Any]]) -> None:
        self.head = 0
        self._partition = partition
        self._actor_named = actor_named
        self._recipients: dict[str, _Recipient] = {}
        """By the projector's name. Replaced as a whole, never changed, since `send` may be walking over it."""

    def set_projectors(self, names: Iterable[str]) -> None:
        """Send to these from now on, and to no others. What is on its way to one that stays is not disturbed."""
        before, recipients = self._recipients, {}
        for name in names:
            recipient = before.get(name) or self._recipient_named(name)
            if recipient is not None:
                recipients[name] = recipient
        self._recipients = recipients
        for name in before.keys() - recipients.keys():
            before[name].ended = True

    def send(self, records: Sequence[bytes]) -> None:
        """Send committed records, in position order and without gaps, to all projectors. Returns at once."""
        if not records:
            return
        first = record_position(records[0])
        self.head = first + len(records) - 1
        assert record_position(records[-1]) == self.head, "records adjoin each other"
        committed, size_bytes = _Committed(first, records), sum(map(len, records))
        if size_bytes > _WAITING_BYTES_MAX:  # one commit may have 256 MiB: projectors read it from the log, in pages
            committed, size_bytes = _Committed(first, ()), 0
        for recipient in self._recipients.values():
            try:
                recipient.batcher.put(committed, size_bytes)
            except Overloaded:
                continue  # what follows carries the head, and the projector reads the log up to there

    def _recipient_named(self, name: str) -> _Recipient | None:
        try:
            return _Recipient(self, self._partition, self._actor_named(name))
        except ValueError:
            log.info("partition %d: projector %s not found; nothing is broadcast to it", self._partition, name)
            return None


class _Recipient:
    """One projector that is sent records: one batch in flight, what is committed meanwhile waits and leaves as the
    next."""

    def __init__(self, broadcast: Broadcast, partition: int, projector: ActorProxy[Any]) -> None:
        self.ended = False
        """Nothing is sent any more, and nothing tried again."""
        self._broadcast = broadcast
        self._partition = partition
        self._projector = projector
        self.batcher: Batcher[_Committed] = Batcher(
            f"broadcast of partition {partition}",
            self._send,
            waiting_items_max=_WAITING_BATCHES_MAX,
            waiting_bytes_max=_WAITING_BYTES_MAX,
        )

    def _send(self, batch: Sequence[_Committed]) -> None:
        if self.ended:
            return
        first, records = _joined(batch)
        try:
            sent = self._projector.apply.remote(self._partition, first, records, self._broadcast.head)
            sent.future().add_done_callback(self._arrived)
        except Exception:  # the actor is gone or Ray is shutting down
            self._retry_later()

    def _arrived(self, sent: Future[None]) -> None:
        if sent.exception() is None:
            self.batcher.batch_done()
        else:
            self._retry_later()

    def _retry_later(self) -> None:
        """Send the projector the head, until it answers; it fetches the rest itself."""
        timer = threading.Timer(_RETRY_S, self._send, ((),))
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
