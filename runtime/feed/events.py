"""Events in bulk: those of a store between two places, for a program that reads them once and comes to an end.

Beside the write path. Before it: `event_range.py` reads them, whose rules hold here. After it: the caller's own code;
asynchronously through `actors/api/events.py`, or in a plain process through `BlockingEvents` here, without Ray and
without a runtime.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Literal, Self, overload

from ..arguments import checked_callable, checked_path
from ..domain.aggregate import Aggregate
from ..domain.messages import Event
from ..domain.projection import Projection
from ..domain.recorded import Recorded
from ..encoding.catalogue import Catalogue
from ..read.unreadable import Unreadable
from ..store.store import open_store
from ..tables.export_files import Exported
from .event_filter import Streams, Types
from .event_range import EventOptions, EventRange, open_events
from .frames import Progress, to_arrow, to_pandas, to_parquet, to_polars, to_reader
from .log_range import Bound
from .subscription import BATCH_MAX, check_batch, close_forgotten

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

    from .subscription import Chosen, OneOf
else:
    from typing import TypeVar

    OneOf = TypeVar("OneOf", bound=Event, covariant=True)
    Chosen = TypeVar("Chosen", bound=Event)

__all__ = ["BlockingEvents", "read_events"]


class BlockingEvents(Generic[OneOf]):
    """`for event, recorded in events:`, up to the end of the range. What `Events` is, without `await`.

    A context manager; one that was read to its end, or to which there is no reference any more, is closed too. A second
    loop over it goes on where the first one has stopped, after an error too. Iterating raises `Damaged`,
    `UnknownEvent`, `HandlerFailed`, `Unavailable` or `StorageFailed` where an event cannot be read, and `CallerError`
    after `close`.

    Example:
        with bank.events(types=[Deposited]) as deposits:
            print(sum(event.amount for event, recorded in deposits))
    """

    def __init__(self, range: EventRange) -> None:
        self._range = range

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[OneOf, Recorded]:
        """The next event and its place. Raises `Damaged`, `UnknownEvent`, `HandlerFailed`, `Unavailable` or
        `StorageFailed` where it cannot be had."""
        events = self._range
        if not events.buffered:
            events.fill()
            if events.ended:
                raise StopIteration
        return events.take()  # type: ignore[return-value]  # the filter chose it

    def batches(self, max_items: int = BATCH_MAX) -> Iterator[list[tuple[OneOf, Recorded]]]:
        """Lists of 1 to `max_items` events, at most 512."""
        check_batch(max_items)
        while True:
            self._range.fill()
            if self._range.ended:
                return
            yield self._range.take_all(max_items)  # type: ignore[misc]  # the filter chose them

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything was yielded or filtered out: `since=` of a read that goes on
        from here."""
        return self._range.positions

    def to_arrow(self) -> pyarrow.Table:
        """The rest as an Arrow table, in memory (docs/bulk-reads.md has its columns). Needs `rayfold[arrow]`.

        Raises `CallerError` without it, and what iterating raises.
        """
        return to_arrow(self._range)

    def to_reader(self) -> pyarrow.RecordBatchReader:
        """The rest as Arrow batches of up to 4,096 rows, read as they are asked for: DuckDB and others take it as it
        is. Needs `rayfold[arrow]`. Raises `CallerError` without it; a batch raises what iterating raises."""
        return to_reader(self._range, self)

    def to_pandas(self) -> pandas.DataFrame:
        """The rest as a pandas frame; integers are exact where some are missing too. Needs `rayfold[pandas]`. Raises
        what `to_arrow` raises."""
        return to_pandas(self._range)  # type: ignore[no-any-return]  # the package may be missing

    def to_polars(self) -> polars.DataFrame:
        """The rest as a Polars frame. Needs `rayfold[polars]`. Raises what `to_arrow` raises."""
        return to_polars(self._range)  # type: ignore[no-any-return]  # the package may be missing

    def to_parquet(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
    ) -> Exported:
        """Write the rest into a Parquet file (`FILE.parquet`), lines of JSON (`FILE.jsonl`, which needs no extra), or a
        folder with one Parquet file for each type of event; some pages are in memory, whatever the size of the log.

        The files appear when they are whole, and not at all after an error. `progress` is called with positions done
        and in all. Needs `rayfold[arrow]`. Raises `CallerError` for a file that exists, unless `overwrite`,
        `StorageFailed`, and what iterating raises.
        """
        checked_callable("progress", progress)
        return to_parquet(self._range, path, overwrite, progress)

    def close(self) -> None:
        """Release everything. Closing twice is allowed."""
        self._range.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        close_forgotten(self._range)


@overload
def read_events(
    path: str | os.PathLike[str],
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = ...,
    types: type[Chosen] | Sequence[type[Chosen]],
    streams: Streams | None = ...,
    since: Bound | None = ...,
    until: Bound | None = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
    unreadable: Literal["raise"] | None = ...,
) -> BlockingEvents[Chosen]: ...
@overload
def read_events(
    path: str | os.PathLike[str],
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = ...,
    types: Types | None = ...,
    streams: Streams | None = ...,
    since: Bound | None = ...,
    until: Bound | None = ...,
    events: Sequence[type[Event]] = ...,
    retired: Sequence[str] = ...,
    unreadable: Unreadable | None = ...,
) -> BlockingEvents[Event]: ...
def read_events(
    path: str | os.PathLike[str],
    *,
    aggregates: Sequence[type[Aggregate]],
    projections: Sequence[type[Projection]] = (),
    types: Types | None = None,
    streams: Streams | None = None,
    since: Bound | None = None,
    until: Bound | None = None,
    events: Sequence[type[Event]] = (),
    retired: Sequence[str] = (),
    unreadable: Unreadable | None = None,
) -> BlockingEvents[Event]:
    """The events of a store on this machine, in bulk and to an end, from a process of its own: no runtime and no Ray.

    The writer may be running or not. `aggregates`, `projections` and `events` are the classes that know the events,
    `retired` the names of events to pass over; the rest is as for `Runtime.events`. Raises `StoreMissing`,
    `StoreMismatch` and what `Runtime.events` raises.

    Example:
        for event, recorded in read_events("bank-data", aggregates=[Account], types=[Deposited]):
            print(recorded.stream, event.amount)
    """
    catalogue = Catalogue(aggregates, projections, events=events, retired=retired)
    wanted = EventOptions(types, streams, since, until, unreadable)
    return BlockingEvents(
        open_events(open_store(checked_path("read_events", path)), catalogue, wanted, call="read_events()")
    )
