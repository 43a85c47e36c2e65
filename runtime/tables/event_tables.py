"""Event tables: recorded events as Arrow record batches.

Beside the write path. Before it: a bulk read of events (`runtime/feed/events.py`), or of what is stored. After it: a
table in memory, or `parquet.py`.

Each row is one event. Its place has columns whose names begin with an underscore, which no field of an event does, so
that none of them can hide a field. A table of one event class has its fields as columns (`columns.py`); one of several
has the column `_payload`, JSON text.

Rule kept here: no row is left out, and no value is changed in silence. What a column cannot hold, such as a number
beyond 64 bits or an event that no class can read, is null there and stands in the column `_rest`: JSON text of the
fields with their stored forms, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from ..domain.messages import Event
from ..domain.recorded import Recorded
from ..encoding.codec import decode_payload
from ..errors import InvalidMessage
from ..log.contract import StoredEvent
from ..read.unreadable import UnreadableEvent
from .columns import TIME_ZONE, Column, column_of, pyarrow
from .plain import fields_of, json_text, plain

__all__ = ["ClassTable", "MixedTable", "Row", "StoredTable", "id_text", "stored_payload"]

Row = tuple[Event, Recorded]
"""An event and its place."""

_PLACE: Final = ("_partition", "_position", "_stream", "_aggregate_id", "_version", "_event", "_recorded_at")
_IDS: Final = ("_command_id", "_correlation_id", "_causation_id")


class ClassTable:
    """Of the events of one class, whose fields are columns."""

    def __init__(self, cls: type[Event]) -> None:
        """Raises `CallerError` without pyarrow."""
        pa = pyarrow()
        self._columns: dict[str, Column] = {
            name: column_of(cls.model_fields[name].annotation, cls.model_fields[name].metadata)
            for name in fields_of(cls)
        }
        own = [(name, column.type) for name, column in self._columns.items()]
        self.schema = pa.schema([*_place_fields(), *own, ("_rest", pa.string())])

    def batch(self, rows: Sequence[Row]) -> Any:
        """See `Table`."""
        pa = pyarrow()
        rest: dict[int, dict[str, Any]] = {
            number: _unreadable(event) for number, (event, _) in enumerate(rows) if isinstance(event, UnreadableEvent)
        }
        readable = [None if isinstance(event, UnreadableEvent) else event for event, _ in rows] if rest else None
        events: Sequence[Event | None] = readable or [event for event, _ in rows]
        arrays = [self._array(name, column, events, rest) for name, column in self._columns.items()]
        texts = [json_text(rest[number]) if number in rest else None for number in range(len(rows))]
        arrays = [*_place_arrays(rows), *arrays, pa.array(texts, pa.string())]
        return pa.record_batch(arrays, schema=self.schema)

    def _array(self, name: str, column: Column, events: Sequence[Event | None], rest: dict[int, dict[str, Any]]) -> Any:
        """One field of all of them. What does not fit is None, and goes to `rest`."""
        pa, make = pyarrow(), column.make
        values = [None if event is None else getattr(event, name) for event in events]
        try:
            made = values if make is None else [None if value is None else make(value) for value in values]
            return pa.array(made, column.type)
        except (pa.ArrowException, TypeError, ValueError, ArithmeticError, AttributeError):
            fitting = []
            for number, value in enumerate(values):
                try:
                    one = None if value is None else value if make is None else make(value)
                    pa.array([one], column.type)
                except (pa.ArrowException, TypeError, ValueError, ArithmeticError, AttributeError):
                    one = None
                    said = rest.setdefault(number, {"why": f"they do not fit {name}: {column.type}", "fields": {}})
                    said["fields"][name] = plain(value)
                fitting.append(one)
            return pa.array(fitting, column.type)


class MixedTable:
    """Of events of any class, whose fields are JSON text."""

    def __init__(self) -> None:
        """Raises `CallerError` without pyarrow."""
        text = pyarrow().string()
        self.schema = pyarrow().schema([*_place_fields(), ("_payload", text), ("_rest", text)])

    def batch(self, rows: Sequence[Row]) -> Any:
        """See `Table`."""
        pa = pyarrow()
        payloads, rest = list[str | None](), list[str | None]()
        for event, _ in rows:
            unreadable = isinstance(event, UnreadableEvent)
            payloads.append(None if unreadable else json_text(event))
            rest.append(json_text(_unreadable(event)) if isinstance(event, UnreadableEvent) else None)
        arrays = [*_place_arrays(rows), pa.array(payloads, pa.string()), pa.array(rest, pa.string())]
        return pa.record_batch(arrays, schema=self.schema)


class StoredTable:
    """Of events as they are stored, for a reader without their classes: the fields are JSON text."""

    def __init__(self) -> None:
        """Raises `CallerError` without pyarrow."""
        pa = pyarrow()
        self.schema = pa.schema([*_place_fields(), ("_schema_version", pa.int64()), ("_payload", pa.string())])

    def batch(self, rows: Sequence[tuple[StoredEvent, Recorded]]) -> Any:
        """The `pyarrow.RecordBatch` of these events, in their order."""
        pa = pyarrow()
        names = [stored.name for stored, _ in rows]
        versions = pa.array([stored.schema_version for stored, _ in rows], pa.int64())
        payloads = pa.array([json_text(stored_payload(stored)) for stored, _ in rows], pa.string())
        arrays = _place_arrays([(None, recorded) for _, recorded in rows], names)
        return pa.record_batch([*arrays, versions, payloads], schema=self.schema)


def stored_payload(stored: StoredEvent) -> Mapping[str, Any]:
    """The stored fields as plain values. Bytes that are no fields are the field `_bytes`, in hexadecimal."""
    try:
        fields = decode_payload(stored.payload, stored.name)
    except InvalidMessage:
        return {"_bytes": stored.payload.hex()}
    return {name if isinstance(name, str) else str(name): plain(value) for name, value in fields.items()}


def _unreadable(event: UnreadableEvent) -> dict[str, Any]:
    return {"why": event.why, "version": event.stored_version, "fields": plain(event.fields)}


def _place_fields() -> list[Any]:
    pa = pyarrow()
    types = pa.int32(), pa.int64(), pa.string(), pa.string(), pa.int64(), pa.string(), pa.timestamp("us", TIME_ZONE)
    place = [pa.field(name, kind, nullable=False) for name, kind in zip(_PLACE, types, strict=True)]
    return [*place, *(pa.field(name, pa.string(), nullable=name != "_command_id") for name in _IDS)]


def _place_arrays(rows: Sequence[tuple[Event | None, Recorded]], names: Sequence[str] | None = None) -> list[Any]:
    pa = pyarrow()
    if names is None:
        events = [event for event, _ in rows if event is not None]
        names = [event.event if isinstance(event, UnreadableEvent) else event.message_name for event in events]
    if not rows:
        return [pa.array([], field.type) for field in _place_fields()]
    places = zip(*(recorded for _, recorded in rows), strict=True)  # column by column, which is faster
    streams, versions, partitions, positions, times, commands, correlations, causations, _ = places
    columns: list[Sequence[Any]] = [
        partitions,
        positions,
        [f"{stream[0]}/{stream[1]}" for stream in streams],
        [stream[1] for stream in streams],
        versions,
        names,
        times,
        [id_text(ident) for ident in commands],
        [id_text(ident) for ident in correlations],
        [id_text(ident) for ident in causations],
    ]
    return [pa.array(values, field.type) for values, field in zip(columns, _place_fields(), strict=True)]


def id_text(ident: bytes) -> str | None:
    """An id of 16 bytes as a UUID."""
    if not ident:
        return None
    text = ident.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" if len(ident) == 16 else str(UUID(text))
