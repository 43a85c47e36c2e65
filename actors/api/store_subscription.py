"""`subscribe`: the events of a store on this machine, for a process of its own: no runtime and no Ray.

Beside the read path; `runtime/feed/subscription.py` describes what a subscription is. The logs are read by this
process. How far a subscription of a name is, is kept by the partitions: through the program that runs the store, and
while none does, in the logs themselves (`system/relayed_calls.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, overload

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Event
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError
from ...runtime.feed.committed_positions import CommittedPositions, Member
from ...runtime.feed.event_filter import Key, Streams, Types
from ...runtime.feed.member_locks import FolderLocks
from ...runtime.feed.subscription import (
    Acknowledging,
    BlockingSubscription,
    Chosen,
    From,
    SubscriptionOptions,
    open_feed,
)
from ...runtime.read.unreadable import Unreadable
from ...runtime.store.partition_map import MAP
from ...runtime.store.readable_store import ReadableStore
from ...runtime.store.store import SUBSCRIPTIONS, Store, open_store
from ..system.relayed_calls import HolderCalls

__all__ = ["committed_beside", "subscribe", "whole_store"]


@overload
def subscribe(
    path: str | os.PathLike[str],
    name: str | None = ...,
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = ...,
    from_: From = ...,
    types: type[Chosen] | Sequence[type[Chosen]],
    streams: Streams | None = ...,
    member: int = ...,
    of: int = ...,
    key: Key | None = ...,
    acknowledge: Acknowledging = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
    unreadable: Literal["raise"] = ...,
) -> BlockingSubscription[Chosen]: ...
@overload
def subscribe(
    path: str | os.PathLike[str],
    name: str | None = ...,
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = ...,
    from_: From = ...,
    types: Types | None = ...,
    streams: Streams | None = ...,
    member: int = ...,
    of: int = ...,
    key: Key | None = ...,
    acknowledge: Acknowledging = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
    unreadable: Unreadable = ...,
) -> BlockingSubscription[Event]: ...
def subscribe(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = (),
    from_: From = "beginning",
    types: Types | None = None,
    streams: Streams | None = None,
    member: int = 0,
    of: int = 1,
    key: Key | None = None,
    acknowledge: Acknowledging = "on next",
    events: Sequence[type[Event]] = (),
    retired: Sequence[str] = (),
    unreadable: Unreadable = "raise",
) -> BlockingSubscription[Event]:
    """Subscribe to a store on this machine from a process of its own: no runtime and no Ray, the log is only read.

    The writer may be running or not. `aggregates`, `projections` and `events` are the classes that know the events,
    `retired` the names of events to pass over; the rest is as for `Runtime.subscribe`. Raises `StoreMissing`,
    `StoreMismatch` and what `Runtime.subscribe` raises.

    Example:
        for event, recorded in subscribe("bank-data", aggregates=[Account], types=[Deposited]):
            print(recorded.stream, event.amount)
    """
    catalogue = Catalogue(aggregates, projections, events=events, retired=retired)
    wanted = SubscriptionOptions(name, from_, types, streams, member, of, key, acknowledge, unreadable)
    return BlockingSubscription(open_feed(open_store(path), catalogue, wanted, committed_beside))


def committed_beside(
    store: ReadableStore, member: Member, start: Mapping[int, int], link_at: Callable[[int, int], str]
) -> CommittedPositions:
    """What a member has acknowledged, of a store of this machine that this program does not run. Raises what
    `CommittedPositions` does, and `CallerError` for a node's share of a store on a cluster."""
    assert isinstance(store, Store)
    _check_whole(store)
    locks = FolderLocks(store.path / SUBSCRIPTIONS)
    return CommittedPositions(HolderCalls(store), locks, member, start, link_at, store.store_id)


def whole_store(path: str | os.PathLike[str]) -> Store:
    """The store in this directory. Raises what `open_store` does, and `CallerError` for a node's share of one."""
    store = open_store(path)
    _check_whole(store)
    return store


def _check_whole(store: Store) -> None:
    if store.away or (store.path / MAP).exists():
        what = f"{store.path} is one node's share of a store on a cluster, which keeps the places of subscriptions"
        raise CallerError(f"{what}; connect to the application by its name, or leave the subscription's name out")
