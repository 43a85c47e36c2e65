"""Fit: whether the classes of an application can work with what a store holds, found out before anything runs.

Beside the write path. Used when a runtime starts, before a deployment changes anything, and by `rayfold check`. Before
it: the log has kept the shape of every (event name, schema version) that it holds, and its aggregate types. After it:
either the classes fit, or every difference is listed, each with what would be right.

Rules kept here: only who runs aggregates and projections over a log is compared; a program that only sends, asks or
reads is not. Names of fields are compared exactly, since two sets of fields under one version can never be
distinguished; a changed type is tried on a sample of the stored records and refused if one of them cannot be read. What
the log does not hold is never a difference: a new class, a new version, an upcaster for a version that was never
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..domain.messages import Event
from ..encoding.catalogue import Catalogue
from ..encoding.shape import FieldDifference, Shape, differences, event_shape, unpack_shape
from ..errors import CodeMismatch, Damaged, Misfit, UnknownEvent
from ..log.contract import Reader, StoredEvent
from ..log.format import decode_record
from ..stream import is_reserved
from .process_fit import process_misfits

__all__ = ["Held", "Kind", "check_fit", "held_in", "misfits", "sampled", "waiting_misfits"]

SAMPLE_PAGES: Final = 16
"""Pages of a log that are read for a changed type: the first, the last, and some in between. Some milliseconds."""

PAGE: Final = 256
"""Records of a page."""

PAGE_BYTES_MAX: Final = 4 << 20
"""Bytes of a page, so that large events cannot fill the memory of a program that only starts."""

Kind = tuple[str, int]
"""The name and the schema version of an event."""


class Held(NamedTuple):
    """What the logs of a store hold."""

    events: dict[Kind, list[Shape]]
    """Each kind of event, with the shapes that its logs have of it: one, unless they have seen different releases;
    none where it is not known. That of an event without fields is empty."""
    aggregates: frozenset[str]


_STRANGE_MIN: Final = 3
"""Names of events and aggregates: an application with one of each may have renamed both."""


def held_in(readers: Iterable[Reader]) -> Held:
    """What these logs hold together. A damaged one is left out here: opening or verifying it reports the damage."""
    events: dict[Kind, list[Shape]] = {}
    aggregates: set[str] = set()
    for reader in readers:
        try:
            held = reader.holdings()
        except Damaged:
            continue
        aggregates |= held.aggregates
        for kind, packed in held.events.items():
            shapes = events.setdefault(kind, [])
            try:
                shape = unpack_shape(packed)
            except ValueError:  # not known, or of a later release: then only the name and version count
                continue
            if shape not in shapes:
                shapes.append(shape)
    return Held(events, frozenset(aggregates))


def check_fit(store: str, catalogue: Catalogue, readers: Mapping[int, Reader], agendas: Path | None = None) -> None:
    """Raises `CodeMismatch`, with every difference, if these classes do not fit what these logs hold. `agendas`: the
    folder of the agendas of these logs; what waits for a process is compared only if it is here."""
    found = misfits(catalogue, held_in(readers.values()), readers)
    found = found or waiting_misfits(catalogue, readers, agendas)
    if found:
        raise CodeMismatch(store, found)


def waiting_misfits(catalogue: Catalogue, readers: Mapping[int, Reader], agendas: Path | None) -> list[Misfit]:
    """Every difference between the classes and what waits for processes, by the agendas in this folder."""
    if agendas is None:
        return []
    return process_misfits(catalogue, ((one, agendas / f"partition-{number:05d}") for number, one in readers.items()))


def misfits(catalogue: Catalogue, held: Held, readers: Mapping[int, Reader]) -> list[Misfit]:
    """Every difference between the classes and what is held, by the names of events and then of aggregate types."""
    found: list[Misfit] = []
    changed: dict[Kind, list[FieldDifference]] = {}
    for kind, shapes in sorted(held.events.items()):
        name, version = kind
        cls = catalogue.events.get(name)
        if name in catalogue.retired:
            continue
        if cls is None:
            found.append(_unknown_event(kind, shapes, held, catalogue))
        elif version > cls.schema_version:
            found.append(_older(kind, cls))
        elif version == cls.schema_version:
            now = event_shape(cls)
            different = [one for shape in shapes for one in differences(shape, now)]
            names = list(dict.fromkeys(one for one in different if one.kind != "type"))
            if names:
                found.append(_changed(kind, cls, names))
            elif different:
                changed[kind] = different
    found += _unreadable_types(catalogue, changed, readers)
    known = catalogue.aggregates.keys() | catalogue.retired
    found += [_unknown_aggregate(name, held, catalogue) for name in sorted(held.aggregates) if name not in known]
    return _strange(catalogue, held) + found


def _strange(catalogue: Catalogue, held: Held) -> list[Misfit]:
    """What to think of first where several kinds are held, and the classes know none of them."""
    names = {name for name, _ in held.events}
    known = catalogue.events.keys() | catalogue.aggregates.keys() | catalogue.retired
    if len(names) + len(held.aggregates) < _STRANGE_MIN or known & (names | held.aggregates):
        return []
    what = "the store holds none of the events and aggregates of this application, but others"
    return [Misfit("the store", what, "if it is that of another application, choose another directory")]


def sampled(reader: Reader, pages: int = SAMPLE_PAGES) -> Iterator[StoredEvent]:
    """Events of a log: its first and its last page, and some in between. Damaged records are passed over."""
    head = reader.head()
    starts = {(head * page) // pages for page in range(pages)} | {max(head - PAGE, 0)}
    reached = 0
    for start in sorted(starts):
        after = max(start, reached)
        try:
            records = reader.read(after, PAGE, PAGE_BYTES_MAX) if after < head else []
        except Damaged:
            continue
        reached = after + len(records)
        for record in records:
            stored = decode_record(record, checked=True)
            if not is_reserved(stored.stream.type):
                yield stored


def _subject(kind: Kind) -> str:
    return f"event {kind[0]!r} version {kind[1]}"


def _unknown_event(kind: Kind, shapes: list[Shape], held: Held, catalogue: Catalogue) -> Misfit:
    name = kind[0]
    bases = {base for cls in catalogue.events.values() for base in cls.__mro__[1:]}
    stored_names = {stored for stored, _ in held.events}
    alike = [
        cls.__name__
        for other, cls in catalogue.events.items()
        if other not in stored_names and cls not in bases and _same_fields(shapes, event_shape(cls))
    ]
    remedy = f'keep its class, with name="{name}" if that is called otherwise now'
    if alike:
        remedy = f'{" or ".join(alike)} has the same fields: if it is that event, give name="{name}" in its class line'
    remedy += f'; list the class in events= if no aggregate here evolves it, or give retired=["{name}"] to give it up'
    return Misfit(_subject(kind), "the store holds it, and no class here has that name", remedy)


def _same_fields(shapes: list[Shape], now: Shape) -> bool:
    return any(shape and all(one.kind == "type" for one in differences(shape, now)) for shape in shapes)


def _older(kind: Kind, cls: type[Event]) -> Misfit:
    what = f"the store holds it, and {cls.__name__} is at version {cls.schema_version}: the code is older than the log"
    return Misfit(_subject(kind), what, "start the release that has written it, or a later one")


def _changed(kind: Kind, cls: type[Event], names: list[FieldDifference]) -> Misfit:
    version = kind[1]
    remedy = (
        f"give version={version + 1} in the class line of {cls.__name__}, and write an"
        f" @upcast(from_version={version}) that makes the new fields of the old"
    )
    return Misfit(_subject(kind), f"its fields have changed: {', '.join(map(str, names))}", remedy)


def _unknown_aggregate(name: str, held: Held, catalogue: Catalogue) -> Misfit:
    new = [cls.__name__ for other, cls in catalogue.aggregates.items() if other not in held.aggregates]
    remedy = f'list its class, with name="{name}" if that is called otherwise now'
    if new:
        remedy = f'if {" or ".join(sorted(new))} is that aggregate, give name="{name}" in its class line'
    remedy += f'; or give retired=["{name}"] to give it up'
    return Misfit(f"aggregate {name!r}", "the store holds some, and no class here has that name", remedy)


def _unreadable_types(
    catalogue: Catalogue, changed: Mapping[Kind, list[FieldDifference]], readers: Mapping[int, Reader]
) -> Iterator[Misfit]:
    """Among the kinds of which only types have changed, those with a stored record that cannot be read any more."""
    failed: dict[Kind, UnknownEvent] = {}
    for partition, reader in readers.items() if changed else ():
        for stored in sampled(reader):
            kind = stored.name, stored.schema_version
            if kind in changed and kind not in failed:
                try:
                    catalogue.decode_events(stored)
                except UnknownEvent as unknown:
                    failed[kind] = unknown.in_partition(partition)
    for kind, error in failed.items():
        types = ", ".join(map(str, dict.fromkeys(changed[kind])))
        what = f"the types of its fields have changed ({types}), and a stored one cannot be read: {error.what}"
        where = f"{_subject(kind)}, event {error.position} of partition {error.partition}"
        cls = catalogue.events[kind[0]]
        yield _changed(kind, cls, [])._replace(where=where, what=what)
