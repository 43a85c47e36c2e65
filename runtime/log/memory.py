"""The same log without a disk: for tests, examples, and the specification kit.

Rule kept here: it cannot differ from the log on disk in what it accepts or answers. It plans with the same function,
stores the same records, and runs the same contract suite; only durability and the checks of stored bytes are absent,
as there is nothing that could decay.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from secrets import token_bytes
from typing import TypeVar

from ..errors import Fenced, InvalidId, RayfoldError
from ..stream import StreamId
from .contract import STREAM_PAGE_BYTES, Append, Appended, CommandEntry, Holdings, Snapshot
from .format import (
    CHAIN_START,
    SECRET_BYTES,
    chain_of,
    check_command_id,
    checked_stream,
    decode_command,
    decode_snapshot,
    decode_stream_entry,
)
from .holdings import Kinds, as_holdings, checked_shapes
from .plan import Plan, Tail, plan
from .segment import LogSegment, read_log_segment
from .subscription_rows import Change, MemoryRows

__all__ = ["MemoryLog"]

Result = TypeVar("Result")


class MemoryLog:
    """The `Log` of `contract.py` in memory. It ends with its process; `close` keeps what is in it."""

    name = "memory log"

    def __init__(self, now_us: Callable[[], int] | None = None) -> None:
        self._now_us = now_us or (lambda: time.time_ns() // 1000)
        self._lock = threading.Lock()
        self._epoch = 0
        self._records: list[bytes] = []
        self._streams: dict[bytes, list[int]] = {}
        self._commands: dict[bytes, CommandEntry] = {}
        self._snapshots: dict[bytes, list[tuple[int, bytes, bytes]]] = {}
        self._secret = token_bytes(SECRET_BYTES)
        self._declared: dict[tuple[str, int], bytes] = {}
        self._kinds: Kinds = {}
        self._rows: dict[str, bytes] = {}

    def activate(self) -> int:
        """Take the log over: raise the epoch, and return it. Appends of older epochs are refused."""
        with self._lock:
            self._epoch += 1
            return self._epoch

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        """The shapes of the events that will be appended. Raises `InvalidMessage` for one that is too large."""
        self._declared = self._declared | checked_shapes(shapes)

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """All of `appends` or none of them; one `Appended` for each, in order. Raises the errors of `Log.append`."""
        with self._lock:
            if epoch != self._epoch:
                raise Fenced(self.name, epoch, self._epoch)
            chain = chain_of(self._records[-1]) if self._records else CHAIN_START
            tail = Tail(len(self._records), chain, dict(self._kinds))
            planned = plan(
                tail,
                appends,
                self._now_us(),
                lambda stream, key: len(self._streams.get(key, ())),
                lambda key: self._streams[key[:-8]][-1],
                self._commands.get,
                self._declared,
            )
            self._adopt(planned)
            return planned.outcomes

    def _adopt(self, planned: Plan) -> None:
        """Store a plan. Nothing here can fail half-way."""
        self._records.extend(record for _, record in planned.events)
        self._kinds |= planned.kinds
        for key, value in planned.streams:
            position, count = decode_stream_entry(key, value, self.name)
            self._streams.setdefault(key[:-8], []).extend(range(position - count + 1, position + 1))
        for command_id, value in planned.commands:
            self._commands[command_id] = decode_command(command_id, value, self.name)
        for key, value in planned.snapshots:
            schema, state = decode_snapshot(key, value, self.name)
            self._snapshots.setdefault(key[:-8], []).append((int.from_bytes(key[-8:], "big"), schema, state))

    def subscription_rows(self, prefix: str = "") -> dict[str, bytes]:
        """What subscriptions of a name keep here: the rows whose keys begin so."""
        with self._lock:
            return MemoryRows(self._rows).beginning(prefix)

    def change_rows(self, epoch: int, change: Change[Result]) -> Result:
        """What `change` makes of these rows, all of it or nothing. Raises `Fenced`, and what `change` raises."""
        with self._lock:
            if epoch != self._epoch:
                raise Fenced(self.name, epoch, self._epoch)
            rows = MemoryRows(self._rows)
            result = change(rows)
            self._rows = rows.kept
            return result

    def head(self) -> int:
        """The position of the last event; 0 for an empty log."""
        return len(self._records)

    def epoch(self) -> int:
        """The epoch of the latest activation; 0 before the first."""
        return self._epoch

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """The records at `after + 1, after + 2, …`: at most `limit`, none further once `bytes_max` is reached."""
        after, chosen, size_bytes = max(after, 0), [], 0
        with self._lock:
            for record in self._records[after : after + max(limit, 0)]:
                chosen.append(record)
                size_bytes += len(record)
                if size_bytes >= bytes_max:
                    break
        return chosen

    def version(self, stream: StreamId) -> int:
        """The version of the stream; 0 if it has no events."""
        return len(self._streams.get(checked_stream(stream), ()))

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        """The records of versions `from_version..to_version` (both included): at most `limit`, none further once
        `bytes_max` is reached."""
        first = max(from_version, 1)
        key = checked_stream(stream)
        with self._lock:
            positions = self._streams.get(key, [])
            last = len(positions) if to_version is None else to_version
            if limit is not None:
                last = min(last, first + limit - 1)
            chosen, size_bytes = list[bytes](), 0
            for position in positions[first - 1 : max(last, 0)]:
                chosen.append(self._records[position - 1])
                size_bytes += len(chosen[-1])
                if size_bytes >= bytes_max:
                    break
            return chosen

    def find_command(self, command_id: bytes) -> CommandEntry | None:
        """What is stored about this command id. Raises `InvalidId` if it is not 16 bytes."""
        check_command_id(command_id)
        return self._commands.get(command_id)

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """What is stored about each of these ids; an id that is none has its error instead."""
        found: dict[bytes, CommandEntry | RayfoldError] = {}
        for command_id in command_ids:
            try:
                entry = self.find_command(command_id)
            except InvalidId as error:
                found[command_id] = error
            else:
                if entry is not None:
                    found[command_id] = entry
        return found

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        """The latest snapshot of the stream (at or before a version) that `schema` wrote, if there is one."""
        saved = self._snapshots.get(checked_stream(stream), [])
        end = len(saved) if at_or_before is None else bisect_right(saved, at_or_before, key=lambda one: one[0])
        for version, written_by, state in reversed(saved[:end]):
            if written_by == schema:
                return Snapshot(version, state)
        return None

    def secret(self) -> bytes:
        """With which the digests of its commands are keyed."""
        return self._secret

    def holdings(self) -> Holdings:
        """The event names, schema versions and aggregate types that the log holds."""
        with self._lock:
            return as_holdings(self._kinds)

    def shapes(self) -> dict[tuple[str, int], bytes]:
        """The shapes of the events that it holds."""
        return self.holdings().events

    def segment(self, after: int, up_to: int) -> LogSegment | None:
        """The next whole commands after a position, up to another, as another log takes them in (`log/segment.py`)."""
        return read_log_segment(self, after, up_to)

    def close(self) -> None:
        """Nothing to release."""
