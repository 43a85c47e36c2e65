"""ProcessFit: whether processes can go on with what their instances wait for, found out before anything runs.

Beside the write path; part of the fit (`fit.py`). Before it: the agenda of each log has what is armed, and what is
parked. After it: each timer that no method would take, and each parked input, is a difference with its remedy.

Rule kept here: what would be passed over in silence later is refused now. What would park an instance, visibly, is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from ..encoding.catalogue import Catalogue
from ..errors import Misfit, RayfoldError
from ..log.agenda_file import AgendaFile, open_agenda_file
from ..log.contract import Reader
from ..log.format import decode_record
from ..processes.agenda import Agenda
from ..processes.kinds import EVENT, WOKEN
from ..processes.progress import STEPPED, Progress, Stepped, advanced, body_of
from ..processes.stored_step import step_in
from ..stream import StreamId

__all__ = ["agenda_of", "fold_up_to", "process_misfits", "progress_of"]

_PAGE: Final = 2_048
_PAGE_BYTES: Final = 4 << 20

_PARKED_MAX: Final = 1_000
"""Parked instances whose inputs are compared: more are a fault of the code that runs."""

_WHERE_MAX: Final = 20
"""Differences that are listed of one log."""


def agenda_of(reader: Reader, folder: Path | None) -> Agenda:
    """What is still to be carried out in a log, up to its end. `folder`: of its agenda; without one, or if that cannot
    be used, all of the log is read."""
    file: AgendaFile | None = None
    if folder is not None and folder.exists():
        try:
            file = open_agenda_file(folder, "agenda", readonly=True)
        except RayfoldError:
            file = None
    return fold_up_to(reader, reader.head(), Agenda(file))


def fold_up_to(reader: Reader, head: int, agenda: Agenda | None = None) -> Agenda:
    """An agenda that has read a log up to there. `agenda`: one that goes on from where it was saved."""
    agenda = Agenda() if agenda is None else agenda
    agenda.open(reader)
    while agenda.position < head:
        records = reader.read(agenda.position, min(_PAGE, head - agenda.position), _PAGE_BYTES)
        if not records:
            break
        for record in records:
            if (step := step_in(decode_record(record, checked=True))) is not None:
                agenda.fold(step)
        agenda.reached(records[-1], agenda.position + len(records))
    return agenda


def process_misfits(catalogue: Catalogue, logs: Iterable[tuple[Reader, Path | None]]) -> list[Misfit]:
    """Every timer and every parked input, in these logs, that the classes have no method for. Each log with the folder
    of its agenda."""
    timers: Counter[tuple[str, str]] = Counter()
    found: list[Misfit] = []
    for reader, folder in logs:
        if not any(_is_known(catalogue, name) for name in reader.holdings().aggregates):
            continue
        agenda = agenda_of(reader, folder)
        timers += agenda.timers.kinds()
        for stream in list(agenda.parked)[:_PARKED_MAX]:
            found += _parked(catalogue, reader, stream)
        agenda.shut()
    return [*_timers(catalogue, timers), *found[:_WHERE_MAX]]


def _is_known(catalogue: Catalogue, type_name: str) -> bool:
    """Whether anything is armed or parked in streams of this type; one without a class is a difference of its own."""
    cls = catalogue.aggregates.get(type_name)
    return cls is not None and (cls.is_process or cls.has_outputs)


def _timers(catalogue: Catalogue, timers: Counter[tuple[str, str]]) -> Iterator[Misfit]:
    for (type_name, name), count in sorted(timers.items()):
        cls: Any = catalogue.aggregates.get(type_name)
        if cls is None or name in cls.wakers or name in getattr(cls, "schedules", {}):
            continue
        if cls.is_process and cls.is_effects:
            what = f"{count:,} calls of {name} are open, and it has no such function"
            yield Misfit(f"effects {type_name}", what, "keep it until they are over")
            continue
        what = f"{count:,} timers named {name!r} are armed, and no @woken method has that name"
        remedy = "keep the method" + (f"; of a schedule: first End schedule:{name}" if cls.is_process else "")
        yield Misfit(f"{'process' if cls.is_process else 'aggregate'} {type_name}", what, remedy)


def _parked(catalogue: Catalogue, reader: Reader, stream: StreamId) -> Iterator[Misfit]:
    """What waits in a parked instance."""
    process = catalogue.processes.get(stream.type)
    if process is None:
        return
    missing: set[str] = set()
    for packed in progress_of(reader, stream).waiting:
        kind, _, head, _ = msgpack.unpackb(packed)
        if kind == EVENT and head[3] not in process.reactions:
            missing.add(f"{head[3]} waits in it, and no @react method takes that")
        if kind == WOKEN and head[0] not in process.wakers and head[0] not in process.schedules:
            missing.add(f"the timer {head[0]!r} waits in it, and no @woken method has that name")
    for what in sorted(missing):
        yield Misfit(f"parked instance {stream}", what, "keep the method until it is retried, skipped or ended")


def progress_of(reader: Reader, stream: StreamId) -> Progress:
    """The progress of an instance, from its stream."""
    progress, version = Progress(), 0
    while records := reader.read_stream(stream, version + 1):
        for record in records:
            stored = decode_record(record, checked=True)
            version = stored.version
            if stored.name == STEPPED:
                body = Stepped.model_construct({"body"}, body=msgpack.unpackb(stored.payload)["body"])
                progress = advanced(progress, body_of(body), version)
    return progress
