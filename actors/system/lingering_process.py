"""LingeringProcess: the process that runs a system for programs that use it, until none is left.

Beside all steps. `LingeringSystem` (`lingering.py`) starts it with a plan on its standard input, and reads from its
standard output what became of the start: nothing, or the error. From then on it belongs to no program and no terminal;
what it prints is in `lingering.log` of the store.

Rule kept here: it ends by itself, in order, when no program has been connected for as long as its plan has it, when its
Ray has ended, and on SIGTERM, also while it starts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...runtime.errors import HandlerFailed, RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.private import open_private
from ...runtime.store.store import open_or_create_store
from ..cluster.ray_node import ended_servers
from ..packaging.shipping import unship
from ..relay.relayed_topology import RELAYED
from .lingering_plan import LingeringPlan
from .local import LocalSystem

__all__ = ["LingeringProcess"]

log = printable_log(__name__)

LOG: Final = "lingering.log"

_LOG_BYTES_MAX: Final = 4 << 20
"""A log that gets longer begins anew: some ten thousand lines."""

_LOOK_S: Final = 0.2
_FIRST_S: Final = 30.0
"""How long it waits for its first program in any case: that connects as soon as the start is over."""

_GRACE_S: Final = 30.0
"""For actors to end by themselves: checkpoints are written."""


class LingeringProcess:
    """This process, from its plan to its end."""

    def __init__(self, plan: list[Any], reported_to: int, kept_plan: LingeringPlan | None = None) -> None:
        """`reported_to`: the descriptor that gets what became of the start, and is closed then."""
        self._kept_plan = kept_plan
        path, self._counts, self._settings, default, partitions, self._num_cpus, self._linger_s, self._classes = plan
        self._path = Path(path)
        self._open_store = partial(open_or_create_store, self._path, default, partitions)
        self._reported_to = reported_to
        self._log: int | None = None
        """The descriptor of its log, from the end of the start on."""
        self._starting: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Run the system until it is of no use any more. A failure of the start is reported, not raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        system: LocalSystem | None = None
        try:
            if self._kept_plan is not None and (failed := self._kept_plan.failure()) is not None:
                raise failed  # of another process, which had the store meanwhile
            catalogue = unship(self._classes)
            replicas = {catalogue.projection(name): count for name, count in self._counts.items()}
            system = LocalSystem(catalogue, replicas, self._settings, self._open_store, self._num_cpus)
            self._starting = asyncio.create_task(system.start())
            await self._starting
            if system.relay is None:
                raise Unavailable(str(self._path), "no private folder for its socket is available; set TMPDIR to one")
        except BaseException as error:
            failed = self._of_ours(error)
            if system is not None:
                if system.hold is not None and self._kept_plan is not None and not self._ending.is_set():
                    with suppress(RayfoldError):
                        system.hold.publish_failure(self._kept_plan.failed_with(failed))
                await system.stop(_GRACE_S)
            self._report(failed)
            return
        self._leave_the_program()
        why = await self._until_unused(system)
        log.warning("%s: ends, since %s", self._path, why)
        await system.stop(_GRACE_S)

    def _end(self) -> None:
        """A signal: end in order, also while the start is under way."""
        self._ending.set()
        if self._starting is not None:
            self._starting.cancel()

    def _of_ours(self, error: BaseException) -> RayfoldError:
        if self._ending.is_set():
            return Unavailable(str(self._path), "its process got SIGTERM while it started")
        return error if isinstance(error, RayfoldError) else HandlerFailed.caused_by("the start", "", error)

    async def _until_unused(self, system: LocalSystem) -> str:
        """Return why it ends, once it does. Time in which this process itself was stopped does not count: its programs
        have to be taken in first."""
        relay = system.relay
        assert relay is not None  # without one it has ended by now
        left_s, looked_s = max(_FIRST_S, self._linger_s), time.monotonic()
        while not self._ending.is_set():
            now_s = time.monotonic()
            left_s -= min(now_s - looked_s, 2 * _LOOK_S)
            looked_s = now_s
            if servers := ended_servers():
                return f"its Ray has ended ({', '.join(servers)}); a program that uses it starts it again"
            self._bound_log()
            if relay.programs:
                left_s = self._linger_s
            elif left_s <= 0:
                return "no program uses it"
            await asyncio.sleep(_LOOK_S)
        return "it got SIGTERM"

    def _leave_the_program(self) -> None:
        """Report that the start is over, and print into the log of the store from now on."""
        path = self._path / LOG
        descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._report(None)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        self._log = descriptor

    def _bound_log(self) -> None:
        if self._log is not None and os.fstat(self._log).st_size > _LOG_BYTES_MAX:
            os.ftruncate(self._log, 0)

    def _report(self, error: RayfoldError | None) -> None:
        """What became of the start. The program that started this process may have gone, and others wait for it."""
        rest = RELAYED.pack(error)
        with suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(self._reported_to, rest) :]
        os.close(self._reported_to)


def main() -> None:
    """Read the plan, and leave the program that started it."""
    received = sys.stdin.buffer.read()
    plan = RELAYED.unpack(received)
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    reported_to = os.dup(1)
    os.dup2(2, 1)  # what modules print while they are imported is no report
    kept_plan = LingeringPlan(Path(plan[0]), received, float(sys.argv[1]))
    asyncio.run(LingeringProcess(plan, reported_to, kept_plan).run())


if __name__ == "__main__":
    main()
