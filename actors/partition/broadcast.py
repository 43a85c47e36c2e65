"""Broadcast: what was committed goes to every projector, in position order, bounded.

Step [6] of the write path. Before it: the partition's log has fsynced a batch ([5]). After it: each projector
applies ([7]).

A projector of this machine is reached over a socket (`projector_links.py`) once one was found; any other one through
Ray, and so is that one until then and after its connection has ended. The change from one to the other may repeat,
reorder or leave out batches, and then the projector reads the log, as always.

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
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from ray.actor import ActorProxy

from ...runtime.batcher import Batcher
from ...runtime.errors import Overloaded
from ...runtime.log.format import record_position
from ...runtime.printable import printable_log
from ..sockets.broadcast_frames import BROADCAST_BYTES_MAX, committed_frame
from ..sockets.transport_choice import TransportChoice

__all__ = ["Broadcast", "Link", "Links", "Recipient"]

log = printable_log(__name__)

_WAITING_BATCHES_MAX: Final = 256
_RETRY_S: Final = 0.25
"""How long to wait before notifying a projector that did not take a batch: it is being restarted."""

_LASTING_S: Final = 1.0
"""A link that has ended sooner is not made again at once: where that happens each time, nothing else would happen."""


def _later(delay_s: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, call)
    timer.daemon = True
    timer.start()


class Link(Protocol):
    """What `ProjectorLink` is (`projector_links.py`), or stands for it in the simulation."""

    def put(self, frame: bytes, head: int) -> bool:
        """Send a frame, or have it sent once there is room. False once the connection has ended: it is not sent."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Links(Protocol):
    """The same of `ProjectorLinks`."""

    def search(self, projector: Any, on_found: Callable[[Any], None], on_lost: Callable[[Any], None]) -> None:
        """Find a projector's socket in the background."""
        ...

    def close(self) -> None:
        """End all links."""
        ...


class _Committed:
    """One committed batch: records at adjoining positions; none where they are too large to be sent."""

    __slots__ = ("_frame", "_partition", "first", "head", "records", "size_bytes")

    def __init__(self, partition: int, first: int, records: Sequence[bytes], head: int, size_bytes: int) -> None:
        self.first, self.records, self.head, self.size_bytes = first, records, head, size_bytes
        self._partition = partition
        self._frame = b""

    @property
    def frame(self) -> bytes:
        """What travels over sockets: made once, for all of them."""
        self._frame = self._frame or committed_frame(self._partition, self.first, self.records, self.head)
        return self._frame


class Broadcast:
    """Sends a partition's committed records to all projectors, each over its socket or through a batcher of its own.

    `actor_named` finds a projector; it raises `ValueError` for one that has ended. `send` and `set_projectors` may be
    called from different threads.
    """

    def __init__(
        self,
        partition: int,
        actor_named: Callable[[str], ActorProxy[Any]],
        links: Links | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] = _later,
    ) -> None:
        """`links`: finds the sockets of projectors; without it everything goes through Ray. `later`: has something
        called after so many seconds."""
        self.head = 0
        self.links, self.now_s, self.later = links, now_s, later
        self._partition = partition
        self._actor_named = actor_named
        self._recipients: dict[str, Recipient] = {}
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
            before[name].end()

    def send(self, records: Sequence[bytes]) -> None:
        """Send committed records, in position order and without gaps, to all projectors. Returns at once."""
        if not records:
            return
        first = record_position(records[0])
        self.head = first + len(records) - 1
        assert record_position(records[-1]) == self.head, "records adjoin each other"
        size_bytes = sum(map(len, records))
        if size_bytes > BROADCAST_BYTES_MAX:  # one commit may have 256 MiB: projectors read it from the log, in pages
            records, size_bytes = (), 0
        committed = _Committed(self._partition, first, records, self.head, size_bytes)
        for recipient in self._recipients.values():
            recipient.put(committed)

    def close(self) -> None:
        """Send nothing any more, and end the links."""
        self.set_projectors(())
        if self.links is not None:
            self.links.close()

    def new_recipient(self, projector: ActorProxy[Any]) -> Recipient:
        """One more to send to."""
        return Recipient(self, self._partition, projector)

    def _recipient_named(self, name: str) -> Recipient | None:
        try:
            return self.new_recipient(self._actor_named(name))
        except ValueError:
            log.info("partition %d: projector %s not found; nothing is broadcast to it", self._partition, name)
            return None


class Recipient:
    """One projector that is sent records, over a socket where there is one. Through Ray one batch is in flight, what is
    committed meanwhile waits and leaves as the next."""

    def __init__(self, broadcast: Broadcast, partition: int, projector: ActorProxy[Any]) -> None:
        self._ended = False
        """Nothing is sent any more, and nothing tried again."""
        self._broadcast = broadcast
        self._partition = partition
        self._projector = projector
        self._choosing = threading.Lock()
        """Held while the choice is changed: by threads of Ray's, of the links, and those that set projectors."""
        self._choice = TransportChoice[Link](by_socket=broadcast.links is not None)
        self._found_s = 0.0
        """When the last link was found."""
        self._batcher: Batcher[_Committed] = Batcher(
            f"broadcast of partition {partition}",
            self._send,
            waiting_items_max=_WAITING_BATCHES_MAX,
            waiting_bytes_max=BROADCAST_BYTES_MAX,
        )
        self._search()

    def put(self, committed: _Committed) -> None:
        """Send it, by the way there is."""
        link = self._choice.connection
        if link is None or not link.put(committed.frame, committed.head):
            self._put_to_ray(committed)

    def end(self) -> None:
        """Send nothing any more."""
        with self._choosing:
            self._ended = True
            self._choice.stop_looking()
            link = self._choice.connection
        if link is not None:
            link.close()

    def _put_to_ray(self, committed: _Committed) -> None:
        with suppress(Overloaded):  # what follows carries the head, and the projector reads the log up to there
            self._batcher.put(committed, committed.size_bytes)

    # --- over a socket -------------------------------------------------------------------------------------------

    def _search(self) -> None:
        """Try to find its socket, if it is time to."""
        links = self._broadcast.links
        if links is None:
            return
        with self._choosing:
            begins = self._choice.begin_look(self._broadcast.now_s())
        if begins:
            links.search(self._projector, self._found, self._lost)

    def _found(self, link: Link | None) -> None:
        with self._choosing:
            if link is None:
                self._choice.not_found(self._broadcast.now_s())
            elif not self._ended:
                self._found_s = self._broadcast.now_s()
                self._choice.found(link)
                return
        if link is not None:
            link.close()

    def _lost(self, link: Link) -> None:
        """What was on its way to it may be lost: have it read the log."""
        with self._choosing:
            now_s = self._broadcast.now_s()
            self._choice.lost(link, now_s, answered=now_s - self._found_s >= _LASTING_S)
        head = self._broadcast.head
        if not self._ended and head:
            self._put_to_ray(_Committed(self._partition, head + 1, (), head, 0))

    # --- through Ray ---------------------------------------------------------------------------------------------

    def _send(self, batch: Sequence[_Committed]) -> None:
        if self._ended:
            return
        first, records = _joined(batch)
        try:
            sent = self._projector.apply.remote(self._partition, first, records, self._broadcast.head)
            sent.future().add_done_callback(self._arrived)
        except Exception:  # the actor is gone or Ray is shutting down
            self._retry_later()

    def _arrived(self, sent: Future[None]) -> None:
        if sent.exception() is None:
            self._batcher.batch_done()
            self._search()
        else:
            self._retry_later()

    def _retry_later(self) -> None:
        """Send the projector the head, until it answers; it fetches the rest itself."""
        self._broadcast.later(_RETRY_S, partial(self._send, ()))


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
