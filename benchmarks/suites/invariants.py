"""The invariants: what has to be true after a timed run, read back from the logs and not from a memory.

Rule kept here: a run that breaks one of them has no figure. What is checked, and how each broken build shows:

- *every acknowledged event is present once*, under the command id, stream, version and position of its receipt
  (an event that was dropped before the append leaves a hole, or another event where its receipt points)
- *positions and versions are contiguous*, and no command took effect twice
- *acknowledged means on the disk*: Linux shows how many pages of a file in its cache are still to be written
  (`cachestat`, Linux 6.5). Right after the last acknowledgement the log's file must have none; without the fsync it has
  nearly all it wrote. A memory file system has no disk to write to and is distinguished elsewhere: the report marks it
- *a read model is a fold of the log*: the answers of every replica against an own, plain sum over the events
  (a projector that applies twice is off by a factor)

They know the bytes of the log (`runtime/log/format.py`) and share nothing else with what is checked.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack

from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.log.contract import Reader
from rayfold.runtime.receipt import Receipt

from ..harness.log_walk import events_of

TOLD_MAX: Final = 5
"""Lines of one kind: the first few show what is wrong, the rest is counted."""

_CACHESTAT: Final = 451
"""The number of the system call, the same on every architecture (Linux 6.5; all calls since 424 share numbers)."""


def log_violations(
    readers: Mapping[int, Reader], receipts: Iterable[Receipt], after: Mapping[int, int] | None = None
) -> list[str]:
    """What is wrong between what was acknowledged and what the logs hold after the positions `after`.

    Receipts are of commands that leave one event each. Events without a receipt are allowed: their acknowledgement may
    have been lost, or not been kept.
    """
    told: list[str] = []
    acknowledged: dict[int, list[Receipt]] = {partition: [] for partition in readers}
    for receipt in receipts:
        acknowledged[receipt.partition].append(receipt)
    for partition, reader in readers.items():
        start = (after or {}).get(partition, 0)
        told += _shortened(_log_violations(partition, reader, acknowledged[partition], start))
    return told


def _log_violations(partition: int, reader: Reader, acknowledged: Sequence[Receipt], start: int) -> Iterator[str]:
    """One line for each thing that is wrong in one partition."""
    wanted: dict[int, Receipt] = {}
    for receipt in acknowledged:
        other = wanted.setdefault(receipt.position, receipt)
        if other.command_bytes != receipt.command_bytes:
            yield f"partition {partition}: two commands have receipts for position {receipt.position}"
    position = start
    versions: dict[Any, int] = {}
    places: dict[bytes, int] = {}
    try:
        for event in events_of(reader, start):
            position += 1
            if event.position != position:
                yield f"partition {partition}: the event at position {position} is numbered {event.position}"
            version = versions.get(event.stream, 0 if not start else event.version - 1) + 1
            versions[event.stream] = event.version
            if event.version != version:
                yield f"partition {partition}: {event.stream} has version {event.version} where {version} must be"
            last = places.get(event.command_id)
            if last is not None and last != position - 1:
                yield f"partition {partition}: command {event.command_id.hex()} took effect at {last} and {position}"
            places[event.command_id] = position
            told = wanted.pop(position, None)
            if told is not None and (told.command_bytes, told.stream, told.version) != (
                event.command_id,
                event.stream,
                event.version,
            ):
                what = f"position {position} holds another event than that of the receipt of {told.stream}"
                yield f"partition {partition}: {what}"
    except RayfoldError as error:
        yield f"partition {partition}: the log cannot be read after position {position}: {error}"
    for missing in wanted.values():
        if missing.position > start:
            yield f"partition {partition}: {missing.stream} version {missing.version} was acknowledged and is missing"


def balances_in(readers: Iterable[Reader]) -> dict[str, int]:
    """Account -> sum of its deposits: a fold of the logs that shares no code with aggregates or projections."""
    balances: dict[str, int] = {}
    for reader in readers:
        for event in events_of(reader):
            if event.name == "Deposited":
                amount = msgpack.unpackb(event.payload)["amount"]
                balances[event.stream.id] = balances.get(event.stream.id, 0) + amount
    return balances


def read_model_violations(name: str, expected: Mapping[str, Any], answered: Mapping[str, Any]) -> list[str]:
    """Where a read model differs from the fold of the log."""
    lines = [
        f"{name}: {key} is {answered.get(key, 'missing')} and the log has {expected.get(key, 'nothing')}"
        for key in difference(expected, answered)
    ]
    return _shortened(lines)


def difference(expected: Mapping[str, Any], answered: Mapping[str, Any]) -> list[str]:
    """The keys at which two mappings differ, sorted."""
    return sorted(
        key
        for key in expected.keys() | answered.keys()
        if key not in expected or key not in answered or expected[key] != answered[key]
    )


def fsync_violations(files: Iterable[Path]) -> list[str]:
    """Files with pages that were acknowledged and are not on the disk. Ask right after the last acknowledgement."""
    told = []
    for file in files:
        dirty = dirty_pages(file)
        if dirty:
            told.append(
                f"{file.parent.name}: {dirty} pages were acknowledged and are not on the disk: the fsync was left out"
            )
    return told


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recent"))


def dirty_pages(file: Path) -> int | None:
    """How many pages of a file are in the kernel's cache and not on the disk yet; None where Linux does not show it."""
    libc = ctypes.CDLL(None, use_errno=True)
    whole, pages = _Range(0, 0), _Pages()
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        failed = libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(pages), 0)
    finally:
        os.close(descriptor)
    return None if failed else int(pages.dirty + pages.writeback)


def _shortened(lines: Iterable[str]) -> list[str]:
    """The first few lines, and how many more there are."""
    told: list[str] = []
    more = 0
    for line in lines:
        if len(told) < TOLD_MAX:
            told.append(line)
        else:
            more += 1
    return told + ([f"… and {more:,} more like these"] if more else [])
