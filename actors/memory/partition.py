"""MemoryPartition: a partition in this process: the write loop over a log in memory, and what follows it.

Steps [3] to [6] of the write path, in place of `partition/actor.py`. Before it: the transport (`client.py`). After it:
the projectors (`projectors.py`), which take in what was committed before its commands are answered.

What is not here is what only processes need: own actors (every aggregate is decided here, whatever its placement), the
order of attempts that may be lost, fences, sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.envelope import PackedCommand, unpack_batch
from ...runtime.encoding.outcome import Outcome, encode_answer
from ...runtime.feed.group_coordinator import GroupCoordinator
from ...runtime.log.memory import MemoryLog
from ...runtime.processes.courier import CourierFacts
from ...runtime.write.write_loop import WriteLoop
from ..cluster.rpc import replies
from ..partition.status_records import PartitionAnswer
from ..settings import Settings

__all__ = ["Broadcast", "MemoryPartition"]

Broadcast = Callable[[int, Sequence[bytes]], None]
"""Step [6]: gets the partition and what it has committed."""

CarryOut = Callable[[], None]
"""Has the couriers carry out what follows from what was committed."""


class MemoryPartition:
    """One log and its writer. As much of `PartitionActor` as a system in memory asks for."""

    def __init__(
        self,
        number: int,
        log: MemoryLog,
        partitions: int,
        store_id: str,
        catalogue: Catalogue,
        settings: Settings,
        broadcast: Broadcast,
        carry_out: CarryOut,
        facts: Callable[[int], CourierFacts | None],
    ) -> None:
        self._number, self._log, self._broadcast, self._carry_out, self._facts = (
            number,
            log,
            broadcast,
            carry_out,
            facts,
        )
        self._loop = WriteLoop(number, log, catalogue, residents_max=settings.residents_max)
        self._commands = self._batches = 0
        epoch = self._loop.activate()
        change = partial(log.change_rows, epoch)
        self._coordinator = GroupCoordinator(log, change, number, partitions, store_id, None)

    def execute(self, blob: bytes) -> bytes:
        """A batch of packed commands in, one outcome for each out."""
        outcomes = self.decide(list(unpack_batch(blob)))
        self._carry_out()
        return encode_answer(outcomes, 0.0)

    def decide(self, commands: Sequence[PackedCommand]) -> list[Outcome]:
        """One outcome for each, and what was committed is taken in by the projectors."""
        self._commands += len(commands)
        self._batches += 1
        batch = self._loop.execute(commands)
        if batch.records:
            self._broadcast(self._number, batch.records)
        return batch.outcomes

    @replies
    def set_projectors(self, _names: tuple[str, ...]) -> None:
        """See `PartitionActor`. The fleet itself knows them."""

    @replies
    def subscription(self, method: str, arguments: Sequence[Any]) -> object:
        """See `PartitionActor`."""
        return getattr(self._coordinator, method)(*arguments)

    @replies
    def head(self) -> int:
        """See `PartitionActor`."""
        return self._log.head()

    @replies
    def status(self) -> PartitionAnswer:
        """See `PartitionActor`."""
        facts = self._facts(self._number)
        counted = self._commands, self._batches
        return PartitionAnswer(os.getpid(), self._loop.epoch, self._log.head(), [], *counted, courier=facts)
