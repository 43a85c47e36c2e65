"""ReadModel: one replica of a projection. Applies each partition's events in order, exactly once, and answers.

Steps [7] and [8]. Before it: the broadcast ([6]), through `actors/projector.py`. After it: the caller's `ask`.

The loop trusts nothing about how events arrive: a batch that was seen before is passed over, one that overlaps is
cut, one that leaves a gap first fills the gap from the log, and a record that is damaged or out of place is read from
the log instead. So the broadcast may drop, repeat and reorder, and a reader still sees a prefix of each partition's
log, and nothing else.

Rules kept here: the read model and its positions change together, under one lock, which a query takes as well; the
log is only read, never the write side; a handler that raises, and an event that the log cannot give back, stop this
projection visibly (every query says so) rather than skipping an event.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgpack

from .catalogue import Catalogue
from .codec import decode_message
from .errors import Damaged, HandlerFailed, NotYetVisible, RayfoldError, UnknownEvent
from .log.contract import Reader, StoredEvent
from .log.format import decode_record
from .projection import Projection
from .recorded import Recorded

__all__ = ["PackedQuery", "ReadModel", "join_queries", "split_queries"]

log = logging.getLogger(__name__)

_PAGE: Final = 512
"""Events applied per hold of the lock: about 2-5 ms, which is what a query may have to wait."""

_PAGE_BYTES: Final = 4 * 1024 * 1024
"""Bounds memory of one page when events are large."""

T = TypeVar("T")


class PackedQuery(NamedTuple):
    """A query as it arrives, its payload not yet decoded."""

    name: str
    payload: bytes


def join_queries(queries: Sequence[PackedQuery]) -> bytes:
    """Packed queries as one batch of bytes: Ray would pickle each of a list of tuples by itself."""
    batch: bytes = msgpack.packb(queries)
    return batch


def split_queries(batch: bytes) -> list[tuple[str, bytes]]:
    """The names and payloads in a batch."""
    queries: list[tuple[str, bytes]] = msgpack.unpackb(batch, use_list=False)
    return queries


class ReadModel:
    """The state of one projection, and the position it has reached in each partition. Safe from any thread."""

    def __init__(self, projection: type[Projection], catalogue: Catalogue, readers: Mapping[int, Reader]) -> None:
        self.positions: dict[int, int] = dict.fromkeys(readers, 0)
        self.failed: RayfoldError | None = None
        """Why this projection has stopped, if it has."""
        self._model = projection()
        self._projection = projection
        self._catalogue = catalogue
        self._readers = readers
        self._handlers = {event.message_name: handler for event, handler in projection.projectors.items()}
        self._feeding = threading.RLock()
        """Held by whoever feeds events in: one at a time, so that positions only move by the holder."""
        self._changed = threading.Condition()
        """Held while the model changes or is asked; notified when it has changed."""

    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int = 0) -> None:
        """Take in `records`, at positions `first, first + 1, …`, and everything before them that is missing.

        `head` tells of a later position whose records were not sent: they are read from the log.
        """
        with self._feeding:
            self.catch_up(partition, first - 1)
            reached = self.positions[partition]
            fresh = records[reached + 1 - first :] if first <= reached + 1 else ()
            for start in range(0, len(fresh), _PAGE):
                self._apply_page(partition, fresh[start : start + _PAGE], from_log=False)
            self.catch_up(partition, max(head, first + len(records) - 1))

    def catch_up(self, partition: int, up_to: int | None = None) -> None:
        """Read the log from where this replica is, up to a position or to its end. Raises `StorageFailed`."""
        reader = self._readers[partition]
        with self._feeding:
            while self.failed is None and (up_to is None or self.positions[partition] < up_to):
                reached = self.positions[partition]
                limit = _PAGE if up_to is None else min(_PAGE, up_to - reached)
                try:
                    records = reader.read(reached, limit, _PAGE_BYTES)
                except Damaged as error:
                    self._stop(partition, reached + 1, error)
                    return
                if not records:
                    return
                self._apply_page(partition, records)

    def answer(self, queries: Sequence[tuple[str, bytes]], encode: Callable[[list[Any]], T]) -> T:
        """Answer queries one by one, and `encode` the answers before anything can change again.

        An answer may be the read model itself, so it has to be encoded under the lock. Errors are answers: one
        failing query does not fail its neighbours.
        """
        with self._changed:
            return encode([self._answer(query) for query in queries])

    def wait_for(self, after: Mapping[int, int], timeout_s: float) -> None:
        """Return once `after` is visible here. Raises `NotYetVisible` after `timeout_s`, with the place reached."""
        with self._changed:
            self._changed.wait_for(lambda: self._behind(after) is None or self.failed is not None, timeout_s)
            missing = self._behind(after)
        if missing is not None and self.failed is None:
            partition, asked = missing
            raise NotYetVisible(self._projection.projection_name, partition, asked, self.positions.get(partition, 0))

    def _behind(self, after: Mapping[int, int]) -> tuple[int, int] | None:
        for partition, position in after.items():
            if self.positions.get(partition, 0) < position:
                return partition, position
        return None

    def _apply_page(self, partition: int, records: Sequence[bytes], *, from_log: bool = True) -> None:
        """Apply records in order, up to the first that cannot be. What was only sent may still be right in the log."""
        with self._changed:
            for record in records if self.failed is None else ():
                position = self.positions[partition] + 1
                try:
                    self._project(partition, _decoded(record, partition, position, checked=from_log))
                except RayfoldError as error:
                    if from_log or not isinstance(error, Damaged):
                        self._stop(partition, position, error)
                    break
                self.positions[partition] = position
            self._changed.notify_all()

    def _project(self, partition: int, stored: StoredEvent) -> None:
        handler = self._handlers.get(stored.name)
        if handler is None:
            return
        try:
            event = self._catalogue.decode_event(stored)
            if handler.takes_recorded:
                handler.function(self._model, event, _recorded(partition, stored))
            else:
                handler.function(self._model, event)
        except UnknownEvent:
            raise
        except (Exception, SystemExit) as error:
            subject = f"event {stored.position} of partition {partition} ({stored.stream} {stored.version})"
            name = f"{self._projection.__name__}.{handler.name}"
            raise HandlerFailed.caused_by(name, subject, error) from error

    def _stop(self, partition: int, position: int, error: RayfoldError) -> None:
        with self._changed:
            self.failed = error
            self._changed.notify_all()
        log.error(
            "projection %s stopped before event %d of partition %d: %s; mend the handler and start again, the read"
            " model is rebuilt from the log",
            self._projection.projection_name,
            position,
            partition,
            error,
            exc_info=error.__cause__,
        )

    def _answer(self, query: tuple[str, bytes]) -> Any:
        name, payload = query
        try:
            if self.failed is not None:
                return self.failed
            message_class = self._catalogue.query(self._projection, name)
            message = decode_message(message_class, payload)
            return self._projection.answers[message_class](self._model, message)
        except RayfoldError as error:
            return error
        except (Exception, SystemExit) as error:
            return HandlerFailed.caused_by(f"{self._projection.__name__} @answer", name, error)


def _decoded(record: bytes, partition: int, position: int, *, checked: bool) -> StoredEvent:
    """The record that must be the event at `position`. Raises `Damaged` if it is not."""
    try:
        stored = decode_record(record, checked=checked)
    except Damaged as error:
        raise Damaged(f"event {position} of partition {partition}", error.what) from error
    if stored.position != position:
        what = f"the record that stands for it is that of event {stored.position}"
        raise Damaged(f"event {position} of partition {partition}", what)
    return stored


def _recorded(partition: int, stored: StoredEvent) -> Recorded:
    position, stream, version, _, _, _, recorded_at_us, command_id, correlation_id, causation_id = stored
    return Recorded(stream, version, partition, position, recorded_at_us, command_id, correlation_id, causation_id)
