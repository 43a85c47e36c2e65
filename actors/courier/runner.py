"""RunnerActor: a process in which the functions of one `Effects` class run, on an event loop of their own.

Beside step [5]. Before it: an attempt has begun in the log, and the courier of a partition hands it over
(`runners.py`), which is on the same machine and owns this actor. After it: the courier asks for what attempts have
come to, and has it stored.

Rules kept here: an attempt that arrives late is not made, since its end may have been declared unknown by then; what
an attempt has come to is kept until the courier has asked for what came after it; a function that blocks the event loop
is named, so that its process can be ended.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import ray

from ...runtime.effects.call_attempt import CallAttempt
from ...runtime.effects.results import packed_not_called
from ...runtime.effects.running import made
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.printable import printable_log
from ...runtime.processes.call_step import LATE_US
from ..cluster.rpc import Method, Reply, replies
from ..os_process.actor_log import begin_log
from ..os_process.gc_tuning import tune_gc
from ..packaging.shipping import unship

__all__ = ["AttemptEnd", "Ends", "RunnerHandle", "RunnerPlan", "start_runner"]

log = printable_log(__name__)

BLOCKED_S: Final = 5.0
"""A loop that has done nothing for so long is blocked: other attempts run into their timeouts meanwhile."""

_BEAT_S: Final = 0.5

_ENDS_MAX: Final = 1_000
"""What attempts have come to, in one answer."""

_TOO_LATE: Final = packed_not_called("it came to its runner too late to be made")


@dataclass(frozen=True, slots=True)
class RunnerPlan:
    """What a runner needs."""

    effects: str
    """The class, by the name of its streams."""
    partition: int
    catalogue: bytes
    """The application's classes; see `shipping.py`."""


class AttemptEnd(NamedTuple):
    """What an attempt has come to."""

    number: int
    """Of this end, among those of the runner."""
    key: bytes
    attempt: int
    result: bytes
    """Packed."""


class Ends(NamedTuple):
    """What a runner answers."""

    ends: Sequence[AttemptEnd]
    blocked_by: str
    """The function, and its call, that keeps the event loop from running; empty if nothing does."""


class RunnerActor:
    """Of one class, for one partition."""

    def __init__(self, plan: RunnerPlan) -> None:
        begin_log()
        self._plan = plan
        self._catalogue: Catalogue | None = None
        self._subjects: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat_s = 0.0
        self._numbers = 0
        self._ends: list[AttemptEnd] = []
        self._changed = threading.Condition()

    @ray.method
    @replies
    def start(self) -> int:
        """Load the classes and start the event loop. The process id. Safe to repeat."""
        if self._loop is None:
            catalogue = unship(self._plan.catalogue)
            self._subjects = {self._plan.effects: catalogue.processes[self._plan.effects]("", 0)}
            self._catalogue = catalogue
            started = threading.Event()
            threading.Thread(target=self._run, args=(started,), name="rayfold-effects", daemon=True).start()
            started.wait()
            tune_gc()
        return os.getpid()

    @ray.method
    @replies
    def make(self, calls: Sequence[CallAttempt]) -> None:
        """Make these attempts."""
        assert self._loop is not None  # it is called after `open`
        self._loop.call_soon_threadsafe(self._begin, calls)

    @ray.method(concurrency_group="ends")
    @replies
    def ends(self, after: int, timeout_s: float) -> Ends:
        """What attempts have come to, behind the end of this number; waits for the first one, but not longer than
        that."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            self._ends = [one for one in self._ends if one.number > after]
            while not self._ends and (left_s := until_s - time.monotonic()) > 0 and not self._blocked_by():
                self._changed.wait(min(left_s, _BEAT_S))
            return Ends(self._ends[:_ENDS_MAX], self._blocked_by())

    # --- on the loop ---------------------------------------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._beat_s = time.monotonic()
            started.set()
            while True:
                await asyncio.sleep(_BEAT_S)
                self._beat_s = time.monotonic()

        try:
            asyncio.run(main())
        finally:  # a function has stopped the loop: its process is of no further use
            log.error("the event loop of %s has ended", self._plan.effects)
            os._exit(1)

    def _begin(self, calls: Sequence[CallAttempt]) -> None:
        now_us = time.time_ns() // 1000
        for call in calls:
            if now_us - call.begun_at_us > LATE_US * 4 // 5:
                self._over(call, _TOO_LATE)
                continue
            task = asyncio.get_running_loop().create_task(self._make(call), name=f"{call.method} for {call.stream}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make(self, call: CallAttempt) -> None:
        assert self._catalogue is not None  # from `open` on
        self._over(call, await made(call, self._catalogue, self._subjects))

    def _over(self, call: CallAttempt, result: bytes) -> None:
        with self._changed:
            self._numbers += 1
            self._ends.append(AttemptEnd(self._numbers, call.key, call.number, result))
            self._changed.notify()

    def _blocked_by(self) -> str:
        """What blocks the loop, on any thread."""
        if time.monotonic() - self._beat_s < BLOCKED_S or self._loop is None:
            return ""
        task = asyncio.current_task(self._loop)
        return task.get_name() if task is not None else "a callback"


class RunnerHandle(Protocol):
    """A runner's actor, as its courier calls it."""

    @property
    def start(self) -> Method[Reply[int]]: ...
    @property
    def make(self) -> Method[Reply[None], Sequence[CallAttempt]]: ...
    @property
    def ends(self) -> Method[Reply[Ends], int, float]: ...


def start_runner(plan: RunnerPlan, namespace: str, scheduling: dict[str, Any]) -> RunnerHandle:
    """A runner, starting in the background. It is never restarted, and ends with its partition's process, as Ray ends
    every actor whose owner is gone."""
    remote: Any = ray.remote  # its types do not know concurrency groups
    actor = remote(concurrency_groups={"ends": 1})(RunnerActor)
    options = actor.options(
        namespace=namespace, num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False, **scheduling
    )
    started: RunnerActor = options.remote(plan)
    return started
