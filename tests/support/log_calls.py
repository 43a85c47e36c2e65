"""The partitions of a store as named subscriptions ask them, over logs of this process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rayfold.runtime.errors import Unavailable
from rayfold.runtime.feed.group_coordinator import GroupCoordinator
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.log.writer import LmdbLog

__all__ = ["LogCalls"]


class LogCalls:
    """`PartitionCalls` over logs, each of which is taken over."""

    def __init__(
        self, logs: Mapping[int, MemoryLog | LmdbLog], *, leased: bool, store_id: str = "x", files: Path | None = None
    ) -> None:
        self.leased = leased
        self.logs, self._store_id, self._files = logs, store_id, files
        self.silent = set[int]()
        """Partitions that do not answer."""
        self.calls = list[tuple[int, str]]()
        self.coordinators = {number: self.coordinator(number) for number in logs}

    def coordinator(self, number: int) -> GroupCoordinator:
        """A new one, as after a restart of its partition."""
        log = self.logs[number]
        change = partial(log.change_rows, log.activate())
        return GroupCoordinator(log, change, number, len(self.logs), self._store_id, self._files)

    def restart(self, number: int) -> None:
        """The process of a partition has ended, and there is another one."""
        self.coordinators[number] = self.coordinator(number)

    def call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        """See `PartitionCalls`."""
        self.calls.append((partition, method))
        if partition in self.silent:
            raise Unavailable(f"partition {partition}", "it is away")
        return getattr(self.coordinators[partition], method)(*arguments)

    def close(self) -> None:
        """See `PartitionCalls`."""
