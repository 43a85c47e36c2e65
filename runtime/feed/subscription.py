"""A subscription: the events of a store from some place on, for a program that does something with each of them.

Beside the write path. Before it: `log_follower.py` reads the logs. After it: the caller's own code; asynchronously
through `actors/api/subscriptions.py`, or in a plain process through `BlockingSubscription` here, without Ray and
without a runtime.

Rules kept here:
- in each partition events come in order, and each once; what the logs held already and what comes later are one
  sequence. Between two partitions there is no order
- what is filtered out still counts as seen: a subscription to a rare event does not read the log again from its start
- the next page is read when the last one is used up, so a slow consumer holds one page and slows only itself
- what cannot be read or decoded is an error at its place, after everything before it, each time it is come to
- what is acknowledged was yielded before, or filtered out. It is saved at most every `SAVE_EVERY_S` by itself, so after
  a crash some events come again: at least once
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, Protocol, Self, TypeAlias

from ..domain.messages import Event
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..errors import CallerError, InvalidMessage, RayfoldError, StorageFailed
from ..log.contract import Reader
from ..log.format import record_position
from ..printable import shown
from ..read.positions import check_store
from ..read.time_travel import checked_place, place_of
from ..read.unreadable import Unreadable
from ..receipt import Receipt
from ..store.readable_store import ReadableStore
from ..stream import StreamId, partition_of
from .committed_positions import CommittedPositions, Member, check_member
from .event_filter import EventFilter, Happened, Key, Streams, Types, happened_in
from .group_coordinator import link_at
from .indexed_streams import by_index
from .log_follower import PAGE_RECORDS, LogFollower

__all__ = [
    "BlockingSubscription",
    "Committed",
    "Feed",
    "SubscriptionOptions",
    "check_batch",
    "close_forgotten",
    "open_feed",
]

SAVE_EVERY_S: Final = 0.1
"""Between two acknowledgements that are saved without being asked for: each costs two fsyncs, about half a
millisecond, and after a crash the events of so long come again."""

CLOSE_WAIT_S: Final = 1.0
"""Limit for closing a forgotten subscription: it takes about a millisecond."""

BATCH_MAX: Final = PAGE_RECORDS
"""Events of one batch: a page."""

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # the one that knows defaults, for checkers alone

    OneOf = TypeVar("OneOf", bound=Event, covariant=True, default=Event)
    Chosen = TypeVar("Chosen", bound=Event)
else:
    from typing import TypeVar

    OneOf = TypeVar("OneOf", bound=Event, covariant=True)
    Chosen = TypeVar("Chosen", bound=Event)

From: TypeAlias = Literal["beginning", "end"] | Mapping[int, int] | Receipt
Acknowledging: TypeAlias = Literal["on next", "by hand"]


class Feed:
    """One subscription without its waiting: pages are read, events taken from them, and places acknowledged.

    `fill` and `save` may run in another thread than the rest, one call at a time each.
    """

    def __init__(
        self,
        follower: LogFollower,
        chosen: EventFilter,
        acknowledged: CommittedPositions | None = None,
        *,
        by_hand: bool = False,
    ) -> None:
        self.follower = follower
        self._chosen = chosen
        self._acknowledged = acknowledged
        self._by_hand = by_hand
        self._process = os.getpid()
        self._buffer: deque[Happened] = deque()
        """At most a page."""
        self._filled = follower.positions
        """Up to where the buffer goes, with what was filtered out behind its last event."""
        self._yielded = follower.positions
        """Partition -> position of the last event that was yielded."""
        self._passed = follower.positions
        """Partition -> position up to which everything was yielded or filtered out."""
        self._settled = follower.positions
        """Partition -> position up to which everything is acknowledged, saved or not."""
        self._replayed_up_to = follower.heads()
        self._failure: RayfoldError | None = None
        """What ended the last page, raised when its events are used up."""
        self._saved_at_s = 0.0

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything was yielded or filtered out. A copy."""
        return dict(self._passed)

    @property
    def acknowledged(self) -> dict[int, int]:
        """Partition -> position up to which everything is acknowledged on the disk. Raises `CallerError`."""
        return self._durable().positions

    def fill(self) -> None:
        """Read the next page into the buffer, if that is empty. Raises what stands at its beginning: `Damaged`,
        `UnknownEvent`, `HandlerFailed`; or `StorageFailed`. The next call comes to it again."""
        if self._buffer:
            return
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        chosen: list[Happened] = []
        for partition, records in self.follower.read():
            failure = self._choose(partition, records, chosen) or failure
        self._filled = self.follower.positions
        if not chosen:
            self._passed = dict(self._filled)
            if failure is not None:
                raise failure
        self._failure = failure
        self._buffer.extend(chosen)

    def take(self) -> Happened | None:
        """The next event of the buffer; None if it is empty."""
        if not self._buffer:
            return None
        event, recorded = self._buffer.popleft()
        partition, position = recorded.partition, recorded.position
        # Of one record there may be several events: it is passed with the last of them.
        more = bool(self._buffer) and self._buffer[0][1][2:4] == recorded[2:4]
        self._yielded[partition] = position
        self._passed[partition] = position - more
        if not self._buffer:
            self._passed = dict(self._filled)
        return event, recorded

    def take_all(self, max_items: int) -> list[Happened]:
        """At most so many of the buffer."""
        return [happened for happened in (self.take() for _ in range(min(max_items, len(self._buffer)))) if happened]

    @property
    def buffered(self) -> int:
        """Events that `take` has at once."""
        return len(self._buffer)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.follower.closed

    def asked(self) -> bool:
        """The consumer asks for more, and so (unless it acknowledges by hand) is done with what it has. True if there
        is something to be saved now. Raises `SubscriptionInUse` if another process has taken the name."""
        if self._acknowledged is None:
            return False
        self._acknowledged.check_open()
        if self._by_hand:
            self._settle_filtered_out()
        else:
            self._settled = dict(self._passed)
        due = time.monotonic() - self._saved_at_s >= SAVE_EVERY_S
        return due and self._settled != self._acknowledged.positions

    def acknowledge(self, recorded: Recorded | None = None) -> None:
        """Acknowledge everything that was yielded so far, or up to one event of its partition. Not saved yet.

        Raises `CallerError` without a name, once it was closed, and for an event that was not yielded.
        """
        self._durable()
        if self.closed:
            raise CallerError("the subscription was closed; what is not acknowledged comes again to the next one")
        if recorded is None:
            self._settled = dict(self._passed)
            return
        if not isinstance(recorded, Recorded):
            raise InvalidMessage("acknowledge", f"{recorded!r} is not a place", "give the Recorded of an event")
        partition, position = recorded.partition, recorded.position
        if position > self._yielded.get(partition, 0):
            what = f"position {position} of partition {partition} has not been yielded, so it cannot be acknowledged"
            raise CallerError(what)
        self._settled[partition] = max(self._settled[partition], min(position, self._passed[partition]))
        self._settle_filtered_out()

    def save(self, *, wait: bool = False) -> None:
        """Save what is acknowledged. With `wait` all of it is on the disk when this returns; else a partition that does
        not answer now gets it next time. Raises `StorageFailed`, `SubscriptionInUse`, and `Unavailable`."""
        if self._acknowledged is not None:
            self._saved_at_s = time.monotonic()
            self._acknowledged.save(self._settled, wait=wait)

    def close(self) -> None:
        """Save what is acknowledged, and release everything. Closing twice is allowed. In a forked child, which knows
        only what its parent had acknowledged by then, it does nothing."""
        if self.follower.closed or self._process != os.getpid():
            return
        self.follower.close()
        if self._acknowledged is not None:
            self._acknowledged.close(self._settled)

    def _durable(self) -> CommittedPositions:
        if self._acknowledged is None:
            raise CallerError("a subscription without a name has nothing to acknowledge; subscribe with a name")
        return self._acknowledged

    def _settle_filtered_out(self) -> None:
        """Where all that was yielded is acknowledged, what was filtered out behind it is too."""
        for partition, yielded in self._yielded.items():
            if yielded <= self._settled[partition]:
                self._settled[partition] = self._passed[partition]

    def _choose(self, partition: int, records: Sequence[bytes], chosen: list[Happened]) -> RayfoldError | None:
        """Append the chosen ones of these records. The first that cannot be used ends it, and will be read again."""
        live_after = self._replayed_up_to[partition]
        for record in records:
            position = record_position(record)
            try:
                happened = happened_in(record, position, self._chosen, partition, position <= live_after)
            except RayfoldError as error:
                self.follower.go_back(partition, position - 1)
                return error
            chosen += happened
        return None


class BlockingSubscription(Generic[OneOf]):
    """The events as a plain iterator, which waits for the next one. Ended by `close`, also from another thread.

    A context manager; an iterator to which there is no reference any more is closed too. Iterating raises
    `Damaged`, `UnknownEvent`, `HandlerFailed` or `StorageFailed` where an event cannot be read.

    Example:
        with bank.subscribe("mailer", acknowledge="by hand") as events:
            for event, recorded in events:
                send_mail(event)
                events.acknowledge(recorded)
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[OneOf, Recorded]:
        """The next event and its place. Raises `Damaged`, `UnknownEvent`, `HandlerFailed` or `StorageFailed` where it
        cannot be had."""
        self._await_some()
        happened = self._feed.take()
        if happened is None:
            raise StopIteration
        return happened  # type: ignore[return-value]  # the filter chose it

    def batches(self, max_items: int = BATCH_MAX) -> Iterator[list[tuple[OneOf, Recorded]]]:
        """Lists of 1 to `max_items` events, at most 512: what there is, without waiting for more of it."""
        check_batch(max_items)
        while True:
            self._await_some()
            batch = self._feed.take_all(max_items)
            if not batch:
                return
            yield batch  # type: ignore[misc]  # the filter chose them

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything was yielded or filtered out."""
        return self._feed.positions

    @property
    def acknowledged(self) -> dict[int, int]:
        """Partition -> position up to which everything is acknowledged, on the disk. Raises `CallerError`."""
        return self._feed.acknowledged

    def acknowledge(self, recorded: Recorded | None = None) -> None:
        """Acknowledge everything yielded so far, or up to one event of its partition; on the disk when it returns.

        Raises `CallerError` without a name, once it was closed, or for an event that was not yielded,
        `SubscriptionInUse` if another process has taken the name, `Unavailable`, `StorageFailed`.
        """
        self._feed.acknowledge(recorded)
        self._feed.save(wait=True)

    def close(self) -> None:
        """Release everything; for a waiting caller the iteration ends. Closing twice is allowed."""
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        close_forgotten(self._feed)

    def _await_some(self) -> None:
        """Until the buffer has something, or the subscription was closed."""
        feed = self._feed
        try:
            while not feed.follower.closed:
                if feed.asked():
                    feed.save()
                if feed.buffered:
                    return
                if feed.follower.wait(SAVE_EVERY_S):
                    feed.fill()
        except StorageFailed:
            if not feed.follower.closed:  # else it was closed meanwhile, which is an end and no failure
                raise


class SubscriptionOptions(NamedTuple):
    """What a caller asks of a subscription; see `Runtime.subscribe`."""

    name: str | None = None
    from_: From = "beginning"
    types: Types | None = None
    streams: Streams | None = None
    member: int = 0
    of: int = 1
    key: Key | None = None
    acknowledge: Acknowledging = "on next"
    unreadable: Unreadable = "raise"


class OpenReader(Protocol):
    """What a subscription, or a read of events, has open."""

    @property
    def closed(self) -> bool:
        """Whether there is nothing to close any more."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def close_forgotten(feed: OpenReader) -> None:
    """Close what a subscription without references, or a read of events, has open.

    In a thread, because the garbage collector may come in any place, also where this thread has a lock that closing
    needs. Waited for, so that after a `break` the name is free; not without limit, for the same reason.
    """
    if not feed.closed and not sys.is_finalizing():  # else a thread that is started never returns
        with suppress(RuntimeError):  # no thread starts any more: the process ends, and all of it with that
            closing = threading.Thread(target=feed.close, name="rayfold closes a reader", daemon=True)
            closing.start()
            closing.join(CLOSE_WAIT_S)


_open_feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
"""The open feeds of this process."""


@atexit.register
def _close_at_exit() -> None:
    """Save the places of subscriptions that the program leaves open, while there are threads yet."""
    for feed in list(_open_feeds):
        with suppress(RayfoldError):
            feed.close()


Committed: TypeAlias = Callable[
    [ReadableStore, Member, Mapping[int, int], Callable[[int, int], str]], CommittedPositions
]
"""Opens what a member of a named subscription has acknowledged: of a store, where a new name begins, and what names the
history of a partition up to a position."""


def open_feed(
    store: ReadableStore,
    catalogue: Catalogue,
    wanted: SubscriptionOptions,
    committed: Committed | None = None,
    *,
    own: bool = False,
) -> Feed:
    """Open the logs, find where to begin, and take the name if there is one, which may be one of Rayfold's `own`.
    Raises the errors of `Runtime.subscribe`."""
    _check(wanted, own=own)
    chosen = EventFilter(
        catalogue,
        wanted.types,
        wanted.streams,
        wanted.member,
        wanted.of,
        wanted.key,
        wanted.unreadable,
        partitions=store.partitions,
    )
    with ExitStack() as on_failure:
        readers: dict[int, Reader] = {}
        for partition in range(store.partitions):
            readers[partition] = store.open_reader(partition)
            on_failure.callback(readers[partition].close)
        start, acknowledged = _start(readers, wanted.from_, store.store_id), None
        if wanted.name is not None:
            assert committed is not None  # only what has no name goes without
            member = Member(wanted.name, wanted.member, wanted.of, "by stream" if wanted.key is None else "by key")
            acknowledged = committed(store, member, start, lambda partition, at: link_at(readers[partition], at))
            on_failure.callback(acknowledged.close)
            start = acknowledged.positions
        for partition in readers.keys() - start.keys():  # other members read those
            readers.pop(partition).close()
        heads = {partition: reader.head() for partition, reader in readers.items()} if chosen.named else {}
        indexed = by_index(store, readers, _named_here(store, chosen), start, heads)
        feed = Feed(LogFollower(readers, start, indexed), chosen, acknowledged, by_hand=wanted.acknowledge == "by hand")
        on_failure.pop_all()
    _open_feeds.add(feed)
    return feed


def _named_here(store: ReadableStore, chosen: EventFilter) -> list[StreamId] | None:
    """The streams that are named one by one, those of this member; None if they are not."""
    if (named := chosen.named) is None:
        return None
    places = [(partition_of(stream, store.partitions, store.placement), stream) for stream in named]
    return [
        stream
        for partition, stream in places
        if partition in chosen.share.partitions and chosen.share.has(partition, stream)
    ]


def check_batch(max_items: int) -> None:
    """Raises `InvalidMessage` for a size of batches that cannot be."""
    if isinstance(max_items, bool) or not isinstance(max_items, int) or not 1 <= max_items <= BATCH_MAX:
        raise InvalidMessage("batches", f"max_items is {shown(max_items)}", f"choose 1 to {BATCH_MAX}")


def _check(wanted: SubscriptionOptions, *, own: bool) -> None:
    if wanted.name is not None:
        check_member(wanted.name, wanted.member, wanted.of, own=own)
    elif (wanted.member, wanted.of) != (0, 1) or isinstance(wanted.of, bool) or isinstance(wanted.member, bool):
        raise InvalidMessage("subscription", "a member of a group needs the group's name", 'subscribe("mailer", …)')
    if wanted.key is not None and wanted.of == 1:
        raise InvalidMessage("subscription", "a key without a group has no meaning", "give member= and of= too")
    if wanted.acknowledge not in ("on next", "by hand"):
        what = f"acknowledge is {shown(wanted.acknowledge)}"
        raise InvalidMessage("subscription", what, "choose 'on next' or 'by hand'")
    if wanted.name is None and wanted.acknowledge == "by hand":
        what = "without a name there is nothing to acknowledge by hand"
        raise InvalidMessage("subscription", what, 'subscribe("mailer", acknowledge="by hand")')


def _start(readers: Mapping[int, Reader], from_: From, store_id: str) -> dict[int, int]:
    """Partition -> the position after which to begin. Raises `InvalidMessage`, `NotInHistory`."""
    if isinstance(from_, Receipt):
        check_store("from_", from_, store_id)
        return place_of(readers, from_.partition, from_.position)
    if isinstance(from_, Mapping):
        return checked_place(readers, from_, "from_")
    if from_ not in ("beginning", "end"):
        remedy = "choose 'beginning', 'end', positions by partition, or a receipt"
        raise InvalidMessage("subscription", f"from_ is {shown(from_)}", remedy)
    return {partition: reader.head() if from_ == "end" else 0 for partition, reader in readers.items()}
