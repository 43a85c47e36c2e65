"""What a log is: the values that go in and come out, and the one contract that every log keeps.

Step [5] of the write path. Before it: `runtime/write/write_loop.py` has decided a batch. After it: the broadcast.

Two logs keep the contract: `LmdbLog` (`folder.py`, `writer.py`, `reader.py`) on disk and `MemoryLog`
(`memory.py`), and one test suite runs on both (`tests/runtime/log/test_contract.py`).

Rules kept here:
- one `append` is one transaction: all of its entries or none, fsynced before it returns
- positions are 1..n in commit order, without gaps; a reader sees a prefix
- an append carries the epoch of its writer and is refused, inside the transaction, after a later `activate`
- a command id is stored in the same transaction as its events
- a *record* is the stored bytes of one event, checksummed and self-contained: it is what is broadcast, and
  `format.decode_record` reads it anywhere
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from ..errors import RayfoldError
from ..stream import StreamId

__all__ = [
    "Append",
    "Appended",
    "CommandEntry",
    "Holdings",
    "Log",
    "NewEvent",
    "Reader",
    "Snapshot",
    "StoredEvent",
    "WriteLog",
]


_NO_HEADERS: Final[Mapping[int, Any]] = {}


class NewEvent(NamedTuple):
    """An event to append."""

    name: str
    """The stable name of its class; never changes once stored."""
    schema_version: int
    """The version of its schema, from 1; older ones are upcast on read."""
    payload: bytes
    """Its fields, a msgpack map."""


class Append(NamedTuple):
    """What one command does to one stream: its events become versions v+1, v+2, … at adjoining positions."""

    stream: StreamId
    expected_version: int
    """`ANY`, `NO_STREAM`, or the exact version of the stream before this append."""
    events: tuple[NewEvent, ...]
    """May be empty: then nothing is written, the command id neither."""
    command_id: bytes
    """16 bytes; takes effect at most once in a log."""
    command_digest: bytes
    """20 bytes over the content of the command: the same id with another digest is `CommandIdReused`. 16 in what
    formats 1 and 2 have stored."""
    correlation_id: bytes = b""
    """16 bytes or none: the id that a whole conversation of commands and events shares."""
    causation_id: bytes = b""
    """16 bytes or none: the id of the command or event that led to this command."""
    snapshot: bytes = b""
    """The encoded state after the events, to be saved as a snapshot at the resulting version; or none."""
    snapshot_schema: bytes = b""
    """A fingerprint of the code that wrote `snapshot`; a snapshot of another fingerprint is outdated."""
    headers: Mapping[int, Any] = _NO_HEADERS
    """What each of its records carries besides (`format.check_headers`)."""


class Appended(NamedTuple):
    """Where the events of one `Append` are: the facts of a receipt."""

    position: int
    """Position of its last event; for an append without events, of the stream's last one, or 0: what it was decided
    on."""
    version: int
    """The version of the stream after its last event."""
    records: tuple[bytes, ...]
    """The stored records, in order, at positions `position - len(records) + 1 .. position`; none for a repeat."""
    repeated: bool = False
    """True when this command id was stored before with the same digest: position and version are the first's."""


STREAM_PAGE_BYTES: Final = 4 << 20
"""Events of one page of a stream, unless the reader asks for fewer: the writer waits while it is read, some
milliseconds."""


class StoredEvent(NamedTuple):
    """One decoded record: an event as it is in the log. `stream` + `version` and `position` both identify it."""

    position: int
    """In the partition's log, from 1, gap-free, in commit order."""
    stream: StreamId
    version: int
    """In its stream, from 1, gap-free."""
    name: str
    schema_version: int
    payload: bytes
    recorded_at_us: int
    """Microseconds since 1970 UTC by the writer's clock. For people: order is by position, never by this."""
    command_id: bytes
    correlation_id: bytes
    causation_id: bytes
    headers: Mapping[int, Any] = _NO_HEADERS
    """What else the record carries: small integers and their values. Unknown ones are kept and ignored."""


class CommandEntry(NamedTuple):
    """What is stored about a command id."""

    digest: bytes
    position: int
    """The position of the command's last event."""
    version: int
    """Version of its stream after that event; 0 where the event keeps a refusal (`refusals.py`)."""


class Snapshot(NamedTuple):
    """The state of an aggregate after `version`. A hint that saves time: never the truth, never fatal."""

    version: int
    state: bytes


class Holdings(NamedTuple):
    """The kinds of events and aggregates in a log: what code that works with it has to know."""

    events: dict[tuple[str, int], bytes]
    """Event name and schema version -> the shape that the first one was appended with: a packed map of field names to
    type texts (`shape.py`). A type text is empty where the shape was not declared but taken from payloads."""
    aggregates: frozenset[str]
    """The types of the streams, without those that are Rayfold's own (`rayfold.…`)."""


class Reader(Protocol):
    """Reading a log. Safe from any thread, also while a writer in another process appends."""

    def head(self) -> int:
        """The position of the last event; 0 for an empty log."""
        ...

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """The records at positions `after + 1, after + 2, …`: at most `limit`, and no further one once
        `bytes_max` is reached (but at least one, if there is one)."""
        ...

    def version(self, stream: StreamId) -> int:
        """The version of the stream; 0 if it has no events."""
        ...

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        """The records of versions `from_version..to_version` (both included): at most `limit`, and no further one once
        `bytes_max` is reached (but at least one, if there is one)."""
        ...

    def find_command(self, command_id: bytes) -> CommandEntry | None:
        """What is stored about this command id."""
        ...

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """What is stored about each of these ids, as one commit has it. An id that has not 16 bytes, or whose entry
        is damaged, has the error in place of an entry; one that is not stored has nothing."""
        ...

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        """The latest snapshot of the stream (at or before a version) that `schema` wrote and whose checksum is
        good. Damaged and outdated ones are passed over."""
        ...

    def secret(self) -> bytes:
        """The key of its commands' digests, 32 bytes; empty in a log of format 1 or 2 that was not taken over yet."""
        ...

    def holdings(self) -> Holdings:
        """The event names, schema versions and aggregate types that the log holds, as of its last commit.

        A log of format 1 or 2 that was not taken over yet is scanned for them: some seconds for a million events.
        """
        ...

    def close(self) -> None:
        """Release every resource. Closing twice is allowed."""
        ...


class WriteLog(Protocol):
    """As much of a log as the write loop needs. Besides `Log` it has one more form: a partition seen through Ray by
    an aggregate in an actor of its own (`actors/partition/own_actor.py`)."""

    def activate(self) -> int:
        """See `Log`."""
        ...

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """See `Reader`."""
        ...

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        """See `Log`."""
        ...

    def secret(self) -> bytes:
        """See `Reader`."""
        ...

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """See `Log`."""
        ...

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """See `Reader`."""
        ...

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        """See `Reader`."""
        ...

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        """See `Reader`."""
        ...


class Log(Reader, Protocol):
    """Reading and writing a log. One writer at a time, from one thread: the fence refuses any other."""

    def activate(self) -> int:
        """Take the log over: durably raise the epoch, and return it. Appends of older epochs are refused."""
        ...

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        """The shapes of the events that will be appended, packed, by event name and schema version. What is declared
        is stored with the first event of its kind, and never replaced. Raises `InvalidMessage` for one over 1 MiB."""
        ...

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """All of `appends` in one transaction, fsynced when this returns. One `Appended` for each, in order;
        a later one sees the effects of an earlier one on the same stream.

        Raises `Fenced`, `Conflict` (with both versions), `CommandIdReused`, `InvalidMessage` (an event that
        cannot be encoded) or `StorageFailed`; then nothing of the whole batch is stored.
        """
        ...
