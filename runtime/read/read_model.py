"""ReadModel: one replica of a projection. Applies each partition's events in order, exactly once, and answers.

Steps [7] and [8]. Before it: the broadcast ([6]), through `actors/projection/actor.py`. After it: the caller's `ask`.

The loop trusts nothing about how events arrive: a batch that was seen before is passed over, one that overlaps is
cut, one that leaves a gap first fills the gap from the log, and a record that is damaged or out of place is read from
the log instead. So the broadcast may drop, repeat and reorder, and a reader still sees a prefix of each partition's
log, and nothing else.

The path of events, one verb for each level, and no level calls one above it:

| verb | level | in |
|---|---|---|
| `apply`, `catch_up` | order and gaps: which records are next, as they were sent or from the log | `ReadModel` |
| `_feed` | the lock: queries are answered between two holds of it; a suspect is fed alone | `ReadModel` |
| `take_in` | transactions: of a page, or of parts of it once an event in it has failed | `StoredModel` |
| `_attempt` | one transaction: events and their checkpoint, or nothing of them | `StoredModel` |
| `run` | handlers: one event after the other | `EventApplier` |

`StoredModel` is in `stored_model.py`, `EventApplier` in `event_applier.py`; where a read model lives, in `stores/`.

Rules kept here: the read model and its positions change together, under one lock, which a query takes as well; the log
is only read, never the write side; an event that cannot be taken in stops this projection visibly (every query and
every waiting caller gets the error), or is set aside visibly where the projection declares so; none is skipped in
silence.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from ..domain.projection import Projection
from ..encoding.catalogue import Catalogue
from ..encoding.codec import decode_message
from ..errors import (
    Conflict,
    Damaged,
    DefinitionError,
    Fenced,
    HandlerFailed,
    InvalidMessage,
    NotYetVisible,
    Overloaded,
    RayfoldError,
    Sealed,
    Unavailable,
)
from ..in_hand import KEY_BYTES, InHand
from ..log.contract import Reader
from ..printable import exc_info_of, printable_log
from ..stream import StreamId
from ..user_code import class_name, is_ctrl_c
from .answer_purity import UNCHANGING, MutationGuard, own_copy, reading_answers
from .stored_model import PAGE_BYTES_MAX, PAGE_EVENTS, StoredModel
from .stores.checkpoint import Quarantined
from .stores.memory import MemoryStore

__all__ = [
    "ENCODING",
    "QUERIES_STEP",
    "Progress",
    "Quarantined",
    "ReadModel",
]

log = printable_log(__name__)

CHECKPOINT_EVENTS: Final = 100_000
"""A checkpoint is due after so many events: reading them again takes about half a second."""

CHECKPOINT_S: Final = 60.0
"""... or, if there was any event, after so many seconds: what a restart of a busy projection reads at most."""

CHECKPOINT_SHARE: Final = 50
"""... but not before so many times the seconds that the last one held the lock: at most 2 % of the time."""

QUERIES_STEP: Final = 8
"""Queries between two steps of the record of what is in hand: a step for each cost 3 % of them."""

ENCODING: Final = 255
"""Instead of the number of a step: all are answered, and the answers are being encoded."""

_LOGGED_MAX: Final = 100
"""Kinds of failed queries that are logged with their trace: a flood of them must not become a flood of logs."""

_ALONE: Final = struct.Struct(">1s5xHQ")
"""The key of a page that begins at an event ("p"), or of one event alone ("1"): partition and position."""

_EVENT_PATIENCE: Final = 8
"""How many times as long as a query one event may take: no caller waits for it, and its commit may wait for a disk."""

_ADMIT_S: Final = 0.02

_OF_A_CALL: Final = (Unavailable, Overloaded, Conflict, Fenced, Sealed)
"""Errors that state what became of a call. A handler may have one from a call of its own: to the caller it would be a
statement about this query, which was sent, and has arrived."""

T = TypeVar("T")


class Progress(NamedTuple):
    """How far a read model is. Everything is of one moment."""

    positions: dict[int, int]
    """By partition: of the last event taken in, or set aside."""
    events_applied: int
    """Events taken in since this read model was opened, those that no handler is for included. For a rate."""
    last_recorded_at_us: dict[int, int]
    """By partition: when the last event taken in was recorded, microseconds since 1970 by its writer's clock; 0 before
    the first."""
    failed: RayfoldError | None
    """Why the projection has stopped, if it has."""
    quarantined: int
    """Events that are set aside."""
    replaying: bool
    """True until everything is taken in that was in the logs when this read model was opened."""


class _HandlerError(NamedTuple):
    """What an answer handler has raised."""

    error: BaseException


def _called(answering: Callable[[Any, Any], Any], model: Projection, query: object) -> Any:
    """The handler's answer, or what it raised as a value: a context manager sets the trace of what passes through it,
    and an exception that is a frozen dataclass refuses that with another one."""
    try:
        return answering(model, query)
    except BaseException as error:
        return _HandlerError(error)


def _no_notice() -> None:
    """Nothing waits."""


class ReadModel:
    """One part of one projection, and the position it has reached in each partition. Safe from any thread.

    `part` is which of the projection's `parts` it is. With a `directory` of its own it survives a restart: rows or
    tables at every page, a state in memory at each `checkpoint()`.
    """

    def __init__(
        self,
        projection: type[Projection],
        catalogue: Catalogue,
        readers: Mapping[int, Reader],
        *,
        directory: Path | None = None,
        part: int = 0,
        in_hand: InHand | None = None,
    ) -> None:
        """`in_hand`: called with each batch of queries, and of each page of events, before any handler is called."""
        self._in_hand = in_hand or InHand(None)
        self._projection = projection
        self._catalogue = catalogue
        self._readers = readers
        self._directory = directory
        self.notify_changed: Callable[[], None] = _no_notice
        """Called, on any thread and without a lock, once something was taken in, this has stopped, or was closed. For
        what waits without a thread."""
        self._kept = StoredModel(projection, catalogue, readers, part, self._in_hand)
        self._in_memory = isinstance(self._kept.store, MemoryStore)
        self._feeding = threading.RLock()
        """Held while events are fed in: by one thread at a time, so that positions only move by the holder."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        """Held while the model changes or is asked; notified when it has changed."""
        self._door = threading.Condition()
        """Held for a moment, to note which thread waits for the lock and which has had it: Python gives it to the
        quickest, and that is the one that has just released it."""
        self._asking = 0
        """Batches of queries that wait for the lock, or have it."""
        self._answered = 0
        self._logged: set[str] = set()
        self._checkpointing = threading.Lock()
        self._opened = self._closed = False
        self._guard = MutationGuard(self._kept.model)
        self._only_read = reading_answers(projection) if self._in_memory else frozenset()
        """The answer handlers that need no watching."""
        self._direct = {asked: one for asked, one in projection.answers.items() if one in self._only_read}
        """The same by query: one look-up for each."""
        self._changes = 0
        """How often something was taken in: what was seen before belongs to an earlier state."""
        self._opened_at = 0
        """Events that the store held when it was opened."""
        self._checkpoint_at = (0, time.monotonic(), 0.0)
        """The last checkpoint: the events in it, when it was, and how long it held the lock."""

    @property
    def positions(self) -> dict[int, int]:
        """Of the last event taken in, by partition. Never goes back while this read model is open."""
        return self._kept.positions

    @property
    def failed(self) -> RayfoldError | None:
        """Why this projection has stopped, if it has."""
        return self._kept.failed

    @property
    def other_history(self) -> str:
        """Why the stored read model did not follow the present log, so that it was made anew, or stopped; empty if it
        did. A log that was cut or exchanged shows here, and so does a store that was restored in place."""
        return self._kept.other_history

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """The events that are set aside, at most 100, in the order in which they failed."""
        return self._kept.quarantined

    @property
    def _model(self) -> Projection:
        return self._kept.model

    # --- its life ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Restore what the directory holds, if the same code wrote it (name, version, fields, handlers, store, parts)
        and the logs still hold what it is made from; else start empty. Then `catch_up` each partition.

        The first event, query or wait opens it too. Raises `StoreError`, and `DefinitionError` for a store that cannot
        be made.
        """
        with self._feeding, self._changed:
            if self._closed:
                raise Unavailable(self._projection.projection_name, "this read model was closed")
            if not self._opened:
                self._kept.open(self._directory)
                self._opened = True
                self._opened_at = sum(self.positions.values())
                self._checkpoint_at = (self._opened_at, time.monotonic(), 0.0)

    def close(self) -> None:
        """Release the store and raise in all waiting callers. The readers stay open: they are the caller's. A state in
        memory is kept only by a `checkpoint()` before. Closing twice is allowed."""
        with self._feeding, self._checkpointing, self._changed:
            if not self._closed:
                self._closed = True
                self._kept.close()
                self._changed.notify_all()
        self.notify_changed()

    # --- step [7] ------------------------------------------------------------------------------------------------

    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int = 0) -> None:
        """Take in `records`, at positions `first, first + 1, …`, and everything before them that is missing.

        `head` is a later position whose records were not sent: they are read from the log.
        """
        with self._feeding:
            self.catch_up(partition, first - 1)
            reached = self.positions[partition]
            fresh = records[reached + 1 - first :] if first <= reached + 1 else ()
            for start in range(0, len(fresh), PAGE_EVENTS):
                if self.positions[partition] == first - 1 + len(records) - len(fresh) + start:
                    self._feed(partition, fresh[start : start + PAGE_EVENTS], checked=False)
            self.catch_up(partition, max(head, first + len(records) - 1))

    def catch_up(self, partition: int, up_to: int | None = None) -> None:
        """Read the log from where this replica is, up to a position or to its end. Raises `StorageFailed`."""
        reader = self._readers[partition]
        with self._feeding:
            if self._closed or not self._opened:
                self.open()
            while self.failed is None and (up_to is None or self.positions[partition] < up_to):
                reached = self.positions[partition]
                limit = PAGE_EVENTS if up_to is None else min(PAGE_EVENTS, up_to - reached)
                try:
                    records = reader.read(reached, limit, PAGE_BYTES_MAX)
                except Damaged as error:
                    self._stop(partition, reached + 1, error)
                    return
                if not records:
                    return
                self._feed(partition, records, checked=True)

    def _feed(self, partition: int, records: Sequence[bytes], *, checked: bool) -> None:
        """Take in a page, in as many holds of the lock as it takes: queries are answered in between."""
        done, in_all = 1, 0
        while done and in_all < len(records) and self.failed is None:
            if self._asking:
                self._admit_queries()
            with self._changed:
                if self._closed:
                    raise Unavailable(self._projection.projection_name, "this read model was closed")
                self._changes += 1
                try:
                    done = self._feed_some(partition, records[in_all:] if in_all else records, checked)
                except Damaged as error:
                    self._stop(partition, self.positions[partition] + 1, error)
                finally:
                    self._in_hand.end()
                    self._changed.notify_all()
            self.notify_changed()
            in_all += done

    def _feed_some(self, partition: int, records: Sequence[bytes], checked: bool) -> int:
        """How many are done with. What was in hand when this process ended before is taken in one by one, and what was
        in hand at the second death is given up."""
        first, in_hand = self.positions[partition] + 1, self._in_hand
        if in_hand.fallen and self._is_suspect(partition, first):
            alone = _ALONE.pack(b"1", partition, first)
            fallen = in_hand.find(alone)
            if fallen is not None:
                slow = "applying it took too long; the process was ended"
                what = slow if fallen.stuck else "the process ended twice while it was applied"
                subject = f"event {first} of partition {partition}"
                failed = HandlerFailed(self._projection.__name__, subject, what)
                record = records[0] if checked else self._readers[partition].read(first - 1, 1)[0]
                self._kept.give_up_unseen(partition, record, failed)
                return 1
            records, key = records[:1], alone
        else:
            if in_hand.fallen:
                records = records[: self._next_suspect(partition, first) - first]
            key = _ALONE.pack(b"p", partition, first)
        in_hand.begin(key, _EVENT_PATIENCE)
        return self._kept.take_in(partition, records, checked=checked)

    def _is_suspect(self, partition: int, position: int) -> bool:
        """Whether this event may be the one that was in hand when the process ended: it was in that page."""
        for key in self._in_hand.fallen:
            kind, of, first = _ALONE.unpack(key)
            if kind in b"p1" and of == partition and first <= position < first + PAGE_EVENTS:
                return True
        return False

    def _next_suspect(self, partition: int, position: int) -> int:
        """Where the next page begins in which the process has ended: no page goes that far, or it would end once more
        on what is suspected already."""
        pages = [_ALONE.unpack(key) for key in self._in_hand.fallen]
        ahead = [first for kind, of, first in pages if kind in b"p1" and of == partition and first > position]
        return min(ahead, default=position + PAGE_EVENTS)

    def _admit_queries(self) -> None:
        """Let those who ask have the lock once, before the next page."""
        with self._door:
            before = self._answered
            self._door.wait_for(lambda: not self._asking or self._answered != before, _ADMIT_S)

    def _stop(self, partition: int, position: int, error: RayfoldError) -> None:
        with self._changed:
            self._kept.stop(partition, position, error)
            self._changed.notify_all()
        self.notify_changed()

    # --- step [8] ------------------------------------------------------------------------------------------------

    def answer(
        self, queries: Sequence[tuple[str, bytes]], encode: Callable[[list[Any]], T], key: bytes = bytes(KEY_BYTES)
    ) -> T:
        """Answer queries one by one, and `encode` the answers before anything can change again.

        An answer may be the read model itself, so it has to be encoded under the lock. Errors are answers: one
        failing query does not fail its neighbours. `key`: of the batch, for the record of what is in hand, whose last
        byte is the number of the `QUERIES_STEP` queries that are being answered, or `ENCODING`.
        """
        if not self._opened:
            self.open()
        with self._door:
            self._asking += 1
        in_hand = self._in_hand
        try:
            with self._changed:
                plain = self._in_memory and not self._closed and not self._kept.restoring()
                in_hand.begin(key)
                try:
                    answers: list[Any] = []
                    for start in range(0, len(queries), QUERIES_STEP):
                        in_hand.step(min(start // QUERIES_STEP, ENCODING - 1))
                        answers += [self._answer(query, plain) for query in queries[start : start + QUERIES_STEP]]
                    in_hand.step(ENCODING)
                    return encode(answers)
                finally:
                    in_hand.end()
        finally:
            with self._door:
                self._asking -= 1
                self._answered += 1
                self._door.notify_all()

    @contextmanager
    def reading(self) -> Iterator[Projection]:
        """The read model itself, which does not change while the block runs. For reading only, and for a short time:
        no event is taken in meanwhile. Raises what stopped the projection, and `Unavailable` once it is closed."""
        if not self._opened:
            self.open()
        with self._changed:
            if self.failed is not None:
                raise self.failed.with_traceback(None)
            with self._transaction(), self._watched("reading"):
                yield self._kept.model

    @contextmanager
    def _watched(self, handler: str) -> Iterator[None]:
        """While something runs that might change a state in memory. What it has changed is undone, and raises
        `HandlerFailed`. The caller holds the lock."""
        model = self._kept.model
        attributes = dict(vars(model))
        before = self._guard.before(self._changes) if self._in_memory else None
        try:
            yield
        finally:
            if before is not None:
                what = self._guard.changed(before, self._changes)
            else:  # what it changed in the store does not stay
                now = vars(model)
                what = next((f"{name} is not what it was" for name in now if now[name] is not attributes.get(name)), "")
            if what:
                model.__dict__.clear()
                model.__dict__.update(attributes)
                self._changes += 1
                if before is not None:
                    self._kept.restore()
                name = f"{self._projection.__name__}.{handler}"
                wrong = f"it changed the read model, and only @project may: {what}; the state was restored from the log"
                raise HandlerFailed(name, "a query", wrong)

    def answer_here(self, answering: Callable[[Any, Any], T], query: object) -> T:
        """What a method of the projection answers to a query that was never packed, for a caller in this process.
        Raises what `reading` does, and what the method raises. The answer is a copy of what belongs to the read
        model."""
        kept = self._kept
        with self._lock:
            if self._in_memory and kept.failed is None and not self._closed and not kept.restoring():
                if answering in self._only_read:
                    answer = answering(kept.model, query)
                    return answer if type(answer) in UNCHANGING else own_copy(answer)
                with self._watched(getattr(answering, "__name__", "answer")):
                    return own_copy(answering(kept.model, query))
        with self.reading() as model:
            return own_copy(answering(model, query))

    def fail(self, error: RayfoldError) -> None:
        """Take in nothing more, and raise this error in every query and every waiting caller."""
        with self._changed:
            self._kept.failed = error
            self._changed.notify_all()
        self.notify_changed()

    def wait_for(self, after: Mapping[int, int], timeout_s: float) -> None:
        """Return once `after` is visible here. Raises `NotYetVisible` after `timeout_s`, with the place reached; at
        once what has stopped the projection short of it, and `Unavailable` when the read model was closed."""
        with self._changed:
            self.wait_until(lambda: self._behind(after) is None, timeout_s)
            missing = self._behind(after)
            if missing is None:
                return
            if self.failed is not None:
                raise self.failed.with_traceback(None)
            name = self._projection.projection_name
            if self._closed:
                raise Unavailable(name, "this read model was closed")
            partition, asked = missing
            raise NotYetVisible(name, partition, asked, self.positions.get(partition, 0))

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Return when it holds, or nothing will change any more, or the time is over. It is checked whenever events
        have been taken in."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.failed is not None or self._closed, timeout_s)

    def _behind(self, after: Mapping[int, int]) -> tuple[int, int] | None:
        for partition, position in after.items():
            if self.positions.get(partition, 0) < position:
                return partition, position
        return None

    def _answer(self, query: tuple[str, bytes], plain: bool) -> Any:
        """One answer. `plain`: there is no store to read from, and nothing in the way."""
        name, payload = query
        try:
            if self.failed is not None:
                return self.failed
            message_class = self._catalogue.query(self._projection, name)
            message = decode_message(message_class, payload)
            if plain and (direct := self._direct.get(message_class)) is not None:
                try:
                    answer = direct(self._kept.model, message)
                except _OF_A_CALL as error:
                    return self._raised(name, error)
                return self._gave_error(name, answer) if isinstance(answer, RayfoldError) else answer
            answering = self._projection.answers[message_class]
            with nullcontext() if plain else self._transaction(), self._watched(answering.__name__):
                answer = _called(answering, self._kept.model, message)
            if type(answer) is _HandlerError:
                if isinstance(answer.error, _OF_A_CALL):
                    return self._raised(name, answer.error)
                raise answer.error
            return self._gave_error(name, answer) if isinstance(answer, RayfoldError) else answer
        except RayfoldError as error:
            return error
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return self._raised(name, error)

    def _gave_error(self, name: str, error: RayfoldError) -> HandlerFailed:
        """An error travels as what was raised, so it cannot be the value of an answer."""
        wrong = TypeError(f"it returned a {type(error).__name__} as its answer; raise it, or return its facts")
        return self._raised(name, wrong)

    def _raised(self, name: str, error: BaseException) -> HandlerFailed:
        """The failure for what an answer handler, or the code of a query's class, has raised."""
        failed = HandlerFailed.caused_by(f"{self._projection.__name__} @answer", name, error)
        self._log_once(failed, error)
        return failed

    def _log_once(self, failed: HandlerFailed, cause: BaseException) -> None:
        """The caller gets one line; to repair the handler the trace is needed, once for each kind of failure."""
        kind = f"{failed.subject} {class_name(cause)}"
        if kind not in self._logged and len(self._logged) < _LOGGED_MAX:
            self._logged.add(kind)
            log.warning("%s (further ones of this kind are not logged)", failed, exc_info=exc_info_of(cause))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A read transaction of the store, from which nothing stays. The caller holds the lock."""
        if self._closed:
            raise Unavailable(self._projection.projection_name, "this read model was closed")
        if self._kept.restoring():
            what = "its state is being restored, and the log cannot be read at the moment"
            raise Unavailable(self._projection.projection_name, what)
        if self._in_memory:
            yield
            return
        self._kept.store.begin(reading=True)
        try:
            yield
        finally:
            self._kept.store.roll_back()

    # --- the standing check --------------------------------------------------------------------------------------

    def may_be_checked(self) -> bool:
        """Whether it works, and holds what a fold of the log would: nothing was taken in out of order."""
        return self._opened and not self._closed and self._kept.failed is None and self._kept.in_order

    def taken(self, copied: Callable[[Projection], T | None]) -> tuple[T, dict[int, int], int] | None:
        """A copy of the state in memory, the positions it is at, and how many events are set aside; None if it cannot
        be copied, or is being restored."""
        with self._feeding, self._changed:
            if not self.may_be_checked() or self._kept.restoring():
                return None
            found = copied(self._kept.model)
            return None if found is None else (found, dict(self.positions), len(self.quarantined))

    def go_on_from(self, other: ReadModel) -> None:
        """Take over the state of another one of the same projection, and then what came after it. The old state, and
        the checkpoints that were made of it, are not used any more."""
        with self._feeding, self._changed:
            if not self._closed:
                self._changes += 1
                self._kept.go_on_from(other._kept)
                self._checkpoint_at = (0, 0.0, 0.0)  # one of the right state is due
                self._changed.notify_all()
        self.notify_changed()

    # --- beside the path -----------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """How far this read model is. Does not wait for a page that is being taken in."""
        positions, kept = dict(self.positions), self._kept
        replaying = any(positions[partition] < head for partition, head in kept.log_heads.heads.items())
        events_applied = sum(positions.values()) - self._opened_at
        recorded_at_us = kept.recorded_at_us()
        return Progress(positions, events_applied, recorded_at_us, kept.failed, len(kept.quarantined), replaying)

    def checkpoint(self) -> int:
        """Write the state in memory and its positions to the directory; returns the bytes written.

        0 where there is nothing to write: no directory, rows or tables (which are written with every page), a state
        that cannot be saved (logged once; the partitions' logs are read at the next start). The read model is locked
        while the state is encoded, not while it is written. Raises `StorageFailed`.
        """
        store = self._kept.store
        if self._directory is None or not isinstance(store, MemoryStore):
            return 0
        with self._checkpointing:
            with self._changed:
                if self._closed or not self._opened:
                    return 0
                began_s, events = time.monotonic(), sum(self.positions.values())
                try:
                    copy = self._kept.copy()
                except (DefinitionError, InvalidMessage) as error:
                    return self._never_checkpoint(error)
                now_s = time.monotonic()
                self._checkpoint_at = (events, now_s, now_s - began_s)
                unsure, self._guard.unsure = self._guard.unsure, False
                place, in_order = dict(self.positions), self._kept.in_order
            if unsure and in_order and not self._is_a_fold(copy, place):
                return 0
            try:
                return store.write(copy)
            except InvalidMessage as error:
                return self._never_checkpoint(error)

    def _is_a_fold(self, copy: tuple[int, bytes], place: Mapping[int, int]) -> bool:
        """Whether a copy is what the last checkpoint and the events since then make; if not, go on from that."""
        aside = ReadModel(
            self._projection, self._catalogue, self._readers, directory=self._directory, part=self._kept.part
        )
        try:
            aside.open()
            for partition, position in place.items():
                aside.catch_up(partition, position)
            if aside.failed is not None or aside.positions != place or aside._kept.copy()[1] == copy[1]:
                return True
            log.error(
                "a query has changed the read model %s: it goes on from the last checkpoint and the log",
                self._projection.projection_name,
            )
            self.go_on_from(aside)
            return False
        finally:
            aside.close()

    def _never_checkpoint(self, error: Exception) -> int:
        name = self._projection.projection_name
        log.warning("projection %s has no checkpoint, each start reads the whole log: %s", name, error)
        self._directory = None
        return 0

    def checkpoint_due(self) -> bool:
        """True after 100,000 events, or after 60 s with any, and 50 times as long as the last one held the lock."""
        if self._directory is None or not self._in_memory or not self._opened or self._closed:
            return False
        events, at_s, held_s = self._checkpoint_at
        fresh, since_s = sum(self.positions.values()) - events, time.monotonic() - at_s
        wanted = fresh >= CHECKPOINT_EVENTS or (fresh > 0 and since_s >= CHECKPOINT_S)
        return wanted and since_s >= CHECKPOINT_SHARE * held_s

    def retry_quarantined(self) -> tuple[Quarantined, ...]:
        """Take the events in quarantine in, each once, marked as replayed and out of order: after all that has been
        taken in since. Returns those that still cannot be.

        For what a handler found outside and is mended now. A mended handler is other code, with which the read model is
        rebuilt from the log, in order.
        """
        with self._feeding, self._changed:
            self._check_running()
            self._changes += 1
            self._guard.unsure = False  # no fold would make the same, so there is nothing to compare with
            try:
                return self._kept.retry_quarantined()
            finally:
                self._changed.notify_all()

    def rebuild_stream(self, stream: StreamId, partition: int) -> None:
        """Forget one aggregate's part (`@forget`) and take its events in anew, marked as replayed, while queries wait.
        `partition`: where the aggregate's stream is.

        Its events leave quarantine, if they can. Raises `DefinitionError` without a `@forget` method, what stopped the
        projection, and `HandlerFailed` when a handler raises: then nothing has changed.
        """
        with self._feeding, self._changed:
            self._check_running()
            self._changes += 1
            self._guard.unsure = False  # no fold would make the same, so there is nothing to compare with
            try:
                self._kept.rebuild_stream(stream, partition)
            finally:
                self._changed.notify_all()

    def _check_running(self) -> None:
        self.open()
        if self.failed is not None:
            raise self.failed.with_traceback(None)
