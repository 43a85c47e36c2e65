"""Frames: a bulk read as Arrow, pandas or Polars, and as files.

Beside the write path. Before it: `events.py` reads the events. After it: pyarrow, pandas, Polars, which are imported
when they are asked for.

Rule kept here: a frame or file gets the events that the iteration has not yielded yet, and the iteration has ended
afterwards. A frame is in memory as a whole; of batches and files some pages are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import CallerError, InvalidMessage
from ..tables.columns import pyarrow
from ..tables.export_files import PAGES, Exported, export_rows
from .event_filter import Happened
from .event_range import EventRange

__all__ = ["Progress", "pages_of", "to_arrow", "to_pandas", "to_parquet", "to_polars", "to_reader"]

Progress = Callable[[int, int], None]
"""Is called with positions done and positions in all."""


def pages_of(events: EventRange) -> Iterator[list[Happened]]:
    """The rest of the events, in pages."""
    while True:
        events.fill()
        if events.ended:
            return
        yield events.take_all(events.buffered)


def to_reader(events: EventRange, owner: object = None) -> Any:
    """See `BlockingEvents.to_reader`. `owner`: what closes the events when it is freed, and so is kept for as long as
    the reader."""
    events.check_open()
    table = events.tables.whole()
    return pyarrow().RecordBatchReader.from_batches(table.schema, _batches(events, table, owner))


def to_arrow(events: EventRange) -> Any:
    """See `BlockingEvents.to_arrow`."""
    return to_reader(events).read_all()


def to_pandas(events: EventRange) -> Any:
    """See `BlockingEvents.to_pandas`."""
    pa = pyarrow()
    try:
        import pandas
    except ImportError as error:
        raise CallerError("to_pandas needs the package pandas: pip install rayfold[pandas]") from error
    exact = {pa.int64(): pandas.Int64Dtype(), pa.int32(): pandas.Int32Dtype(), pa.bool_(): pandas.BooleanDtype()}
    return to_arrow(events).to_pandas(types_mapper=exact.get)


def to_polars(events: EventRange) -> Any:
    """See `BlockingEvents.to_polars`."""
    pyarrow()
    try:
        import polars
    except ImportError as error:
        raise CallerError("to_polars needs the package polars: pip install rayfold[polars]") from error
    return polars.from_arrow(to_arrow(events))


def to_parquet(
    events: EventRange,
    path: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> Exported:
    """See `BlockingEvents.to_parquet`. `check` may raise to end it; then there is no file."""
    events.check_open()
    since = dict[int, int]()

    def pages() -> Iterator[list[Happened]]:  # asked once there is a place to write to: it may have to search
        since.update(events.positions)
        yield from pages_of(events)

    def advance() -> None:
        check()
        if progress is not None:
            progress(events.logs.done, events.logs.total)

    done = export_rows(pages(), _checked_path(path), events.tables, overwrite=overwrite, advance=advance)
    files, count, unreadable, size_bytes = done
    return Exported(files, count, unreadable, size_bytes, since, events.positions)


def _checked_path(path: str | os.PathLike[str]) -> Path:
    """Raises `InvalidMessage`."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InvalidMessage("path", f"is {path!r}", "give FILE.parquet, FILE.jsonl, or a folder")
    return Path(path)


def _batches(events: EventRange, table: Any, owner: object) -> Iterator[Any]:
    rows: list[Happened] = []
    for number, page in enumerate(pages_of(events), 1):
        rows += page
        if number % PAGES == 0:
            yield table.batch(rows)
            rows = []
    if rows:
        yield table.batch(rows)
    del owner  # which was kept until here
