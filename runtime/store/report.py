"""The report of `rayfold verify`: per partition what was checked, and each problem with its place.

Beside the write path: plain values, filled by `verify.py` and shown by the command line.

Rule kept here: a report is bounded however bad the store is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

__all__ = ["PROBLEMS_MAX", "PartitionReport", "Problem", "Report"]

PROBLEMS_MAX: Final = 1000
"""Listed for one partition; the rest is counted. A store with more needs a backup, not a longer list."""


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    partition: int
    database: str
    """`events`, `streams`, `commands`, `snapshots`, `meta`; `file` for what is below them, `agenda` beside."""
    key: str
    """The key of the pair in readable form: a position, a stream and version, a command id."""
    kind: str
    """`structure`, `open`, `key`, `checksum`, `position`, `chain`, `index`, `command`, `placement`, `snapshot`,
    `holdings`, `agenda`."""
    what: str


@dataclass(slots=True)
class PartitionReport:
    """What was checked in one partition, and what is wrong with it."""

    partition: int
    head: int = 0
    """The position up to which it was checked: the last one when the check began."""
    epoch: int = 0
    events: int = 0
    streams: int = 0
    commands: int = 0
    snapshots: int = 0
    structure_checked: bool = False
    """False when the log was written to all the time, so that its file could not be checked as it stood."""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    """What costs time or is odd, but loses nothing: damaged snapshots, a stream in a partition not its own."""
    unlisted: int = 0
    """Problems and warnings beyond the 1,000 of each that are listed."""

    def add_problem(self, database: str, key: str, kind: str, what: str) -> None:
        """Something is wrong."""
        self._add(self.problems, Problem(self.partition, database, key, kind, what))

    def add_warning(self, database: str, key: str, kind: str, what: str) -> None:
        """Something is odd, but nothing is lost."""
        self._add(self.warnings, Problem(self.partition, database, key, kind, what))

    def _add(self, kept: list[Problem], problem: Problem) -> None:
        if len(kept) < PROBLEMS_MAX:
            kept.append(problem)
        else:
            self.unlisted += 1


@dataclass(slots=True)
class Report:
    """What `verify_store` found."""

    path: str
    store_id: str
    partitions: list[PartitionReport]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong; warnings do not count."""
        return not any(one.problems for one in self.partitions)

    @property
    def problems(self) -> list[Problem]:
        """The problems of all partitions."""
        return [problem for one in self.partitions for problem in one.problems]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        plain = asdict(self)
        for one in plain["partitions"]:
            for kind in ("problems", "warnings"):
                one[kind] = [problem._asdict() for problem in one[kind]]
        return {"ok": self.ok, **plain}
