"""Ray session: the Ray that this process has started or joined, shared by all runtimes and connections of the program.

Beside all steps. `cluster/ray_cluster.py` decides which Ray that is; this keeps it.

Rules kept here:
- the first who needs Ray starts it, the last who leaves ends it: stopping one runtime takes nothing from another
- Ray is started and ended on one thread that runs as long as Ray does. Linux delivers the parent-death signal of a
  child when the thread that started it ends, and so Ray's processes would end with that thread
- the program's signal handlers stay the program's (`signal_actions.py`), and so does what it does with an exception
  that nothing catches, and with `breakpoint()`
- whatever ends this process, nothing of a Ray that it started is left (`reaper.py`), and it does not wait for a start
  that is under way: that goes on beside what the program does meanwhile, and ends with it
- a forked child has no Ray, and is refused one by name: the threads of Ray and gRPC are its parent's
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ...runtime.errors import CallerError
from ..os_process.reaper import MARK, end_marked, new_mark, start_reaper
from ..os_process.signal_actions import kept_signal_actions

__all__ = ["RaySession", "started_in_thread"]

T = TypeVar("T")

_GIVE_UP_S: Final = 3.0
"""How long an interrupted start is waited for: on a quiet machine Ray is up within two seconds. One that takes longer
ends as soon as it is up, or with the program."""

_BREAKPOINT: Final = "PYTHONBREAKPOINT"
"""Python's own variable: what `breakpoint()` calls."""

_LAST_CALLS_S: Final = 0.02
"""For calls that are entering Ray at the moment when the way is closed: microseconds."""

_ENDING_S: Final = 5.0
"""For the processes of a Ray that was shut down to be gone, most of which takes 0.1 s."""


class RaySession:
    """A Ray that this process is connected to. Made by `join`, ended by `leave`."""

    _lock: Final = threading.Lock()
    _present: RaySession | None = None
    _forked: str = ""
    """Why this process cannot have one, if it was forked from one that has had a Ray."""
    _begun: bool = False
    """Whether there was one in this process."""

    def __init__(self, *, starts: bool) -> None:
        self._users = 0
        self._mark = new_mark() if starts else ""
        self._connected: Future[None] = Future()
        self._ending = threading.Event()
        self._ended = threading.Event()

    @classmethod
    def join(cls, connect: Callable[[], None], *, starts: bool) -> RaySession | None:
        """Use the Ray of this process, which `connect` starts or joins if there is none; None if the program itself has
        connected this process to Ray, and will also end that.

        `starts`: whether `connect` starts processes, which end with this one then. Raises what `connect` raises, and
        `CallerError` in a forked child.
        """
        import ray

        if cls._forked:  # before the lock, which a thread of the parent may hold
            raise CallerError(cls._forked)
        with cls._lock:
            if cls._present is not None and not ray.is_initialized():  # the program itself has called `ray.shutdown`
                cls._present._finish()
            if cls._present is None:
                if ray.is_initialized():
                    return None
                session, cls._begun = cls(starts=starts), True
                threading.Thread(target=session._run, args=(connect,), name="rayfold ray", daemon=True).start()
                session._connected.result()
                cls._present = session
            cls._present._users += 1
            return cls._present

    def leave(self) -> None:
        """Use it no more. The last one who leaves ends the connection, and what was started for it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._finish()

    def end(self) -> None:
        """End the connection although others use it: it has come to nothing. They find that out as well, and join
        anew. Takes some 5 s while the head is away."""
        with self._lock:
            self._finish()

    def _finish(self) -> None:
        if RaySession._present is self:
            RaySession._present = None
        self._ending.set()
        self._ended.wait()

    def _run(self, connect: Callable[[], None]) -> None:
        """The life of the session, on its thread."""
        global _starting_mark
        reaper = None
        try:
            with kept_signal_actions(), _kept_hooks():
                if self._mark:
                    _starting_mark = os.environ[MARK] = self._mark
                    reaper = start_reaper(self._mark, _ray_folder())
                    atexit.unregister(_end_start_at_exit)
                    atexit.register(_end_start_at_exit)  # after Ray's own, and so it runs before that
                try:
                    connect()
                finally:
                    _starting_mark = ""
                    os.environ.pop(MARK, None)
        except BaseException as error:
            self._end()
            self._connected.set_exception(error)
        else:
            self._connected.set_result(None)
            self._ending.wait()
            self._end()
        finally:
            if reaper is not None:
                reaper.kill()
                reaper.wait()
            self._ended.set()

    def _end(self) -> None:
        with kept_signal_actions():
            _shut_down()
        deadline_s = time.monotonic() + _ENDING_S
        while self._mark and end_marked(self._mark, _ray_folder()) and time.monotonic() < deadline_s:
            time.sleep(0.02)


@contextmanager
def _kept_hooks() -> Iterator[None]:
    """Keep what the program does with an exception that nothing catches, and with `breakpoint()`. Ray's own hook
    reports the exception to its directory first, and waits for that: without end in a forked child, or while the
    directory does not answer; nothing is printed then."""
    from ray._private import worker

    if sys.excepthook is worker.custom_excepthook:
        sys.excepthook = worker.normal_excepthook
    before = os.environ.get(_BREAKPOINT)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_BREAKPOINT, None)
        else:
            os.environ[_BREAKPOINT] = before


def _shut_down() -> None:
    """`ray.shutdown`, with the way into Ray closed first. It takes milliseconds, or 5 s while the head is away, and Ray
    2.60 ends the whole process (`_exit(1)`) if a thread makes a call at the wrong moment of that. With the way closed,
    such a call raises."""
    import ray
    from ray._private import worker

    present: Any = worker.global_worker
    core = getattr(present, "core_worker", None)
    if core is not None and present.mode == worker.SCRIPT_MODE:
        del present.core_worker
        time.sleep(_LAST_CALLS_S)
        core.shutdown_driver()
        del core
    ray.shutdown()


def _ray_folder() -> str:
    import ray

    return os.path.dirname(ray.__file__) + os.sep


_starting_mark = ""
"""The mark of the start that is under way in this process; empty if none is."""


async def started_in_thread(start: Callable[[], T], stop: Callable[[T], None]) -> T:
    """What `start` returns, which runs on a thread of its own: the event loop goes on, and a caller who is cancelled
    does not wait for Ray. What comes up after that is stopped again. Raises what `start` raises.
    """
    result: Future[T] = Future()
    lock, given_up = threading.Lock(), False

    def run() -> None:
        try:
            started = start()
        except BaseException as error:
            result.set_exception(error)
            return
        with lock:
            if not given_up:
                result.set_result(started)
                return
        stop(started)
        result.cancel()
        result.set_running_or_notify_cancel()

    threading.Thread(target=run, name="rayfold start", daemon=True).start()
    waiting = asyncio.wrap_future(result)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        with lock:
            given_up = not result.done()
        if given_up:
            await asyncio.wait([waiting], timeout=_GIVE_UP_S)
        elif not result.exception():
            stop(result.result())
        raise


def _end_start_at_exit() -> None:
    """At the end of the program: kill what a start that is still under way has started so far. Ray itself would wait
    until it has ended, which it never does without those processes: they must not be killed before."""
    if _starting_mark:
        end_marked(_starting_mark, _ray_folder())
        _leave_out_ends_of_ray(sys.modules["ray._private.worker"])


def _leave_out_ends_of_ray(worker: Any) -> None:
    """At the exit of this process Ray is not shut down: there is nothing to do, and it would wait for it.

    Ray's C++ does so as well, at the exit of the process and after Python: on memory of threads that are another
    process's, or in the middle of something, which ends it with SIGSEGV. What is registered later runs first, and so
    the process ends before that.
    """
    with contextlib.suppress(AttributeError):  # another C library than glibc has no `on_exit`
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)
    atexit.unregister(worker.shutdown)


def _disown_in_child() -> None:
    """In a forked child: Ray belongs to the parent."""
    worker = sys.modules.get("ray._private.worker")
    if worker is None:
        return
    connected = getattr(worker.global_worker, "core_worker", None) is not None
    if connected or RaySession._begun:
        RaySession._forked = (
            f"process {os.getpid()} was forked from process {os.getppid()}, which has used Ray, and so it can neither "
            "start a Ray nor join one; connect to a system that runs, or start children with "
            'multiprocessing.get_context("spawn")'
        )
        _leave_out_ends_of_ray(worker)
    if connected:
        worker.global_worker.set_is_connected(False)  # what asks is to find another way, or to be refused
    atexit.unregister(worker.shutdown)
    if (node := worker._global_node) is not None:
        node.all_processes.clear()  # which it ends at the exit of the program


os.register_at_fork(after_in_child=_disown_in_child)
