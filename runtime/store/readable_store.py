"""A store as those who read know it, wherever its logs are.

Beside the write path: backups, subscriptions, read models and the command line take any store that keeps this contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..log.segment import SegmentReader

__all__ = ["ReadableStore"]


class ReadableStore(Protocol):
    """A store as those who read know it: on this machine (`store.py`), or spread over nodes
    (`actors/nodes/store.py`)."""

    @property
    def store_id(self) -> str:
        """A UUID, made with the store."""
        ...

    @property
    def partitions(self) -> int:
        """How many logs it has."""
        ...

    @property
    def placement(self) -> str:
        """The rule by which streams find their partitions (`stream.partition_of`)."""
        ...

    def open_reader(self, partition: int) -> SegmentReader:
        """A reader of one of them; as many at once as one likes."""
        ...

    def folder_here(self) -> Path:
        """Where read models and subscriptions keep their place on this machine."""
        ...
