"""LivenessWatch: on one machine, a partition or projector that gives no sign of life is ended, and Ray starts it again.

Beside all steps; its twin for several nodes is `replacements.py`. A process that is stopped, or whose code never
releases the interpreter, cannot watch itself (`os_process/watchdog.py`). Its calls that need no lock are not answered,
and that is what is checked.

Rules kept here: what is ended is the process that was seen under this name, by its id and its start time, and not
another one that has come since; or, if it has never answered, the one that Ray's directory has for it; a process that
answers, even with an error, is left alone, and so is one that Ray is still starting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from ...runtime.printable import printable_log
from ..cluster.rpc import Reply, one_line, process_of
from ..control.heartbeats import Heartbeats

__all__ = ["LivenessWatch", "Watched"]

log = printable_log(__name__)

_LOOK_S: Final = 1.0


class Watched(Protocol):
    """Whose actors are watched."""

    def watched(self) -> Sequence[tuple[str, Any]]:
        """Name and actor, which has a `process_id` method that answers at once."""
        ...


class LivenessWatch:
    """Of one runtime. Used on its event loop only."""

    def __init__(self, watched: Watched, silent_s: float) -> None:
        """`silent_s`: as in `Settings`."""
        self._watched, self._silent_s = watched, silent_s
        self._heartbeats = Heartbeats(silent_s)
        self._processes: dict[str, tuple[int, str]] = {}
        """Name -> process id and start time, as the actor reported."""

    async def watch(self) -> None:
        """Look again and again, permanently."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._look()
            except Exception:
                log.exception("checking heartbeats")

    async def _look(self) -> None:
        living = dict(self._watched.watched())
        self._heartbeats.keep(set(living))
        for name, actor in living.items():
            self._heartbeats.take(name, partial(self._ask, name, actor))
        for name in self._heartbeats.silent():
            self._heartbeats.forget(name)
            pid, started = self._processes.pop(name, (0, ""))
            if not pid or not started or _started(pid) != started:
                pid = await asyncio.to_thread(_process_by_ray, living[name])
            if pid and _age_s(pid) >= self._silent_s:  # one that has only come up has had no time to answer
                log.error("%s has not answered for %g s: process %d is ended", name, self._silent_s, pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _ask(self, name: str, actor: Any) -> Future[Reply[int]]:
        asked: Future[Reply[int]] = actor.process_id.remote().future()
        asked.add_done_callback(partial(self._note, name))
        return asked

    def _note(self, name: str, answer: Future[Reply[int]]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            process_id = answer.result().unwrap()
            self._processes[name] = process_id, _started(process_id)


def _process_by_ray(actor: Any) -> int:
    """Its process, if one on this machine is marked as an actor's; else 0."""
    try:
        pid = process_of(actor)
        return pid if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::") else 0
    except Exception as error:  # the next look may go better
        log.info("Ray's directory does not return its process id: %s", one_line(error))
        return 0


def _age_s(pid: int) -> float:
    """For how long the process has been there."""
    ticks = float(_started(pid) or "inf")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _started(pid: int) -> str:
    """When the process was started, as the kernel counts it; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
