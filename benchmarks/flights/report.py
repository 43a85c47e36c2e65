"""The report: what a run of the demo came to, for people and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from .ledger import Ledger
from .outage import Outage
from .progress_watchdog import Loss
from .verification import Check, LogFacts

__all__ = ["Report", "filesystem_of"]

_FSYNC: Final = "LMDB sync=True metasync=True writemap=False: every batch is fsynced before it is acknowledged"


@dataclass(frozen=True, slots=True)
class Report:
    """One run."""

    flights: int
    partitions: int
    nodes: int
    """That the store is spread over; 0 if it is on this machine."""
    stored_before: int
    """Events that the store held before this run."""
    ledger: Ledger
    outages: list[Outage]
    losses: list[Loss]
    facts: LogFacts
    checks: list[Check]
    rows: dict[str, tuple[Any, ...]]
    """The read models, by name."""
    start_s: float
    """Until the first command could be sent: Ray, and what an earlier run had stored."""
    seconds: float
    """From the first command sent to the last answer, the outages included."""
    visible_s: float
    """From the last answer until all read models had seen everything."""
    verify_s: float
    size_bytes: int | None
    """Of the logs on disk, if that is this machine's."""
    filesystem: str
    """The kind of file system that holds them."""

    @property
    def verified(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def commands_per_s(self) -> float:
        """Answers a second, the outages included."""
        return self.ledger.told / self.seconds if self.seconds else 0.0

    @property
    def recovered_s(self) -> float | None:
        """The longest outage; none if nothing was killed."""
        times = [outage.recovered_s for outage in self.outages if outage.recovered_s is not None]
        return max(times, default=None)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        ledger = self.ledger
        return {
            "flights": self.flights,
            "commands": ledger.told,
            "accepted": ledger.accepted,
            "repeated": ledger.repeated,
            "rejected": len(ledger.rejected),
            "rejected_by_reason": ledger.rejected_by_reason,
            "events": self.facts.events,
            "events_before": self.stored_before,
            "duplicates": self.facts.duplicates,
            "streams": self.facts.streams,
            "signatures": self.facts.signatures,
            "log_bytes": self.size_bytes,
            "start_s": round(self.start_s, 3),
            "seconds": round(self.seconds, 3),
            "visible_s": round(self.visible_s, 3),
            "verify_s": round(self.verify_s, 3),
            "commands_per_s": round(self.commands_per_s, 1),
            "killed": [_killed(outage) for outage in self.outages],
            "recovered_s": _rounded(self.recovered_s),
            "lost": [_lost(loss) for loss in self.losses],
            "verified": self.verified,
            "checks": [{"name": one.name, "passed": one.passed, "problems": one.problems} for one in self.checks],
            "partitions": self.partitions,
            "nodes": self.nodes,
            "machine": _machine(self.filesystem),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _killed(outage: Outage) -> dict[str, Any]:
    return {
        "what": outage.what,
        "name": outage.name,
        "pid": outage.pid,
        "after_commands": outage.after_commands,
        "recovered_s": _rounded(outage.recovered_s),
    }


def _lost(loss: Loss) -> dict[str, Any]:
    return {"node": loss.node, "partitions": loss.partitions, "back_after_s": _rounded(loss.back_after_s)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _machine(filesystem: str) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "ray": version("ray"),
        "lmdb": version("lmdb"),
        "filesystem": filesystem,
        "fsync": _FSYNC,
    }


def filesystem_of(path: Path) -> str:
    """The kind of file system a path is on, such as `ext4`; on a `tmpfs` an fsync saves nothing."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    kinds = {fields[1]: fields[2] for fields in map(str.split, mounts)}
    absolute = path.absolute()
    return next((kinds[str(one)] for one in (absolute, *absolute.parents) if str(one) in kinds), "unknown")
