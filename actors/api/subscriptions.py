"""Subscriptions of a running system: the events of its logs, awaited on an event loop.

Beside the read path; `runtime/feed/subscription.py` describes what a subscription is. No actor is asked or slowed: the
logs are read in the caller's own process, pages in a thread. Waiting is polling the heads of the logs on the loop
itself (2.3 us a log, every 1 to 20 ms), so a subscription that waits takes no thread.

Rules kept here: an event that was read is never lost to a cancellation: a page whose reader was cancelled is there for
the next one who asks. What is open when the runtime stops is closed, and a waiting iteration ends.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Self

from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError, StorageFailed
from ...runtime.feed.committed_positions import CommittedPositions, Member
from ...runtime.feed.member_locks import FolderLocks, MemberLocks, MemoryLocks
from ...runtime.feed.subscription import (
    BATCH_MAX,
    BlockingSubscription,
    Feed,
    OneOf,
    SubscriptionOptions,
    check_batch,
    close_forgotten,
    open_feed,
)
from ...runtime.store.memory_logs import MemoryLogs
from ...runtime.store.readable_store import ReadableStore
from ...runtime.store.store import SUBSCRIPTIONS
from ..nodes.store import AnyStore, ClusterStore
from ..system.system import System
from .page_reader import PageReader

__all__ = ["Subscription", "Subscriptions"]


class Subscription(Generic[OneOf]):
    """`async for event, recorded in subscription:`, which waits for the next one. Ended by `close`.

    An async context manager; a subscription to which there is no reference any more, as after `break`, is closed
    too. One task iterates; it may be cancelled (`asyncio.timeout`) and continue later, nothing is lost. Iterating
    raises `Damaged`, `UnknownEvent`, `HandlerFailed` or `StorageFailed` where an event cannot be read.

    Example:
        async for event, recorded in bank.subscribe("mailer", types=[Deposited]):
            await send_mail(event)
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._released = False
        self._pages = PageReader(self._feed.fill)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[OneOf, Recorded]:
        """The next event and its place. Raises `Damaged`, `UnknownEvent`, `HandlerFailed` or `StorageFailed` where it
        cannot be had."""
        await self._await_some()
        happened = self._feed.take()
        if happened is None:
            raise StopAsyncIteration
        return happened  # type: ignore[return-value]  # the filter chose it

    async def batches(self, max_items: int = BATCH_MAX) -> AsyncIterator[list[tuple[OneOf, Recorded]]]:
        """Lists of 1 to `max_items` events, at most 512: what there is, without waiting for more of it."""
        check_batch(max_items)
        while True:
            await self._await_some()
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

    async def acknowledge(self, recorded: Recorded | None = None) -> None:
        """Acknowledge everything yielded so far, or up to one event of its partition; on the disk when it returns.

        Raises `CallerError` without a name, once it was closed, or for an event that was not yielded,
        `SubscriptionInUse` if another process has taken the name, `Unavailable`, `StorageFailed`.
        """
        self._feed.acknowledge(recorded)
        await asyncio.to_thread(partial(self._feed.save, wait=True))

    def close(self) -> None:
        """Release everything; a waiting iteration ends. Closing twice is allowed."""
        self._feed.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def release(self) -> Feed:
        """What it reads from, which ends with it no more."""
        self._released = True
        return self._feed

    def __del__(self) -> None:
        if not self._released:
            close_forgotten(self._feed)

    async def _await_some(self) -> None:
        """Until the buffer has something, or the subscription was closed."""
        feed, follower = self._feed, self._feed.follower
        try:
            while not follower.closed:
                if feed.asked():
                    await asyncio.to_thread(feed.save)
                if self._pages.begun or (not feed.buffered and await self._has_news()):
                    await self._pages.fill()
                    follower.pace.news()
                if feed.buffered:
                    return
                await asyncio.sleep(follower.pace.next_pause_s())
        except StorageFailed:
            if not follower.closed:  # else it was closed meanwhile, which is an end and no failure
                raise

    async def _has_news(self) -> bool:
        """On the loop itself, unless it takes calls to other nodes."""
        follower = self._feed.follower
        return await asyncio.to_thread(follower.has_new_records) if follower.away else follower.has_new_records()


def locks_of(store: AnyStore) -> MemberLocks | None:
    """What holds the members of subscriptions of a store; None on a cluster, where they are held by lease."""
    if isinstance(store, ClusterStore):
        return None
    return MemoryLocks(store.subscribed) if isinstance(store, MemoryLogs) else FolderLocks(store.path / SUBSCRIPTIONS)


class Subscriptions:
    """Those of one runtime, so that they end with it."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Subscription[Any] | BlockingSubscription[Any]] = weakref.WeakSet()

    def subscribe(
        self, store: AnyStore, catalogue: Catalogue, wanted: SubscriptionOptions, system: System
    ) -> Subscription[Any]:
        """See `Runtime.subscribe`."""

        def committed(
            _store: ReadableStore, member: Member, start: Mapping[int, int], link_at: Callable[[int, int], str]
        ) -> CommittedPositions:
            calls = system.partition_calls
            return CommittedPositions(calls, locks_of(store), member, start, link_at, store.store_id)

        subscription: Subscription[Any] = Subscription(open_feed(store, catalogue, wanted, committed))
        self._open.add(subscription)
        return subscription

    def blocking(self, subscription: Subscription[OneOf]) -> BlockingSubscription[OneOf]:
        """The same, for a thread without an event loop; the one given is of no further use."""
        taken: BlockingSubscription[OneOf] = BlockingSubscription(subscription.release())
        self._open.discard(subscription)
        self._open.add(taken)
        return taken

    def close(self) -> None:
        """End all that are still open."""
        for subscription in list(self._open):
            with suppress(RayfoldError):  # what it could not save is delivered again to the next subscriber
                subscription.close()
