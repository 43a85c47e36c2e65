"""StoredModel: a read model, the store that keeps it, and the place in the log that it is at. One thread at a time.

Step [7] of the read path, between `read_model.py` (order, gaps, locks) and the stores. A page of records is taken in as
one transaction with its checkpoint; what a handler that raised has half done is undone before a query can see it.

Rules kept here:
- after each call the read model is a fold of exactly the events up to its positions, save those in quarantine
- an event that a handler raises on is tried `TRIES` times, each time from the state before it; then the projection
  stops, or sets the event aside with `on_failure="quarantine"`
- the positions that others see never go back, also while a state in memory is being restored and replayed
- a store that was written by other code, or for another history of the log, is not used: the log is the truth

Why undoing costs nothing until it is needed: a transaction is rolled back; a state in memory goes back to its last copy
and the log is replayed from there, which takes as long as reading the events since that copy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..domain.projection import Projection
from ..domain.read_store import ReadStore
from ..encoding.catalogue import Catalogue
from ..errors import Damaged, DefinitionError, HandlerFailed, RayfoldError, StorageFailed, StoreError
from ..in_hand import InHand
from ..log.contract import Reader
from ..log.format import chain_of, decode_record, record_position
from ..printable import exc_info_of, printable_log
from ..stream import StreamId
from ..user_code import is_ctrl_c
from .event_applier import EventApplier, Failure, Page, recorded_at_us_of
from .log_heads import LogHeads
from .stores.checkpoint import ERROR_CHARS_MAX, QUARANTINED_MAX, Checkpoint, Quarantined
from .stores.folder import discard_at_next_opening, empty_folder, folder_of_code
from .stores.memory import MemoryStore

__all__ = ["PAGE_BYTES_MAX", "PAGE_EVENTS", "TRIES", "StoredModel"]

log = printable_log(__name__)

PAGE_EVENTS: Final = 512
"""Events applied per hold of the lock: about 2-5 ms, which is what a query may have to wait."""

PAGE_S: Final = 0.020
"""No further event of a page is begun after this: what a query may have to wait where handlers are slow. Of quick ones
a whole page fits in."""

_NEVER: Final = float("inf")

_REST: Final = sys.maxsize
"""As many records as there are."""

PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bounds memory of one page when events are large."""

TRIES: Final = 3
"""Attempts of one event. A handler mostly fails the same way on the same state and event; only what it reads outside
may differ."""


class StoredModel:
    """The state of one part of a projection, its store and its checkpoint."""

    def __init__(
        self,
        projection: type[Projection],
        catalogue: Catalogue,
        readers: Mapping[int, Reader],
        part: int,
        in_hand: InHand | None = None,
    ) -> None:
        self.model = projection()
        self._in_hand = in_hand or InHand(None)
        self.positions: dict[int, int] = dict.fromkeys(readers, 0)
        """The position of the last event taken in, by partition, as others may see it."""
        self.failed: RayfoldError | None = None
        """Why this projection has stopped, if it has."""
        self.other_history = ""
        """Why what was stored did not follow the present log: that is an alarm. Empty if it did."""
        self.quarantined: tuple[Quarantined, ...] = ()
        self.log_heads = LogHeads(readers)
        self.store: ReadStore = projection.read_store.make()
        self._projection = projection
        self._catalogue = catalogue
        self._readers = readers
        self.part = part
        self._loop = EventApplier(projection, catalogue, part)
        self._at = Checkpoint(dict(self.positions), {}, dict.fromkeys(readers, 0))
        self._called_up_to = dict.fromkeys(readers, 0)
        """Up to where handlers have seen events that were not committed then: what comes once more is replayed."""
        self._tried: tuple[int, int] = (0, 0)
        """Partition and position of the event that has just failed inside a page: its first try."""
        self._folder: Path | None = None

    # --- opening -------------------------------------------------------------------------------------------------

    def open(self, directory: Path | None) -> None:
        """Restore what the store holds if it was written by the same code from the same log, else start empty.

        Each version of the code has a folder of its own in `directory`; those of others are removed. What cannot be
        opened now is kept, and tried again by the next opening; what is damaged is made from the log. Raises
        `StoreError`, and `DefinitionError` for a store that cannot be made.
        """
        self.log_heads.look()
        if directory is not None:
            self._folder = folder_of_code(directory, self._catalogue.fingerprint(self._projection))
        try:
            stored = self.store.open(self.model, self._folder)
            found = None if stored is None else Checkpoint.unpacked(stored)
            wrong = "" if stored is None else "its checkpoint is damaged"
            if found is not None:
                wrong = found.objection(self._readers, self._readers.keys() - self.log_heads.unseen)
        except Damaged as error:
            if self._folder is None:
                self.store.close()
                raise
            found, wrong = None, str(error)
        except BaseException:  # a disk that refuses, a log out of reach: no evidence against what is stored
            self.store.close()  # its lock too, which the next opening needs
            raise
        if wrong:
            self.other_history = wrong if found is not None else ""
            self._start_over(wrong)
        elif found is not None:
            self._at = found
            self.quarantined = found.quarantined
            self.positions.update(found.positions)

    def _look_again(self, partition: int) -> None:
        """At a log that was out of reach: what is in it is replayed, and it must be the one that was followed."""
        if self.log_heads.look_at(partition) and (why := self._at.objection(self._readers, [partition])):
            self.other_history = why
            if self._folder is not None:
                discard_at_next_opening(self._folder)
            self.stop(partition, self.positions[partition] + 1, Damaged(f"partition {partition}", why))

    def _start_over(self, why: str) -> None:
        """Empty the store: the read model is made from the log."""
        name = self._projection.projection_name
        log.warning("the stored read model of projection %s is not used, the log is read instead: %s", name, why)
        self.store.close()
        if self._folder is not None:
            empty_folder(self._folder)
        self.model.__dict__.clear()
        self.model.__dict__.update(vars(self._projection()))
        self.store = self._projection.read_store.make()
        try:
            self.store.open(self.model, self._folder)
        except BaseException:
            self.store.close()
            raise

    def close(self) -> None:
        """Release the store."""
        self.store.close()

    # --- taking in -----------------------------------------------------------------------------------------------

    def take_in(self, partition: int, records: Sequence[bytes], *, checked: bool) -> int:
        """Take in the records that follow on the position of this partition, up to one that stops the projection, or
        until that has taken `PAGE_S`. Returns how many are done with.

        A record that was only sent (not `checked`) and is damaged ends it too; it may be right in the log. Raises
        `StorageFailed` when the store's disk refused: then nothing of the last page was taken in.
        """
        if partition in self.log_heads.unseen:
            self._look_again(partition)
        self._replay()
        until_s = time.perf_counter() + PAGE_S
        in_all, size = 0, _REST
        while in_all < len(records) and size and self.failed is None:
            some = records[in_all : in_all + size] if in_all or size < len(records) else records
            done, size = self._advance(partition, some, checked, until_s if size == _REST else _NEVER)
            in_all += done
            if in_all and time.perf_counter() > until_s:
                break
        here = self._at.positions[partition]
        assert self.failed is not None or here == self.positions[partition], (
            "the state is at the positions that other threads have seen"
        )
        return in_all

    def _advance(self, partition: int, records: Sequence[bytes], checked: bool, until_s: float) -> tuple[int, int]:
        """One transaction, and what follows from a failure in it. Returns how many records are done with, and how many
        the next transaction is to take in: mostly the rest; those before the failure, if it has undone them; 0 where
        what was sent is damaged."""
        before = self._at.positions[partition]
        failure = self._attempt(partition, records, checked, self._marked_up_to(partition), until_s)
        if failure is None:
            if self._tried == (partition, self._at.positions[partition] + 1):
                self._keep()  # its next failure need not go back farther
            return self._loop.done, _REST
        index = failure.applied
        if not failure.half_applied:  # those before it are committed
            if not (isinstance(failure.error, Damaged) and not checked):
                self._give_up(partition, records[index], failure)
                return index + 1, _REST
            return 0, 0
        self._called_up_to[partition] = before + (index + 1 if failure.event else len(records))
        self._go_back()
        if isinstance(failure.error, Damaged):
            if self._folder is not None:
                discard_at_next_opening(self._folder)
            self.stop(partition, before + index + 1, failure.error)
        if self.failed is not None:
            return 0, 0
        if index:
            self._tried = (partition, before + index + 1)
            return 0, index
        if len(records) > 1 and not failure.event:  # the whole page was refused: find out which event it was
            return 0, len(records) // 2
        self._try_again(partition, records[0], checked, failure)
        return 1, _REST

    def _marked_up_to(self, partition: int) -> int:
        return max(self.log_heads.heads[partition], self._called_up_to[partition])

    def _attempt(
        self,
        partition: int,
        records: Sequence[bytes],
        checked: bool,
        replayed_up_to: int,
        until_s: float = _NEVER,
    ) -> Failure | None:
        """Apply records and commit them with their checkpoint.

        With a failure that has left nothing half-done those before it are committed; else the transaction is still
        open, and `_go_back` ends it.
        """
        before = self._at.positions[partition]
        aside: set[int] = set()
        if self.quarantined:
            aside = {entry.position for entry in self.quarantined if entry.partition == partition}
        self.store.begin()
        try:
            page = Page(partition, before + 1, records, checked, replayed_up_to, aside, until_s)
            try:
                failure = self._loop.run(self.model, page)
            finally:
                self._in_hand.came_back()
            if failure is not None and isinstance(failure.error, StorageFailed):
                raise failure.error  # a full disk, met in a handler: no fault of the event
            if failure is None or not failure.half_applied:
                done = self._loop.done if failure is None else failure.applied
                self._commit(self._after(partition, records if done == len(records) else records[:done]))
        except StoreError:
            self._undo()
            raise
        except BaseException as error:  # of a commit: rows that their table refuses, for example
            if is_ctrl_c(error):  # in the middle of a handler
                self._undo()
                raise
            subject = f"events {before + 1} to {before + len(records)} of partition {partition}"
            failed = HandlerFailed.caused_by(f"the commit of {self._projection.__name__}", subject, error)
            failed.__cause__ = error
            return Failure(0, failed, half_applied=True)
        return failure

    def _after(self, partition: int, records: Sequence[bytes]) -> Checkpoint:
        """The checkpoint once these records have been taken in."""
        at = self._at
        if not records:
            return at._replace(quarantined=self.quarantined)
        return Checkpoint(
            {**at.positions, partition: at.positions[partition] + len(records)},
            {**at.chains, partition: chain_of(records[-1])},
            {**at.recorded_at_us, partition: recorded_at_us_of(records[-1])},
            self.quarantined,
            at.out_of_order,
        )

    def _commit(self, checkpoint: Checkpoint) -> None:
        if not isinstance(self.store, MemoryStore):
            self.store.commit(checkpoint.packed())
        self._at = checkpoint
        for partition, position in checkpoint.positions.items():
            if position > self.positions[partition]:
                self.positions[partition] = position

    def copy(self) -> tuple[int, bytes]:
        """A copy of a state in memory, for `MemoryStore.write`. Raises `DefinitionError` or `InvalidMessage`."""
        assert isinstance(self.store, MemoryStore)
        self.store.commit(self._at.packed())  # only now: packing it with every event took as long as the event
        return self.store.encode()

    @property
    def in_order(self) -> bool:
        """Whether a fold of the log makes the same: nothing is set aside, or was taken in after later events."""
        return not (self.quarantined or self._at.out_of_order)

    def recorded_at_us(self) -> dict[int, int]:
        """When the last event taken in was recorded, by partition; 0 before the first."""
        return dict(self._at.recorded_at_us)

    # --- when a handler raises -----------------------------------------------------------------------------------

    def _go_back(self) -> None:
        """Undo what the open transaction has half done, and return to the positions that other threads have seen."""
        self._undo()
        self._replay()

    def _undo(self) -> None:
        stored = self.store.roll_back()
        found = None if stored is None else Checkpoint.unpacked(stored)
        self._at = found or Checkpoint(dict.fromkeys(self.positions, 0), {}, dict.fromkeys(self.positions, 0))

    def restoring(self) -> bool:
        """True when the state is not at `positions`, because the log could not be read while it was restored."""
        return self._at.positions != self.positions

    def restore(self) -> None:
        """Put the state in memory back to its last copy, and read the log from there to where it was."""
        self._go_back()

    def go_on_from(self, other: StoredModel) -> None:
        """Take over the state in memory of another one of the same projection, at its place, and read on from there."""
        self.model.__dict__.clear()
        self.model.__dict__.update(vars(other.model))
        self._at = other._at
        self._keep()
        self._replay()

    def _replay(self) -> None:
        """Read the log again from where the state is to where it was before. Raises `StorageFailed`."""
        if not self.restoring():
            return
        for partition, position in self.positions.items():
            while (reached := self._at.positions[partition]) < position and self.failed is None:
                limit = min(PAGE_EVENTS, position - reached)
                records = self._readers[partition].read(reached, limit, PAGE_BYTES_MAX)
                if not records:
                    what = f"it ends at {reached}, though {position} was read before"
                    raise Damaged(f"the log of partition {partition}", what)
                failure = self._attempt(partition, records, True, position)
                if failure is not None:
                    self.stop(partition, self._at.positions[partition] + 1, failure.error)

    def _try_again(self, partition: int, record: bytes, checked: bool, failure: Failure) -> None:
        """The event after the present position has failed: try it again, alone, then give it up."""
        tries = 2 if self._tried == (partition, self._at.positions[partition] + 1) else 1
        if tries == 1:
            self._keep()
        while tries < TRIES and self.failed is None:
            again = self._attempt(partition, [record], checked, self._marked_up_to(partition))
            if again is None:
                return
            self._go_back()
            failure, tries = again, tries + 1
        if self.failed is None:
            self._give_up(partition, record, failure)

    def _give_up(self, partition: int, record: bytes, failure: Failure) -> None:
        """Set the event after the present position aside, or stop before it, as the projection declares."""
        position, error = self._at.positions[partition] + 1, failure.error
        if isinstance(error, Damaged) or self._projection.on_failure == "stop":
            self.stop(partition, position, error)
        elif len(self.quarantined) >= QUARANTINED_MAX:
            what = f"{error}; {QUARANTINED_MAX} events are in quarantine already, which is the limit"
            self.stop(partition, position, HandlerFailed(self._projection.__name__, "one event too many", what))
        else:
            entry = Quarantined.of(partition, decode_record(record, checked=True), error)
            self.quarantined = (*self.quarantined, entry)
            assert len(self.quarantined) <= QUARANTINED_MAX
            self.store.begin()
            self._commit(self._after(partition, [record]))
            log.warning(
                "projection %s has set event %d of partition %d aside and goes on without it, %d of %d places in"
                " quarantine are taken: %s",
                self._projection.projection_name,
                position,
                partition,
                len(self.quarantined),
                QUARANTINED_MAX,
                error,
                exc_info=exc_info_of(error.__cause__),
            )

    def give_up_unseen(self, partition: int, record: bytes, error: RayfoldError) -> None:
        """Set the next event aside, or stop before it, without giving it to a handler."""
        self._replay()
        if self.failed is None:
            self._give_up(partition, record, Failure(0, error, half_applied=False))

    def stop(self, partition: int, position: int, error: RayfoldError) -> None:
        """Take in nothing more: the event at this position cannot be."""
        self.failed = error
        log.error(
            "projection %s stopped before event %d of partition %d: %s; mend the handler and start again, the read"
            " model is rebuilt from the log",
            self._projection.projection_name,
            position,
            partition,
            error,
            exc_info=exc_info_of(error.__cause__),
        )

    def _keep(self) -> None:
        """A state in memory is copied where it is now, so that going back to it is cheap, and includes what was taken
        in out of order."""
        if isinstance(self.store, MemoryStore):
            self.store.commit(self._at.packed())
            self.store.keep()

    # --- out of order --------------------------------------------------------------------------------------------

    def retry_quarantined(self) -> tuple[Quarantined, ...]:
        """Take the events in quarantine in, each once and as replayed. Returns those that are in it still."""
        for entry in self.quarantined:
            rest = tuple(other for other in self.quarantined if other != entry)
            (record,) = self._readers[entry.partition].read(entry.position - 1, 1)
            failure = self._out_of_order(rest, lambda: None, entry.partition, [record])
            if failure is not None:
                updated = entry._replace(error=str(failure.error)[:ERROR_CHARS_MAX])
                self.quarantined = tuple(updated if other == entry else other for other in self.quarantined)
        return self.quarantined

    def rebuild_stream(self, stream: StreamId, partition: int) -> None:
        """Forget one aggregate's part and take its events in anew, up to the present position, in one transaction.

        Raises `DefinitionError` without a `@forget` method, and `HandlerFailed` when a handler raises: then nothing
        has changed.
        """
        forgets = self._projection.forgets
        if forgets is None:
            remedy = "add one: @forget def forget(self, stream: StreamId) -> None"
            raise DefinitionError(self._projection.__name__, "it has no @forget method", remedy)
        records = self._records_of(stream, partition, self._at.positions[partition])
        rest = tuple(entry for entry in self.quarantined if entry.stream != str(stream))
        failure = self._out_of_order(rest, lambda: forgets(self.model, stream), partition, records)
        if failure is not None:
            raise failure.error

    def _records_of(self, stream: StreamId, partition: int, up_to: int) -> Iterator[bytes]:
        """The records of a stream up to a position, read page by page: a stream may be larger than memory."""
        version = 1
        while page := self._readers[partition].read_stream(stream, version, None, PAGE_EVENTS, PAGE_BYTES_MAX):
            for record in page:
                if record_position(record) > up_to:
                    return
                yield record
            version += len(page)

    def _out_of_order(
        self, quarantined: tuple[Quarantined, ...], first: Callable[[], None], partition: int, records: Iterable[bytes]
    ) -> Failure | None:
        """One transaction that does `first`, takes in records that were passed before, and leaves the place as it is.

        With a failure nothing has changed.
        """
        before = self.quarantined
        self._keep()
        self.store.begin()
        failure: Failure | None = None
        try:
            first()
            for record in records:
                position = record_position(record)
                failure = self._loop.run(self.model, Page(partition, position, [record], True, position))
                if failure is not None:
                    break
            else:
                self.quarantined = quarantined
                self._commit(self._after(partition, ())._replace(out_of_order=True))
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            self.quarantined = before
            failed: RayfoldError = HandlerFailed.caused_by(
                self._projection.__name__, "events taken in once more", error
            )
            if isinstance(error, StoreError):  # of reading the log
                failed = error
            failure = Failure(0, failed, half_applied=True)
        if failure is not None:
            self._go_back()
        self._keep()
        return failure
