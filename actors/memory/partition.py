"""MemoryPartition: a partition in this process: the write loop over a log in memory, and the projectors that follow it.

Steps [3] to [6] of the write path, in place of `partition/actor.py`. Before it: the transport (`client.py`). After it:
the projectors (`projectors.py`), which take in what was committed before its commands are answered.

What is not here is what only processes need: own actors (every aggregate is decided here, whatever its placement), the
order of attempts that may be lost, fences, sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.envelope import unpack_batch
from ...runtime.encoding.outcome import encode_answer
from ...runtime.log.memory import MemoryLog
from ...runtime.write.write_loop import WriteLoop
from ..cluster.rpc import replies
from ..partition.status_records import PartitionAnswer
from ..settings import Settings

__all__ = ["Broadcast", "MemoryPartition"]

Broadcast = Callable[[int, Sequence[bytes]], None]
"""Step [6]: gets the partition and what it has committed."""


class MemoryPartition:
    """One log and its writer. As much of `PartitionActor` as a system in memory asks for."""

    def __init__(
        self, number: int, log: MemoryLog, catalogue: Catalogue, settings: Settings, broadcast: Broadcast
    ) -> None:
        self._number, self._log, self._broadcast = number, log, broadcast
        self._loop = WriteLoop(number, log, catalogue, residents_max=settings.residents_max)
        self._commands = self._batches = 0
        self._loop.activate()

    def execute(self, blob: bytes) -> bytes:
        """A batch of packed commands in, one outcome for each out."""
        commands = list(unpack_batch(blob))
        self._commands += len(commands)
        self._batches += 1
        batch = self._loop.execute(commands)
        if batch.records:
            self._broadcast(self._number, batch.records)
        return encode_answer(batch.outcomes, 0.0)

    @replies
    def set_projectors(self, _names: tuple[str, ...]) -> None:
        """See `PartitionActor`. The fleet itself knows them."""

    @replies
    def head(self) -> int:
        """See `PartitionActor`."""
        return self._log.head()

    @replies
    def status(self) -> PartitionAnswer:
        """See `PartitionActor`."""
        return PartitionAnswer(os.getpid(), self._loop.epoch, self._log.head(), [], self._commands, self._batches)
