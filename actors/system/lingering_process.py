"""LingeringProcess: the process that runs a system for programs that use it, until none is left.

Beside all steps. `LingeringSystem` (`lingering.py`) starts it with a plan on its standard input, and reads from its
standard output what became of the start: nothing, or the error. From then on it belongs to no program and no terminal;
what it prints is in `lingering.log` of the store.

Rule kept here: it ends by itself, in order, when no program has been connected for as long as its plan has it, and on
SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...runtime.errors import HandlerFailed, RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.private import open_private
from ...runtime.store.store import open_or_create_store
from ..packaging.shipping import unship
from .local import LocalSystem
from .relayed_topology import RELAYED

__all__ = ["LingeringProcess"]

log = printable_log(__name__)

LOG: Final = "lingering.log"

_LOG_BYTES_MAX: Final = 4 << 20
"""A log that is longer begins anew with the next process: some ten thousand lines."""

_LOOK_S: Final = 0.2
_FIRST_S: Final = 30.0
"""How long it waits for its first program in any case: that connects as soon as the start is over."""

_GRACE_S: Final = 30.0
"""For actors to end by themselves: checkpoints are written."""


class LingeringProcess:
    """This process, from its plan to its end."""

    def __init__(self, plan: list[Any]) -> None:
        path, self._counts, self._settings, default, partitions, self._num_cpus, self._linger_s, self._classes = plan
        self._path = Path(path)
        self._open_store = partial(open_or_create_store, self._path, default, partitions)
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Run the system until it is of no use any more. A failure of the start is reported, not raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        system: LocalSystem | None = None
        try:
            catalogue = unship(self._classes)
            replicas = {catalogue.projection(name): count for name, count in self._counts.items()}
            system = LocalSystem(catalogue, replicas, self._settings, self._open_store, self._num_cpus)
            await system.start()
            if system.relay is None:
                raise Unavailable(str(self._path), "no private folder for its socket is available; set TMPDIR to one")
        except BaseException as error:
            if system is not None:
                await system.stop(_GRACE_S)
            _report(error if isinstance(error, RayfoldError) else HandlerFailed.caused_by("the start", "", error))
            return
        self._leave_the_program()
        await self._until_unused(system)
        log.warning("%s: ends, since no program uses it", self._path)
        await system.stop(_GRACE_S)

    async def _until_unused(self, system: LocalSystem) -> None:
        relay = system.relay
        assert relay is not None
        used_s = time.monotonic() + max(0.0, _FIRST_S - self._linger_s)
        while not self._ending.is_set() and time.monotonic() - used_s < self._linger_s:
            if relay.programs:
                used_s = time.monotonic()
            await asyncio.sleep(_LOOK_S)

    def _leave_the_program(self) -> None:
        """Report that the start is over, and print into the log of the store from now on."""
        path = self._path / LOG
        full = path.exists() and path.stat().st_size > _LOG_BYTES_MAX
        descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if full else 0))
        _report(None)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)


def _report(error: RayfoldError | None) -> None:
    """What became of the start, on the standard output, which ends with it."""
    sys.stdout.buffer.write(RELAYED.pack(error))
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the plan, and leave the program that started it."""
    plan = RELAYED.unpack(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    asyncio.run(LingeringProcess(plan).run())


if __name__ == "__main__":
    main()
