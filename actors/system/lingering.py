"""LingeringSystem: a system on one machine that a process of its own runs, and that ends some seconds after the last
program that uses it has gone.

Beside all steps. For `Runtime(..., linger=True)`: the first program starts that process (`lingering_process.py`), all
programs are its clients (`relayed.py`). If the process ends for another reason, the next client that notices starts it
again. Which of two processes has the store is decided by the lock of the store; the other one ends at once.

Rules kept here: a start that fails is raised by the program that tried it, and by those that waited for it and would
start the same (`lingering_plan.py`), with the error of the start; another program that waited tries its own; neither
the event loop nor the end of the program waits for a start.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError, StoreInUse, StoreMissing, Unavailable
from ...runtime.printable import printable_log
from ...runtime.store.store_lock import holder_of
from ..cluster.rpc import in_thread
from ..relay.relayed_topology import RELAYED, RelayedTopology
from ..settings import Settings
from .lingering_plan import LingeringPlan
from .relayed import NotYet, RelayedSystem

__all__ = ["LingeringSystem"]

log = printable_log(__name__)

_START_S: Final = 300.0
"""For a start, which replays the log into the read models. More means that something is broken."""

_AGAIN_S: Final = 0.2

_IN_USE_MAX: Final = 5
"""Starts one after the other that find the store in use although no process is named in its lock. Of two programs that
start at once, one finds that once, and then the other one's process is named."""


class LingeringSystem(RelayedSystem):
    """A program's connection to such a system, which it starts if none runs."""

    again_max_s = 30.0
    """Between two starts that fail, each of which costs a second of CPU."""

    code_remedy = "; end that process to have it started with this program's"

    def __init__(
        self,
        path: Path,
        catalogue: Catalogue,
        replicas: Mapping[type[Projection], int],
        settings: Settings,
        partitions_default: int,
        partitions: int | None,
        num_cpus: int | None,
        linger_s: float,
    ) -> None:
        super().__init__(path, catalogue)
        counts = {projection.projection_name: count for projection, count in replicas.items()}
        self._plan = [str(path), counts, settings, partitions_default, partitions, num_cpus, linger_s]
        self._until_s = 0.0
        """When the start is given up. Once it is over, each try to connect again stands for itself."""
        self._waits: LingeringPlan | None = None
        """While it waits for a start, its own or another program's: with what it would start one."""

    async def start(self) -> None:
        """Have the system run, and connect. Raises what its start raises, and `Unavailable` if there is none in
        time."""
        self._until_s = time.monotonic() + _START_S
        await self._have_it_run()  # which makes the store, if there is none
        await super().start()

    async def _connected(self, until_s: float) -> RelayedTopology:
        """See `RelayedSystem`: who waits for the start of another program waits as long as for one of its own."""
        return await super()._connected(self._until_s)

    async def _connect(self) -> RelayedTopology:
        """See `RelayedSystem`: if none runs, or it has ended meanwhile, one is started."""
        try:
            while True:
                holder = await self._have_it_run()
                try:
                    topology = await super()._connect()
                except Unavailable:
                    if (holder and self._held_by() == holder) or time.monotonic() > self._until_s:
                        raise
                else:
                    self._waits = None
                    return topology
        except NotYet:
            raise
        except BaseException:
            self._waits = None
            raise

    async def _have_it_run(self) -> str:
        """Return once a process has the store, another one's or one that was started here: which one. Raises what has
        ended the start, and `StoreInUse` if the store is never free and its lock names no process."""
        failed = 0
        while not (holder := self._held_by()):
            if self._waits is None:
                self._waits = LingeringPlan.now(self._path, await in_thread(self._packed_plan))
            elif (failure := self._waits.failure()) is not None:
                raise failure
            try:
                await in_thread(self._start_process, 2 * _START_S)  # it gives up by itself
            except StoreInUse:  # another program was faster, or the lock file of a running system was removed
                failed += 1
                if failed >= _IN_USE_MAX and not self._held_by():
                    raise
                await asyncio.sleep(failed * _AGAIN_S)
            else:
                return self._held_by()
        if self._waits is None and not self._is_ready():
            self._waits = LingeringPlan.now(self._path, await in_thread(self._packed_plan))
        return holder

    def _is_ready(self) -> bool:
        with contextlib.suppress(StoreMissing):
            return (holder := holder_of(self._path)) is not None and bool(holder.connection)
        return False

    def _packed_plan(self) -> bytes:
        """What its process is started with."""
        from ..packaging.shipping import ship  # it imports ray, which a client of a running system does without

        assert self._own is not None  # a program that starts a system has its classes
        return RELAYED.pack([*self._plan, ship(self._own)])

    def _held_by(self) -> str:
        """The process that has the store, by its id and since when; empty if none has it."""
        with contextlib.suppress(StoreMissing):
            if (holder := holder_of(self._path)) is not None:
                return str(holder)
        return ""

    def _start_process(self) -> None:
        """Start the process, and return once its system serves. Raises what has ended it, and `Unavailable`."""
        plan = self._waits or LingeringPlan.now(self._path, self._packed_plan())
        log.info("%s: no process runs it; one is started", self._path)
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", "rayfold.actors.system.lingering_process", str(plan.since_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with started:  # it forks, and ends at once; what reports is its child
            try:
                reported, complaint = started.communicate(plan.packed, timeout=_START_S)
            except subprocess.TimeoutExpired:
                raise Unavailable(str(self._path), f"its process was not ready within {_START_S:g} s") from None
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2] or "it gave no reason, as if killed"
        try:
            error = RELAYED.unpack(reported)
        except RayfoldError:
            raise Unavailable(str(self._path), f"its process has ended while it started: {last:.500}") from None
        if error is not None:
            raise error
