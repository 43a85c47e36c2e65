"""Agendas: whether what is saved of them is what the logs lead to. The second half of `verify_store`.

Beside the write path: it only reads, also while the store is in use. Before it: the logs were checked. After it: an
agenda that differs is a problem of its partition, with the remedy: its folder may be removed. One of another state of
the log is not used, and a warning.

An agenda is a fold of its log, with one exception: what turned out to concern nothing (a timer of an aggregate that was
refused, an outcome for an instance that has no such command) is taken off it and leaves no record. So what is missing
in the file counts only if the log still waits for it.

Rule kept here: nothing is repaired. In memory is one partition's agenda at a time: some 300 bytes for each timer.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..encoding.envelope import HOPS_MAX
from ..errors import RayfoldError
from ..log.agenda_file import ARMED, PARKED, SENDS, TIMERS, AgendaFile, open_agenda_file
from ..log.contract import Reader
from ..log.format import decode_record
from ..processes.agenda import is_of_another_state, saved_place
from ..processes.delivery import woken_input
from ..processes.stored_step import step_in
from ..processes.timers import key_parts
from ..store.report import Report
from ..store.store import AGENDAS, open_store
from ..store.verify import check_structure, verify_store
from .process_fit import fold_up_to, progress_of

__all__ = ["differences", "verify_with_agendas"]

_ATTEMPTS_MAX: Final = 6
"""Attempts to read a file that its courier writes to meanwhile, every five seconds at most."""

_SHOWN_MAX: Final = 20
"""Differences of one agenda that are listed."""

_NUMBER: Final = struct.Struct(">Q")
_ARMED: Final = struct.Struct(">QQ")

Rows = dict[bytes, dict[bytes, bytes]]
"""By database and key."""


def verify_with_agendas(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Report:
    """As `verify_store`; the saved agendas of couriers are compared with the logs too. Raises what that does."""
    report = verify_store(path, progress)
    store = open_store(path)
    for one in report.partitions:
        folder = store.path / AGENDAS / f"partition-{one.partition:05d}"
        if one.problems or not (folder / "data.mdb").exists():
            continue
        if found := check_structure(folder):
            one.add_problem(
                "agenda", str(folder / "data.mdb"), "structure", f"{found[0]}; remove it while nothing runs"
            )
            continue
        try:
            reader = store.open_reader(one.partition)
        except RayfoldError:
            continue  # a problem of the log, and reported as that
        try:
            if _is_of_another_state(reader, folder):
                what = "it is of another state of the log, and is not used; it may be removed while nothing runs"
                one.add_warning("agenda", str(folder), "agenda", what)
            for key, what in differences(reader, folder):
                one.add_problem("agenda", key, "agenda", f"{what}; remove {folder} while nothing runs")
        except RayfoldError as error:
            one.add_warning("agenda", str(folder), "agenda", f"it cannot be read, and is not used: {error}")
        finally:
            reader.close()
    return report


def differences(reader: Reader, folder: Path) -> Iterator[tuple[str, str]]:
    """What of a saved agenda is not what its log leads to, and what is wrong with it. Nothing if it is of another log:
    it is not used then."""
    file = open_agenda_file(folder, "agenda", readonly=True)
    try:
        position, saved = _read(file, reader)
    finally:
        file.close()
    if not position:
        return
    folded = fold_up_to(reader, position).rows()
    shown = 0
    for database in (SENDS, PARKED, ARMED, TIMERS):
        there, expected = saved[database], folded.get(database, {})
        for key in sorted(there.keys() | expected.keys()):
            what = _difference(reader, database, key, there.get(key), expected.get(key))
            if what and shown < _SHOWN_MAX:
                shown += 1
                yield what


def _is_of_another_state(reader: Reader, folder: Path) -> bool:
    file = open_agenda_file(folder, "agenda", readonly=True)
    try:
        return is_of_another_state(file, reader)
    finally:
        file.close()


def _read(file: AgendaFile, reader: Reader) -> tuple[int, Rows]:
    """The position up to which the log was read for it, and its rows as of one moment."""
    for _ in range(_ATTEMPTS_MAX):
        before = saved_place(file, reader)
        rows = {database: dict(file.rows(database)) for database in (SENDS, PARKED, ARMED, TIMERS)}
        if saved_place(file, reader) == before:
            return before, rows
    return 0, {}


def _difference(
    reader: Reader, database: bytes, key: bytes, there: bytes | None, expected: bytes | None
) -> tuple[str, str] | None:
    if there == expected:
        return None
    if database == SENDS:
        stream, number = key_parts(key[:-8])[0], _NUMBER.unpack(key[-8:])[0]
        sent = progress_of(reader, stream).sends.get(number) if there is None else None
        if there is None and (sent is None or sent.done):
            return None
        return f"{stream} number {number}", f"what was sent is {_how(there)}, by the log it is {_how(expected)}"
    if database == PARKED:
        stream = key_parts(key)[0]
        return str(stream), f"the instance is {_how(there)}, by the log it is {_how(expected)}"
    timer = key if database == ARMED else key[8:]
    stream, name = key_parts(timer)
    if there is None and expected is not None and database == ARMED and _is_lost(reader, timer, expected):
        return None
    if there is None and database == TIMERS:
        return None  # `ARMED` has the same, and is compared
    return f"{stream} timer {name}", f"it is {_how(there)}, by the log it is {_how(expected)}"


def _how(value: bytes | None) -> str:
    return "not there" if value is None else "there" if len(value) not in (8, 16) else f"there, {value.hex()}"


def _is_lost(reader: Reader, key: bytes, armed: bytes) -> bool:
    """Whether a timer that the fold has was fired, and that has left no record in its stream."""
    stream, name = key_parts(key)
    due_us, version = _ARMED.unpack(armed)
    for record in reader.read_stream(stream, version, version):
        step = step_in(decode_record(record, checked=True))
        if step is None or (step.hops > HOPS_MAX and not step.is_process):
            return True
        if step.is_process:
            timer = progress_of(reader, stream).timers.get(name)
            return timer is None or timer.arming != version
        fired = woken_input(
            stream, name, version, due_us, step.input_id, step.correlation_id, is_process=False, expected_version=0
        )
        return bool(reader.find_commands([fired.command_id]))
    return True
