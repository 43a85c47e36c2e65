"""Dry run: the result of starting these classes over a store, without starting or changing anything.

Beside the write path, for `rayfold check`. What `fit.py` compares, and what it cannot: records are decoded and upcast,
streams are folded, with older classes too if there are any, and the states compared; and it is measured how long the
read models take that would have to be built.

Rules kept here: logs are only read, page by page; of a sample every (event name, schema version) has some; snapshots
are passed over, since what counts is what the code makes of the events.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from ..domain.aggregate import Aggregate
from ..domain.difference import attributes_of, caches_of
from ..domain.projection import Projection
from ..encoding.catalogue import Catalogue
from ..errors import Misfit, RayfoldError, UnknownEvent
from ..log.contract import Reader, StoredEvent
from ..log.format import decode_record
from ..read.read_model import ReadModel
from ..stream import StreamId, is_reserved
from ..write.residents import take_in
from .fit import PAGE, PAGE_BYTES_MAX, Kind, held_in, misfits, sampled, waiting_misfits

__all__ = ["DifferingState", "DryRun", "KindTried", "dry_run", "projected_per_s"]

STREAMS_MAX: Final = 1_000
"""Streams of a sample that are folded: some seconds."""

ALL_STREAMS_MAX: Final = 1_000_000
"""Streams that are folded of everything: their names take some 200 MB."""

LISTED_MAX: Final = 100
"""States and streams that are listed one by one."""

MEASURED_S: Final = 2.0
"""For how long a projection is measured."""

MEASURED_STEP: Final = 5_000
"""Events between two readings of the clock."""

Progress = Callable[[int, int], None]
"""Called with records done and records in all."""


class KindTried(NamedTuple):
    """The result of decoding the stored events of one name and schema version."""

    name: str
    schema_version: int
    tried: int
    unreadable: int
    why: str
    """Why the first one could not be read, and where it is."""


class DifferingState(NamedTuple):
    """A stream whose state is another one with the other classes."""

    stream: str
    field: str
    old: str
    new: str


class DryRun:
    """What was found. Good if nothing is listed in `misfits`, `unreadable`, `failed` and `differing`."""

    def __init__(self) -> None:
        self.misfits: list[Misfit] = []
        self.kinds: list[KindTried] = []
        self.streams = 0
        """How many were folded."""
        self.failed: list[tuple[str, str]] = []
        """Streams that could not be folded, and why; at most 100."""
        self.compared = 0
        """How many were folded with the older classes too."""
        self.differing: list[DifferingState] = []
        """At most 100."""
        self.unlisted = 0
        """How many more there were."""

    @property
    def unreadable(self) -> list[KindTried]:
        """The kinds of which some event could not be read."""
        return [one for one in self.kinds if one.unreadable]

    @property
    def ok(self) -> bool:
        """Whether the classes fit, everything that was tried was read, and no state differs."""
        return not (self.misfits or self.unreadable or self.failed or self.differing or self.unlisted)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "misfits": [one._asdict() for one in self.misfits],
            "events": [one._asdict() for one in self.kinds],
            "streams_folded": self.streams,
            "streams_failed": [{"stream": stream, "why": why} for stream, why in self.failed],
            "states_compared": self.compared,
            "states_differing": [one._asdict() for one in self.differing],
            "unlisted": self.unlisted,
        }


def dry_run(
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    *,
    everything: bool = False,
    against: Catalogue | None = None,
    progress: Progress = lambda done, total: None,
    agendas: Path | None = None,
) -> DryRun:
    """Compare, decode, fold. `everything`: all records and streams, and not a sample. `against`: older classes, whose
    states are compared with those of `catalogue`. `agendas`: the folder of the agendas of these logs, if it is here."""
    run = DryRun()
    held = held_in(readers.values())
    run.misfits = misfits(catalogue, held, readers) or waiting_misfits(catalogue, readers, agendas)
    streams = _try_records(run, catalogue, readers, set(held.events), everything, progress)
    for partition, stream in streams:
        _try_stream(run, catalogue, against, readers[partition], stream)
    return run


def projected_per_s(projection: type[Projection], catalogue: Catalogue, readers: Mapping[int, Reader]) -> float:
    """Events a second at which a read model is built here, measured for two seconds at most; 0 for an empty log.

    Raises what the read store raises; a projection that stops at an event is measured up to there.
    """
    model = ReadModel(projection, catalogue.narrowed(projection), readers)
    model.open()
    try:
        begun_s, done = time.perf_counter(), 0
        for partition, reader in readers.items():
            head, reached = reader.head(), 0
            while reached < head and model.failed is None and time.perf_counter() - begun_s < MEASURED_S:
                before, reached = reached, min(reached + MEASURED_STEP, head)
                model.catch_up(partition, reached)
                done += reached - before
        return done / max(time.perf_counter() - begun_s, 1e-6)
    finally:
        model.close()


def _try_records(
    run: DryRun,
    catalogue: Catalogue,
    readers: Mapping[int, Reader],
    kinds: set[Kind],
    everything: bool,
    progress: Progress,
) -> dict[tuple[int, StreamId], None]:
    """Decode and upcast. Returns the streams that were met, up to a bound."""
    tried: dict[Kind, KindTried] = {}
    streams: dict[tuple[int, StreamId], None] = {}
    streams_max = ALL_STREAMS_MAX if everything else STREAMS_MAX
    for partition, stored in _chosen(readers, kinds, everything, progress):
        kind = stored.name, stored.schema_version
        known = tried.get(kind) or KindTried(*kind, 0, 0, "")
        why = _why_unreadable(catalogue, partition, stored)
        tried[kind] = known._replace(
            tried=known.tried + 1, unreadable=known.unreadable + bool(why), why=known.why or why
        )
        if stored.stream.type in catalogue.aggregates and len(streams) < streams_max:
            streams[partition, stored.stream] = None
    run.kinds = [tried.get(kind) or KindTried(*kind, 0, 0, "") for kind in sorted(kinds | tried.keys())]
    return streams


def _why_unreadable(catalogue: Catalogue, partition: int, stored: StoredEvent) -> str:
    try:
        catalogue.decode_events(stored)
    except UnknownEvent as error:
        return f"{error.what} (event {stored.position} of partition {partition}, {stored.stream} {stored.version})"
    return ""


def _chosen(
    readers: Mapping[int, Reader], kinds: set[Kind], everything: bool, progress: Progress
) -> Iterator[tuple[int, StoredEvent]]:
    """All events, or a sample, in which every kind has some: those that it lacks are searched in the whole log."""
    total = sum(reader.head() for reader in readers.values())
    missing = set(kinds)
    if not everything:
        for partition, reader in readers.items():
            for stored in sampled(reader):
                missing.discard((stored.name, stored.schema_version))
                yield partition, stored
    done = 0
    for partition, reader in readers.items() if everything or missing else ():
        for stored in _all_of(reader):
            done += 1
            if done % PAGE == 0:
                progress(done, total)
            if everything:
                yield partition, stored
            elif (stored.name, stored.schema_version) in missing:
                missing.discard((stored.name, stored.schema_version))
                yield partition, stored
                if not missing:
                    break
    progress(total, total)


def _all_of(reader: Reader) -> Iterator[StoredEvent]:
    after = 0
    while records := reader.read(after, PAGE, PAGE_BYTES_MAX):
        after += len(records)
        for record in records:
            stored = decode_record(record, checked=True)
            if not is_reserved(stored.stream.type):
                yield stored


def _try_stream(run: DryRun, catalogue: Catalogue, against: Catalogue | None, reader: Reader, stream: StreamId) -> None:
    try:
        state = _folded(catalogue, reader, stream)
    except RayfoldError as error:
        _list(run, run.failed, [(str(stream), str(error))])
        return
    run.streams += 1
    if against is None or stream.type not in against.aggregates:
        return
    try:
        before = _folded(against, reader, stream)
    except RayfoldError:  # what the older code cannot read, newer code has written
        return
    run.compared += 1
    _list(run, run.differing, list(_differing(str(stream), before, state)))


def _list(run: DryRun, listed: list[Any], found: list[Any]) -> None:
    room = LISTED_MAX - len(listed)
    listed += found[:room]
    run.unlisted += len(found[room:])


def _folded(catalogue: Catalogue, reader: Reader, stream: StreamId) -> Aggregate:
    """The aggregate as its events alone make it."""
    aggregate = catalogue.aggregate(stream.type)(stream.id)
    while records := reader.read_stream(stream, aggregate.version + 1, None, PAGE):
        for record in records:
            take_in(aggregate, catalogue, decode_record(record))
    return aggregate


def _differing(stream: str, old: Aggregate, new: Aggregate) -> Iterator[DifferingState]:
    """Field by field, by content: the classes of the values may be those of two releases."""
    for field in dict.fromkeys([*old.state_fields, *new.state_fields]):
        before, now = (_plain(getattr(one, field, _NOT_THERE)) for one in (old, new))
        if before != now:
            yield DifferingState(stream, field, _shown(before), _shown(now))


_NOT_THERE: Final = object()

_NAN: Final = ("NaN",)
"""Stands for each NaN, which does not equal itself."""

_DEPTH_MAX: Final = 64


def _plain(value: Any, depth: int = 0) -> Any:
    """The value with models, dataclasses, enums and other objects as plain values, so that equal content is equal."""
    if depth > _DEPTH_MAX:
        return "..."
    if isinstance(value, float) and math.isnan(value):
        return _NAN
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        names: Iterable[str] = type(value).model_fields if isinstance(value, BaseModel) else value.__dataclass_fields__
        return {name: _plain(getattr(value, name, None), depth + 1) for name in names}
    if isinstance(value, dict):
        return {_hashable(_plain(key, depth + 1)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return {_hashable(_plain(item, depth + 1)) for item in value}
    kind: Any = type(value)
    if kind.__module__.partition(".")[0] not in sys.stdlib_module_names:  # a class of the application's
        found = attributes_of(value)
        if found or hasattr(value, "__dict__"):
            return {name: _plain(found[name], depth + 1) for name in sorted(found.keys() - caches_of(kind))}
    return value


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, dict | list | set) else value


def _shown(value: object) -> str:
    if value is _NOT_THERE:
        return "no such field"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
