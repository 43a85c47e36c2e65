"""DirectCalls: the partitions of a store on this machine while no program runs it, asked in this process.

Beside the read path, for a program without a runtime. The rows are changed in the logs' own environments, whose lock
keeps them whole, also if a program starts to write the logs at the same moment.

Rule kept here: one call at a time in this process, and no transaction is open between two.
"""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from typing import Any, Final

from ..errors import StoreMismatch
from ..log.subscription_rows import change_rows
from ..store.store import SUBSCRIPTIONS, Store
from .group_coordinator import GroupCoordinator

__all__ = ["DirectCalls"]

_calling: Final = threading.Lock()


class DirectCalls:
    """The `PartitionCalls` of a store that no program runs."""

    leased = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        """See `PartitionCalls`. Raises `StoreMismatch` for a log that was handed over to another node."""
        store = self._store
        with _calling, closing(store.open_reader(partition)) as reader:
            if successor := reader.successor():
                what = f"partition {partition} has moved to {successor}"
                raise StoreMismatch(str(store.path), what, "connect to the application by its name")
            change, files = partial(change_rows, reader.environment), store.path / SUBSCRIPTIONS
            coordinator = GroupCoordinator(reader, change, partition, store.partitions, store.store_id, files)
            return getattr(coordinator, method)(*arguments)

    def close(self) -> None:
        """See `PartitionCalls`: there is nothing."""
