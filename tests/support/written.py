"""A store that is filled without a running system: events appended straight to its logs, which are closed then."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing

from rayfold import Event, StreamId
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.store.store import Store
from rayfold.runtime.stream import ANY

_command_ids = (number.to_bytes(16, "big") for number in itertools.count(1))

Told = tuple[str, Event | NewEvent]
"""The id of an account, and an event of it, as an object or as it is stored."""


def new_event(event: Event | NewEvent) -> NewEvent:
    """As it is stored."""
    if isinstance(event, NewEvent):
        return event
    return NewEvent(event.message_name, event.schema_version, encode_message(event))


def append_to(account: str, event: Event | NewEvent, kind: str = "Account") -> Append:
    """One command with this one event."""
    return Append(StreamId(kind, account), ANY, (new_event(event),), next(_command_ids), bytes(20))


def write(store: Store, events: Iterable[Told], kind: str = "Account") -> None:
    """In this order in each partition, in one commit each."""
    appends: dict[int, list[Append]] = {}
    for account, event in events:
        appends.setdefault(store.partition_of(StreamId(kind, account)), []).append(append_to(account, event, kind))
    for partition, batch in appends.items():
        with closing(store.open_log(partition)) as log:
            log.append(log.activate(), batch)


def memory_log(events: Iterable[Told]) -> MemoryLog:
    """The same in memory."""
    log = MemoryLog()
    log.append(log.activate(), [append_to(account, event) for account, event in events])
    return log
