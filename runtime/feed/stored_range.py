"""StoredRange: what is stored between two places of a store, for a reader without the classes of the events.

Beside the write path. Before it: `log_range.py` reads the logs. After it: `rayfold export` without an application.

Rules kept here: those of `event_range.py`. Every event is given as it is stored, of whatever version; what Rayfold
itself stores is left out. A damaged record is an error at its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ..domain.recorded import Recorded
from ..errors import InvalidId, UnknownName
from ..log.contract import Reader, StoredEvent
from ..log.format import decode_record, record_position, stream_id
from ..read.time_travel import recorded_in
from ..store.readable_store import ReadableStore
from ..stream import StreamId, is_reserved
from ..tables.event_tables import StoredTable
from ..tables.export_files import Exported, Tables, export_rows
from .frames import Progress
from .log_range import Bound, LogRange, open_range

__all__ = ["StoredRange", "open_stored"]


class StoredRange:
    """The stored events of a range. One thread at a time."""

    def __init__(
        self, logs: LogRange, types: Collection[str], kinds: Collection[str], ids: Collection[StreamId]
    ) -> None:
        """Of all names, or of all streams, where the collections are empty."""
        self.logs = logs
        self._types = frozenset(types)
        self._kinds, self._ids = frozenset(kinds), frozenset(ids)

    def pages(self) -> Iterator[list[tuple[StoredEvent, Recorded]]]:
        """The rest of the events, in pages."""
        while (page := self.logs.read()) is not None:
            partition, records = page
            rows = []
            for record in records:
                where = f"event {record_position(record)} of partition {partition}"
                stored = decode_record(record, where)
                if self._chooses(stored):
                    rows.append((stored, recorded_in(partition, stored)))
            yield rows

    def to_files(self, path: Path, *, overwrite: bool = False, progress: Progress | None = None) -> Exported:
        """Write the rest: see `BlockingEvents.to_parquet`."""
        since = dict[int, int]()

        def pages() -> Iterator[list[tuple[StoredEvent, Recorded]]]:  # see `frames.to_parquet`
            since.update(self.logs.positions)
            yield from self.pages()

        def advance() -> None:
            if progress is not None:
                progress(self.logs.done, self.logs.total)

        tables = Tables(StoredTable, lambda _: StoredTable())
        done = export_rows(pages(), path, tables, overwrite=overwrite, advance=advance)
        return Exported(*done, since, self.logs.positions)

    def close(self) -> None:
        """Release everything. Closing twice is allowed."""
        self.logs.close()

    def _chooses(self, stored: StoredEvent) -> bool:
        if (
            is_reserved(stored.stream.type)
            or is_reserved(stored.name)
            or (self._types and stored.name not in self._types)
        ):
            return False
        return not (self._kinds or self._ids) or stored.stream.type in self._kinds or stored.stream in self._ids


def open_stored(
    store: ReadableStore,
    types: Collection[str] = (),
    streams: Collection[str] = (),
    since: Bound | None = None,
    until: Bound | None = None,
    open_reader: Callable[[int], Reader] | None = None,
) -> StoredRange:
    """Open the logs and find the end. `streams`: texts like Account/alice, or names of aggregate types.

    Raises `UnknownName` for a type of event or aggregate that no log holds, `InvalidId`, `NotInHistory`, `StoreError`.
    """
    kinds = [one for one in streams if "/" not in one]
    ids = [stream_id(*one.split("/", 1)) for one in streams if "/" in one]
    logs = open_range(store, since, until, ids if ids and not kinds else None, open_reader)
    try:
        _check_names(store, types, [*kinds, *(one.type for one in ids)])
    except BaseException:
        logs.close()
        raise
    return StoredRange(logs, types, kinds, ids)


def _check_names(store: ReadableStore, types: Collection[str], kinds: Collection[str]) -> None:
    """A name that no event can have is an error, never an empty file."""
    names, aggregates = set[str](), set[str]()
    for partition in range(store.partitions) if types or kinds else ():
        reader = store.open_reader(partition)
        try:
            held = reader.holdings()
        finally:
            reader.close()
        names |= {name for name, _ in held.events}
        aggregates |= held.aggregates
    for one in types:
        if one not in names:
            raise UnknownName("stored event", one, sorted(names))
    for one in kinds:
        if is_reserved(one):
            raise InvalidId("stream", one, "is of Rayfold's own; `rayfold history` shows these")
        if one not in aggregates:
            raise UnknownName("stored aggregate", one, sorted(aggregates))
