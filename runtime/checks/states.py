"""The check of states: every stream and read model is folded from the log, and what was saved is compared with it.

Beside all steps; `rayfold verify STORE MODULE:APP`. `standing.py` does samples of it while a system runs.

Rules kept here: the log is only read, and nothing in the store is changed; what differs is named by stream and version,
or projection and place, with both values; a handler that is not deterministic is called that. A database of a read
model is copied before it is opened, and not read while a runtime uses it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..domain.difference import difference, differing_fields, shown
from ..domain.projection import Projection
from ..domain.read_store import DuckDb, InMemory, Lmdb
from ..encoding.catalogue import Catalogue
from ..encoding.saved_state import decode_state, state_fingerprint
from ..errors import InvalidMessage, RayfoldError
from ..log.contract import Reader
from ..log.format import decode_record
from ..read.read_model import ReadModel
from ..read.stores.checkpoint import Checkpoint
from ..stream import StreamId
from ..write.residents import take_in
from .standing import fold_aside, folded, loose_places, wrong_state

__all__ = ["Difference", "SavedReadModel", "StateReport", "check_states"]

DIFFERENCES_MAX: Final = 1_000
"""The differences that are listed; further ones are counted."""

_PLACES_MAX: Final = 100_000
"""Rows that differ and are remembered; where more depend on the order between partitions, no row is compared."""

_PAGE: Final = 512
"""Records read at a time."""

Advance = Callable[[int], None]
"""Called with how many events further the check has come."""


class Difference(NamedTuple):
    """A saved state that differs from the log, or a stream that cannot be folded."""

    kind: str
    """`stream`, `snapshot` or `read model`."""
    subject: str
    """`Account/alice at version 17 in partition 3`, or `Balances, part 0, replica 0`."""
    what: str
    """Where they differ, with both values, each of at most 80 characters."""


class SavedReadModel(NamedTuple):
    """Where one projector keeps its read model."""

    projection: type[Projection]
    part: int
    replica: int
    folder: Path
    """With a folder for each fingerprint in it."""


class StateReport:
    """What was compared, and what differs."""

    def __init__(self) -> None:
        self.events = self.streams = self.snapshots = self.read_models = self.unlisted = 0
        self.differences: list[Difference] = []
        self.notes: list[str] = []
        """What was not compared, and why."""

    @property
    def ok(self) -> bool:
        """True when nothing differs."""
        return not self.differences

    def found(self, kind: str, subject: str, what: str) -> None:
        """One more difference."""
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(Difference(kind, subject, what))
        else:
            self.unlisted += 1

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        counts = {name: getattr(self, name) for name in ("events", "streams", "snapshots", "read_models", "unlisted")}
        return {
            **counts,
            "differences": [one._asdict() for one in self.differences],
            "notes": self.notes,
            "ok": self.ok,
        }


def check_states(
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    saved: Iterable[SavedReadModel],
    *,
    in_use: bool,
    advance: Advance = lambda events: None,
) -> StateReport:
    """Fold everything, and compare. `in_use`: databases of read models may be open elsewhere, and are left alone.

    Raises `StorageFailed` for a disk that refuses; what is wrong with a stream is in the report.
    """
    report = StateReport()
    for partition, reader in readers.items():
        _check_streams(report, catalogue, reader, partition, advance)
    for one in saved:
        _check_read_model(report, catalogue, readers, one, in_use, advance)
    return report


# --- streams --------------------------------------------------------------------------------------------------------


def _check_streams(report: StateReport, catalogue: Catalogue, reader: Reader, partition: int, advance: Advance) -> None:
    unknown: set[str] = set()
    after, head = 0, reader.head()
    while after < head and (records := reader.read(after, min(_PAGE, head - after), 4 << 20)):
        for record in records:
            stored = decode_record(record, checked=True)
            if stored.version != 1 or stored.stream.type.startswith("rayfold."):
                continue
            if stored.stream.type in catalogue.aggregates:
                _check_stream(report, catalogue, reader, partition, stored.stream)
            elif stored.stream.type not in unknown and stored.stream.type not in catalogue.retired:
                unknown.add(stored.stream.type)
                where = f"{stored.stream.type} in partition {partition}"
                report.found("stream", where, "the application has no aggregate of this type")
        after += len(records)
        report.events += len(records)
        advance(len(records))


def _check_stream(report: StateReport, catalogue: Catalogue, reader: Reader, partition: int, stream: StreamId) -> None:
    cls = catalogue.aggregate(stream.type)
    versions = set(_snapshot_versions(reader, stream, state_fingerprint(cls))) if cls.snapshot_every else set()
    aggregate = cls(stream.id)
    report.streams += 1
    try:
        while records := reader.read_stream(stream, aggregate.version + 1, None, _PAGE):
            for record in records:
                take_in(aggregate, catalogue, decode_record(record))
                if aggregate.version in versions:
                    _check_snapshot(report, catalogue, reader, partition, stream, aggregate)
    except RayfoldError as error:
        where = f"{stream} after version {aggregate.version} in partition {partition}"
        report.found("stream", where, f"it cannot be folded: {error}")


def _snapshot_versions(reader: Reader, stream: StreamId, schema: bytes) -> Iterator[int]:
    """The versions of all usable snapshots of a stream, the latest first."""
    below: int | None = None
    while below != 0 and (found := reader.find_snapshot(stream, schema, below)) is not None:
        yield found.version
        below = found.version - 1


def _check_snapshot(
    report: StateReport, catalogue: Catalogue, reader: Reader, partition: int, stream: StreamId, aggregate: Any
) -> None:
    cls, version = type(aggregate), aggregate.version
    found = reader.find_snapshot(stream, state_fingerprint(cls), version)
    if found is None or found.version != version:
        return
    report.snapshots += 1
    where = f"{stream} at version {version} in partition {partition}"
    try:
        restored = decode_state(cls, found.state, stream.id, version)
    except InvalidMessage as error:
        report.found("snapshot", where, str(error))
        return
    what = wrong_state(aggregate, restored, lambda: folded(catalogue, reader, stream, version))
    if what:
        report.found("snapshot", where, what)


# --- read models ------------------------------------------------------------------------------------------------------


def _check_read_model(
    report: StateReport,
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    saved: SavedReadModel,
    in_use: bool,
    advance: Advance,
) -> None:
    projection = saved.projection
    subject = f"{projection.projection_name}, part {saved.part}, replica {saved.replica}"
    folder = saved.folder / catalogue.fingerprint(projection).hex()
    if not folder.is_dir():
        report.notes.append(f"{subject}: nothing is saved that this code would use")
        return
    if not isinstance(projection.read_store, InMemory | Lmdb | DuckDb):
        report.notes.append(f"{subject}: its store, {projection.read_store!r}, cannot be compared")
        return
    if in_use and not isinstance(projection.read_store, InMemory):
        report.notes.append(f"{subject}: not compared, its database is in use")
        return
    with tempfile.TemporaryDirectory(prefix="rayfold-verify-") as copy_of:
        shutil.copytree(folder, copy_of, dirs_exist_ok=True)
        model, store = projection(), projection.read_store.make()
        try:
            stored = store.open(model, Path(copy_of))
            place = None if stored is None else Checkpoint.unpacked(stored)
            if place is None:
                report.notes.append(f"{subject}: it has no checkpoint yet")
                return
            if objection := place.objection(readers, readers.keys()):
                report.notes.append(f"{subject}: it is not used, {objection}")
                return
            if place.out_of_order:
                report.notes.append(f"{subject}: not compared, some events were taken in out of order")
                return
            report.read_models += 1
            advance(sum(place.positions.values()))
            store.begin(reading=True)
            try:
                what, loose = _compared(projection, catalogue, readers, saved.part, place, model)
            finally:
                store.roll_back()
            if what:
                report.found("read model", subject, what)
            elif loose:
                report.notes.append(
                    f"{subject}: {_listed(loose)} not compared: folded in another order of the "
                    "partitions, which nothing determines, it is something else"
                )
        except RayfoldError as error:
            report.found("read model", subject, str(error))
        finally:
            store.close()


def _listed(places: Sequence[str]) -> str:
    """The first three of them, and how many there are."""
    more = f" and {len(places) - 3:,} more are" if len(places) > 3 else " is" if len(places) == 1 else " are"
    return ", ".join(places[:3]) + more


def _compared(
    projection: type[Projection],
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    part: int,
    place: Checkpoint,
    model: Projection,
) -> tuple[str, Sequence[str]]:
    """What differs, and where nothing was compared, because it depends on the order between partitions."""

    def fold(order: str = "ascending") -> ReadModel:
        return fold_aside(projection, catalogue, readers, part, place.positions, order=order)

    aside = fold()
    try:
        if [one.position for one in aside.quarantined] != [one.position for one in place.quarantined]:
            was = f"{len(place.quarantined)} events are set aside, of a fold {len(aside.quarantined)}"
            return f"{was}; an event may have been taken in out of order", ()

        def differing(other: ReadModel) -> dict[str, str]:
            with aside.reading() as expected, other.reading() as twice:
                return dict(islice(_differing(expected, twice), _PLACES_MAX))

        with aside.reading() as expected:
            found = dict(islice(_differing(expected, model), _PLACES_MAX))
        if not found:
            return "", ()
        again = fold()
        try:
            unsteady = next(iter(differing(again).values()), "")
        finally:
            again.close()
        if unsteady:
            return f"its handlers are not deterministic, two folds of the same events differ: {unsteady}", ()
        loose = loose_places(fold, place.positions, differing)
        if len(loose) >= _PLACES_MAX:
            return "", sorted(loose)
        what = next((line for where, line in found.items() if where not in loose), "")
        return what, sorted(loose)
    finally:
        aside.close()


def _differing(expected: Projection, got: Projection) -> Iterator[tuple[str, str]]:
    """The places (fields, rows of LMDB, tables) in which two read models of one kind differ, each in a transaction."""
    if isinstance(expected.read_store, InMemory):
        yield from differing_fields(expected, got).items()  # a stream that was rebuilt has its keys at the end
    elif isinstance(expected.read_store, Lmdb):
        yield from _differing_rows(expected, got)
    else:
        yield from _differing_tables(expected, got)


def _differing_rows(expected: Projection, got: Projection) -> Iterator[tuple[str, str]]:
    mine, theirs = (iter(model.rows.starting_with("")) for model in (expected, got))
    one, other = next(mine, None), next(theirs, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None  # one of the two is there
            yield one[0], f"rows[{shown(one[0])}] is missing, where it was {shown(one[1])}"
            one = next(mine, None)
        elif one is None or other[0] < one[0]:
            yield other[0], f"rows[{shown(other[0])}] is {shown(other[1])}, where there was nothing"
            other = next(theirs, None)
        else:
            if what := difference(one[1], other[1], f"rows[{shown(one[0])}]"):
                yield one[0], what
            one, other = next(mine, None), next(theirs, None)


def _differing_tables(expected: Projection, got: Projection) -> Iterator[tuple[str, str]]:
    mine, theirs = _tables(expected), _tables(got)
    for table in sorted(mine | theirs):
        if table not in theirs or table not in mine:
            yield table, f"the table {table} is {'missing' if table in mine else 'new'}"
            continue
        for number, (one, other) in enumerate(zip_longest(_rows(expected, table), _rows(got, table)), 1):
            where = f"row {number} of {table}"
            if other is None:
                yield table, f"{where} is missing, where it was {shown(one)}"
            elif one is None:
                yield table, f"{where} is {shown(other)}, where there was nothing"
            elif what := difference(one, other, where):
                yield table, what
            else:
                continue
            break


def _tables(model: Projection) -> set[str]:
    tables = "SELECT table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
    return {table for (table,) in model.sql(tables).fetchall()} - {"rayfold_checkpoint"}


def _rows(model: Projection, table: str) -> Iterator[Any]:
    """Every row of a table, in an order that does not depend on how it came to be."""
    quoted = '"' + table.replace('"', '""') + '"'
    result = model.sql(f"SELECT * FROM {quoted} ORDER BY ALL")
    while rows := result.fetchmany(_PAGE):
        yield from rows
