"""A run of the replay: what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfold.runtime.store.report import Report

from .outage import Killer
from .progress_watchdog import Loss
from .verification import Ledger, LogCheck


@dataclass(slots=True)
class Replay:
    """What a run returns to its caller."""

    ledger: Ledger
    killer: Killer
    heads_before: Mapping[int, int] = field(default_factory=dict)
    """By partition, what its log had when it was opened."""
    start_s: float = 0.0
    seconds: float = 0.0
    settled_s: float = 0.0
    """From the last answer until no process had anything to do any more."""
    visible_s: float = 0.0
    rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Every row of the read models, by name."""
    sent: int = 0
    losses: list[Loss] = field(default_factory=list)
    """Nodes that were gone on the way."""
    nodes: int = 0
    """That the store is spread over; 0 if it is on this machine."""
    walk: LogCheck | None = None
    """Every event against its receipt, if the store is spread over nodes: then it is read while the system runs."""
    integrity: Report | None = None
    """What the nodes report of their logs, likewise."""
    unsettled: float = 0
    """Deliveries, commands and timers of processes that are open, at the last look."""
    read_back: int = 0
    """Events."""
    read_back_s: float = 0.0
    """For reading and verifying the logs, likewise."""

    @property
    def stored_before(self) -> int:
        """Events of flights that the store had when it was opened, once the log was walked."""
        return 0 if self.walk is None else self.walk.facts.before

    @property
    def asked_again(self) -> bool:
        """Whether commands may have been decided a second time."""
        return bool(self.stored_before or self.ledger.repeated or self.killer.outages or self.losses)

    @property
    def progress(self) -> tuple[float, ...]:
        """Another one after each step forward."""
        return self.ledger.told, self.unsettled, len(self.rows), self.read_back
