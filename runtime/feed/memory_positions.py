"""MemoryPositions: what a named subscription of a system in memory has acknowledged.

Beside the read path. The rules of members, of beginnings and of who has a member open are those of
`committed_positions.py`; here is only where the facts are kept: beside the logs, in memory, and as long as those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ..errors import SubscriptionInUse
from ..store.memory_logs import MemoryLogs
from .committed_positions import CommittedPositions, member_folder

__all__ = ["MemoryPositions"]


class _Held:
    """A member that is open."""

    def __init__(self, subscribed: set[Path], folder: Path) -> None:
        self._subscribed, self._folder = subscribed, folder
        subscribed.add(folder)

    def release(self) -> None:
        """See `HeldMember`."""
        self._subscribed.discard(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class MemoryPositions(CommittedPositions):
    """The positions of one member, kept with the logs."""

    def __init__(self, logs: MemoryLogs, name: str, member: int, of: int, start: Mapping[int, int]) -> None:
        """Raises what `CommittedPositions` does, but for what is wrong with a disk."""
        self._logs = logs
        super().__init__(logs, name, member, of, start)

    def _folder_of(self, name: str) -> Path:
        return Path("subscriptions") / name

    def _make_folder(self, folder: Path) -> None:
        """There is none."""

    @contextlib.contextmanager
    def _group_locked(self) -> Iterator[None]:
        yield

    def _held(self, member: int, of: int) -> _Held:
        folder = member_folder(self._folder, member)
        if folder in self._logs.subscribed:
            raise SubscriptionInUse(self._name, f"{member} of {of}", "this program")
        return _Held(self._logs.subscribed, folder)

    def _write(self, path: Path, facts: dict[str, Any]) -> None:
        self._logs.kept[path] = facts

    def _read(self, path: Path) -> dict[str, Any] | None:
        return self._logs.kept.get(path)
