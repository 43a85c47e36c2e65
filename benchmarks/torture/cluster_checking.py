"""The checks after a cluster under torture has stopped: logs, read models, sessions, leftovers, and who waited.

Rule kept here: as in `checking.py`, each look is counted, and nobody that wrote a log is asked what it wrote.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from rayfold.actors.cluster.node import DATA_VARIABLE

from .checking import check_log, check_seen, fold_of
from .cluster_logs import StoppedStore, check_shares
from .contract import Findings
from .history import History
from .local_harness import quantile

__all__ = ["Fault", "check_nothing_runs", "check_sessions", "check_what_is_left", "longest_gap_s", "note_gaps"]

_GONE_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.1


class Fault(NamedTuple):
    """Something that was broken."""

    began_s: float
    affected: frozenset[int]
    """Partitions that cannot be expected to answer; the others have to."""


def check_what_is_left(
    store: StoppedStore,
    history: History,
    totals: Sequence[dict[str, list[int]]],
    seen: Sequence[Path],
    findings: Findings,
) -> None:
    """I1 to I8 over the logs, I5 of what the read models answered, I4 of what the watchers have noted down."""
    check_shares(store, findings)
    events = check_log(store, history, findings)
    expected = fold_of(events)
    for answered in totals:
        wrong = [stream for stream in expected.keys() | answered.keys() if expected.get(stream) != answered.get(stream)]
        findings.check("I5", not wrong, f"a read model differs from the log at {wrong[:3]}")
    for one in seen:
        check_seen(msgpack.unpackb(one.read_bytes()), "", store, findings)


def check_sessions(told: Sequence[dict[str, Any]], findings: Findings) -> None:
    """I9: what the sessions of the load have read, and I4: that nothing stopped their watchers."""
    for one in told:
        findings.count("session_reads", one["session_reads"])
        findings.count("unanswered_queries", one["unanswered_queries"])
        findings.check("I9", not one["backwards"], f"{one['backwards'][:3]}")
        findings.check("I4", not one["watcher_failed"], f"a reader beside the writers: {one['watcher_failed']}")
    findings.check("I9", int(findings.figures.get("session_reads", 0)) > 0, "no session has read anything")


def note_gaps(faults: Sequence[Fault], history: History, findings: Findings) -> None:
    """How long affected partitions acknowledged nothing, and the others: the longest time between two acknowledgements
    from the last one before each fault to the next fault."""
    told: dict[int, list[float]] = {}
    for entry, receipt in history.acknowledged():
        told.setdefault(receipt.partition, []).append(entry.told_s)
    affected: list[float] = []
    others = [0.0]
    ends = [*(fault.began_s for fault in faults[1:]), float("inf")]
    for fault, end_s in zip(faults, ends, strict=False):
        for partition, times in told.items():
            gap_s = longest_gap_s(sorted(times), fault.began_s, end_s)
            (affected if partition in fault.affected else others).append(gap_s)
    affected.sort()
    findings.figures["faults"] = len(faults)
    findings.figures["unavailable_s_p50"] = quantile(affected, 0.5)
    findings.figures["unavailable_s_max"] = quantile(affected, 1.0)
    findings.figures["others_gap_s_max"] = round(max(others), 1)


def longest_gap_s(times: Sequence[float], began_s: float, end_s: float) -> float:
    """Between two of these sorted times: from the last one before `began_s` up to `end_s`."""
    before = [one for one in times if one <= began_s][-1:] or [began_s]
    within = [one for one in times if began_s < one < end_s]
    chosen = [*before, *within, *([end_s] if end_s < float("inf") else [])]
    return max((later - earlier for earlier, later in itertools.pairwise(chosen)), default=0.0)


def check_nothing_runs(folder: Path, findings: Findings) -> None:
    """I11: no process of a node is left."""
    end_s = time.monotonic() + _GONE_TIMEOUT_S
    while (left := processes_of(folder)) and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    findings.figures["processes_left"] = len(left)
    findings.check("I11", not left, f"left over after the nodes were stopped: {left}")


def processes_of(folder: Path) -> list[int]:
    """The processes, of whomever, that were started for a data folder in here."""
    marked = f"{DATA_VARIABLE}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                environment = (entry / "environ").read_bytes()  # empty for a zombie
                if any(one.startswith(marked) for one in environment.split(b"\0")):
                    found.append(int(entry.name))
    return found
