"""Pinning: writers, projectors, load generator and Ray's own daemons on cores of their own.

Ray pins nothing, and `os.sched_setaffinity(pid)` moves one thread only, while a worker has twenty: every thread of a
process is moved, and threads that it starts later inherit the cores of the one that started them.

Rule kept here: a note is made when there are too few cores to give each of the four a set of its own; then nothing is
pinned, because a crowded core measures the crowd.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .processes import processes_below

CORES_MIN: Final = 4
"""One each for writers, projectors, load generator and daemons."""

GENERATOR_CORES_FROM: Final = 8
"""With so many cores the load generator gets two: its own thread and Ray's threads beside it."""

_ALLOWED: Final = frozenset(os.sched_getaffinity(0))
"""The cores of this process when it began: once pinned, it could not find them out any more."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Disjoint sets of cores. Each writer and each projector has a set of its own where there are enough."""

    daemons: frozenset[int]
    generator: frozenset[int]
    writers: tuple[frozenset[int], ...]
    projectors: tuple[frozenset[int], ...]


def place(cores: Iterable[int], writers: int, projectors: int) -> Placement | None:
    """Share the cores out; None if they are too few. Pure: nothing is pinned yet."""
    free = sorted(cores)
    if len(free) < CORES_MIN:
        return None
    daemons, free = free[:1], free[1:]
    width = 2 if len(free) + 1 >= GENERATOR_CORES_FROM else 1
    generator, free = free[:width], free[width:]
    share = len(free) * writers / (writers + projectors) if writers + projectors else len(free)
    cut = len(free) if not projectors else 0 if not writers else min(max(round(share), 1), len(free) - 1)
    return Placement(
        frozenset(daemons), frozenset(generator), _dealt(free[:cut], writers), _dealt(free[cut:], projectors)
    )


def pin_processes(*, writers: Sequence[int], projectors: Sequence[int]) -> str | None:
    """Pin this process, the given ones (by pid) and all other descendants (Ray's daemons). Returns what was done.

    The note is about that if there are too few cores; None if this system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    placement = place(_ALLOWED, len(writers), len(projectors))
    if placement is None:
        return f"not pinned: {len(_ALLOWED)} cores, and disjoint ones need at least {CORES_MIN}"
    named = {*writers, *projectors}
    for pid in processes_below(os.getpid()) - named - {os.getpid()}:
        _pin(pid, placement.daemons)
    for pids, sets in ((writers, placement.writers), (projectors, placement.projectors)):
        for pid, cores in zip(pids, sets, strict=True):
            _pin(pid, cores)
    _pin(os.getpid(), placement.generator)
    return (
        f"pinned: load generator to {_named(placement.generator)}, Ray to {_named(placement.daemons)},"
        f" writers to {_each(placement.writers)}, projectors to {_each(placement.projectors)}"
    )


def release_pins() -> None:
    """Let this process run on all its cores again, and so whatever it starts."""
    if hasattr(os, "sched_setaffinity"):
        _pin(os.getpid(), _ALLOWED)


def _pin(pid: int, cores: frozenset[int]) -> None:
    """Every thread of a process; one that ended meanwhile needs no core."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread), cores)


def _dealt(cores: Sequence[int], processes: int) -> tuple[frozenset[int], ...]:
    """Cores among processes: disjoint sets while there are enough, else one core for several."""
    if not processes or not cores:
        return (frozenset(cores),) * processes
    if len(cores) < processes:
        return tuple(frozenset({cores[number % len(cores)]}) for number in range(processes))
    return tuple(frozenset(cores[number::processes]) for number in range(processes))


def _named(cores: frozenset[int]) -> str:
    return ",".join(str(core) for core in sorted(cores))


def _each(sets: Sequence[frozenset[int]]) -> str:
    return " ".join(_named(cores) for cores in sets) or "none"
