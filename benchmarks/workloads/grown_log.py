"""A log of any length, made directly through `runtime/log`: what the replay suite starts from.

Rule kept here: what it makes is a store like any other, with its manifest, command ids and chain; only the way there is
short, since no command is decided. Account `n` has `EVENTS_EACH` deposits of 1, which lie together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import new_command_id
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.stream import ANY, StreamId

from .bank import Deposited

EVENTS_EACH: Final = 10
"""Of an account, at every size of the log: a larger log has more accounts, not longer ones."""

BATCH: Final = 2_000
"""Appends in one transaction."""


def account_name(number: int) -> str:
    """Of the n-th account of a grown log."""
    return f"account-{number:08d}"


def grow(folder: Path, events: int) -> Store:
    """A new store of one partition with so many events, `EVENTS_EACH` an account."""
    streams = (StreamId("Account", account_name(number)) for number in range(-(-events // EVENTS_EACH)))
    return _grown(folder, ((stream, EVENTS_EACH) for stream in streams))


def grow_streams(folder: Path, lengths: dict[str, int], kind: str = "Account") -> Store:
    """A new store of one partition with these accounts, each of the length given."""
    return _grown(folder, ((StreamId(kind, account), length) for account, length in lengths.items()))


def _grown(folder: Path, streams: Iterator[tuple[StreamId, int]]) -> Store:
    store = create_or_open_store(folder, 1)
    with closing(store.open_log(0)) as log:
        epoch = log.activate()
        batch: list[Append] = []
        for append in _appends(streams):
            batch.append(append)
            if len(batch) == BATCH:
                log.append(epoch, batch)
                batch.clear()
        log.append(epoch, batch)
    return store


def _appends(streams: Iterator[tuple[StreamId, int]]) -> Iterator[Append]:
    event = NewEvent(Deposited.message_name, Deposited.schema_version, encode_message(Deposited(amount=1)))
    digest = bytes(16)
    for stream, length in streams:
        for _ in range(length):
            yield Append(stream, ANY, (event,), new_command_id(), digest)
