"""Watchdog: ends a process whose user code does not come back, so that Ray starts it again without what it had in hand.

Beside steps [4], [7] and [8]. A thread looks a few times within the limit whether what is in hand
(`runtime/in_hand.py`) is the same as at its last look. It counts its own looks, not seconds: a process that was
stopped, or got no CPU, has not checked either. Code that never releases the interpreter (a regular expression, a native
loop) stops this thread too; for that, where `native` is set, a timer of `faulthandler`'s, which needs no interpreter,
ends the process.

Rule kept here: before the process is ended, the record has the reason.
"""

from __future__ import annotations

import faulthandler
import fcntl
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ...runtime.errors import RayfoldError
from ...runtime.in_hand import KEY_BYTES, Fallen, InHand
from ...runtime.printable import printable_log
from ...runtime.private import make_private_folder, open_private, private_temporary_folder

__all__ = ["ProcessWatchdog", "being_tried", "fallen_with", "in_hand_of", "record_path"]

log = printable_log(__name__)

_KEPT_S: Final = 7 * 24 * 3600.0
"""How long a record stays that no process has written to, and none has open: it is of a store that is no more."""

_LOOKED: Final = "looked"
"""The file whose time of change is when old records were last looked for."""

_LOOK_EVERY_S: Final = 3600.0

_TRIED: Final = b"tried".ljust(KEY_BYTES, b"\0")
"""The key of what is `being_tried`: the record is of one thing alone."""

_LOOKS: Final = 16
"""Within the limit: how precise it is."""

_TRACE_CHARS_MAX: Final = 10_000
_TRACE_FRAMES: Final = 8

_NATIVE_FACTOR: Final = 1.25
_NATIVE_SLACK_S: Final = 1.0
"""The timer that needs no interpreter comes later than the check that can report more."""


def record_path(what: str) -> Path:
    """Where the record of what this names is on this machine; a hash, because names come from outside.

    Raises `OSError`, `NotPrivate`.
    """
    folder = private_temporary_folder() / "in-hand"
    make_private_folder(folder)
    return folder / hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def in_hand_of(what: str) -> InHand:
    """The record of the process that does this now. Without a private folder nothing outlives the process."""
    try:
        path = record_path(what)
        _remove_old(path.parent)
        return InHand(path, was_stuck=_has_trace(path))
    except (OSError, RayfoldError) as error:
        log.warning("what %s has in hand is not kept beyond its process: %s", what, error)
        return InHand(None)


def fallen_with(what: str) -> Fallen | None:
    """What the last process that did this, which has ended, had in hand; None if nothing, or if it is not known on this
    machine. The record is removed."""
    try:
        path = record_path(what)
        stuck = _has_trace(path)
        if not path.exists():
            return None
        fallen = InHand(path, was_stuck=stuck).fallen
        _remove(path)
    except (OSError, RayfoldError):
        return None
    return next(iter(fallen.values()), None)


@contextmanager
def being_tried(what: str) -> Iterator[int]:
    """Keep a record while the block runs; it is given how many processes have ended in this block before. The record
    goes with the end of the block, however that comes about."""
    record = in_hand_of(what)
    fallen = record.find(_TRIED)
    record.begin(_TRIED)
    try:
        yield fallen.deaths if fallen else 0
    finally:
        record.end()
        with suppress(OSError, RayfoldError):
            _remove(record_path(what))


def _trace_path(path: Path) -> Path:
    return path.with_suffix(".trace")


def _has_trace(path: Path) -> bool:
    """Whether the last process was ended by the timer, which leaves a trace of all threads."""
    trace = _trace_path(path)
    try:
        text = trace.read_text(errors="replace") if trace.exists() else ""
    except (OSError, RayfoldError):
        return False
    if text:
        log.error("the last process was ended because user code had not come back:\n%s", text[:_TRACE_CHARS_MAX])
    return bool(text)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _trace_path(path).unlink(missing_ok=True)


def _remove_old(folder: Path) -> None:
    """Remove what no process has written to for long, and none has open: one that has no work writes nothing either.
    Once an hour, by whichever process comes first: there may be tens of thousands."""
    descriptor = open_private(folder / _LOOKED, os.O_RDWR | os.O_CREAT)
    try:
        if abs(time.time() - os.fstat(descriptor).st_mtime) < _LOOK_EVERY_S and os.fstat(descriptor).st_size:
            return
        os.pwrite(descriptor, b"1", 0)  # which sets the time
    finally:
        os.close(descriptor)
    for path in folder.iterdir():
        with suppress(OSError, RayfoldError):
            if time.time() - path.lstat().st_mtime > _KEPT_S:
                _remove_unused(path)


def _remove_unused(path: Path) -> None:
    """Raises `OSError` for a file that a running process has locked, as its record or as its trace."""
    descriptor = open_private(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def _where_user_code_is() -> str:
    """The stack of the thread that has something in hand, as far as it is useful to the author of the handler."""
    stacks = [traceback.format_stack(frame) for frame in sys._current_frames().values()]
    ours = (stack for stack in stacks if any("in execute" in entry or "in answer" in entry for entry in stack))
    return "".join(next(ours, [])[-_TRACE_FRAMES:])[:_TRACE_CHARS_MAX]


class ProcessWatchdog:
    """Watches one process. Starts at once; ends with the process, or at `stop`.

    A child that user code forks ends when it comes back from that code."""

    def __init__(
        self, in_hand: InHand, limit_s: float, report: Callable[[bytes], None] = lambda _: None, *, native: str = ""
    ) -> None:
        """`limit_s`: how long one key may be in hand. `report`: called with the key before the process is ended.
        `native`: what the record is of, if code that never releases the interpreter has to be ended too."""
        self._in_hand, self._limit_s, self._report = in_hand, limit_s, report
        os.register_at_fork(after_in_child=in_hand.disown)
        self._native_s = limit_s * _NATIVE_FACTOR + _NATIVE_SLACK_S if native else 0.0
        self._trace: Any = sys.stderr
        if native:
            with suppress(OSError, RayfoldError):
                self._trace = os.fdopen(
                    open_private(_trace_path(record_path(native)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w"
                )
                fcntl.flock(self._trace, fcntl.LOCK_SH)
            self._arm()  # at once: the thread may never get a turn
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="rayfold-watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _run(self) -> None:
        pause_s = max(0.01, self._limit_s / _LOOKS)
        seen, looks, armed = (b"", 0), 0, 0
        while not self._stopped.wait(pause_s):
            in_hand = self._in_hand
            now = in_hand.now(), in_hand.count
            looks = looks + 1 if now[0] and now == seen else 0
            seen = now
            if looks >= _LOOKS * in_hand.patience:
                self._end(now[0])
                return
            armed -= 1
            if self._native_s and armed <= 0:
                armed = max(1, round(1.0 / pause_s))
                self._arm()
        if self._native_s:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """End the process unless this is called again soon enough."""
        faulthandler.dump_traceback_later(self._native_s, exit=True, file=self._trace)

    def _end(self, key: bytes) -> None:
        self._in_hand.stuck()
        with suppress(Exception):
            log.error("user code did not return within %g s: this process is ended", self._limit_s)
            log.error("it was here:\n%s", _where_user_code_is())
        with suppress(Exception):
            self._report(key)
        os.kill(os.getpid(), signal.SIGKILL)
