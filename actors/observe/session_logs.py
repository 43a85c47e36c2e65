"""Session logs: the lines that the actors of one system have written, found in the files of Ray's sessions.

Beside all steps; what `rayfold logs` shows. No process is asked: the files are read where they lie, so this works
beside a system that runs in another program, on each machine of a cluster for its own nodes, and after the end for as
long as the files are there.

Rules kept here:
- only sessions and files of this user are read, no links; others may write into the folder of all sessions
- the actor of a file is named in its first line (`actor_log.py`), written before any code of the user's ran
- a line has a bound, and so has what is kept in memory; Ray's own lines are left out
- what was printed and not logged has no time of its own, whatever it looks like: it has that of the file's last change;
  the further lines of what was logged have that of the first
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from ..os_process.actor_log import NAMED

__all__ = ["LINES_MAX", "Line", "SessionLogs", "sessions_of"]

LINES_MAX: Final = 100_000
"""Kept of all files together, the newest: some 30 MB."""

LINE_BYTES_MAX: Final = 16_384
"""Shown of one line."""

HEAD_BYTES: Final = 65_536
"""By then an actor has written its name: it is its first line, after Ray's own two."""

_WHEN: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z ")
_RAYS: Final = re.compile(rb":(job_id|actor_name|task_name):|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z] \d+ \d+\] ")
"""Who writes, and what Ray's own code in C++ logs."""


class Line(NamedTuple):
    """One line of an actor's."""

    at: datetime
    actor: str
    """Its name in Ray, without that of the system."""
    text: str


@dataclass(slots=True)
class _File:
    """One file of an actor's, as far as it was read."""

    path: Path
    actor: str
    read: int = 0
    at: datetime | None = None
    rest: bytes = b""
    """The beginning of a line that is not whole yet."""


@dataclass(slots=True)
class SessionLogs:
    """The files of one system in one session of Ray's."""

    folder: Path
    actor_in: Callable[[str], str]
    """Maps an actor's name in Ray to the part after its system's; empty for an actor of another system."""
    _files: dict[Path, _File] = field(default_factory=dict)
    _strangers: set[Path] = field(default_factory=set)
    left_out: int = 0
    """Older lines than those that are kept."""

    def look(self) -> bool:
        """Search for further files; whether there are any of this system."""
        for path in sorted(self.folder.glob("worker-*.*")):
            if path in self._files or path in self._strangers or path.suffix not in (".err", ".out"):
                continue
            head = _read(path, 0, HEAD_BYTES)
            if head is None:
                self._strangers.add(path)
            elif name := _named_in(head):
                if actor := self.actor_in(name):
                    self._files[path] = _File(path, actor)
                else:
                    self._strangers.add(path)
        return bool(self._files)

    def lines(self) -> list[Line]:
        """What was written since the last look, by time."""
        found: list[Line] = []
        for file in self._files.values():
            found += self._more(file)
            if len(found) > 2 * LINES_MAX:
                self._cut(found)
        found.sort(key=lambda line: line.at)
        self._cut(found)
        return found

    def _cut(self, found: list[Line]) -> None:
        if (more := len(found) - LINES_MAX) > 0:
            found.sort(key=lambda line: line.at)
            del found[:more]
            self.left_out += more

    def _more(self, file: _File) -> Iterator[Line]:
        while data := _read(file.path, file.read, 1 << 20):
            file.read += len(data)
            *whole, file.rest = (file.rest + data).split(b"\n")
            file.rest = file.rest[:LINE_BYTES_MAX]
            for line in whole:
                if _RAYS.match(line):
                    continue
                if file.path.suffix == ".err" and (when := _WHEN.match(line)):
                    file.at = datetime.fromisoformat(when[1].decode()).replace(tzinfo=UTC)
                at = file.at or datetime.fromtimestamp(file.path.stat().st_mtime, UTC)
                yield Line(at, file.actor, line[:LINE_BYTES_MAX].decode(errors="backslashreplace"))


def sessions_of(actor_in: Callable[[str], str]) -> Iterator[SessionLogs]:
    """The sessions on this machine in which that system has run, or runs, the newest first. `actor_in`: as in
    `SessionLogs`."""
    found: list[tuple[float, Path]] = []
    for folder in _roots():
        for session in folder.glob("session_*"):
            try:
                facts = session.lstat()
            except OSError:
                continue
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
                found.append((_begun(session.name) or facts.st_mtime, session / "logs"))
    for _, logs in sorted(found, reverse=True):
        one = SessionLogs(logs, actor_in)
        if one.look():
            yield one


def _roots() -> list[Path]:
    """Where Ray has the folders of its sessions, on this machine and for this user."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    return list({Path(one, "ray").resolve(): None for one in (temporary, "/tmp")})


def _begun(name: str) -> float:
    """Start of a session, from its name; 0 if the name has none."""
    parsed = re.match(r"session_(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d{6})", name)
    return datetime.strptime(parsed[1], "%Y-%m-%d_%H-%M-%S_%f").timestamp() if parsed else 0.0  # noqa: DTZ007, it is local


def _named_in(head: bytes) -> str:
    """The name of an actor of Rayfold's; empty if it is not written yet, or is another program's."""
    prefix = NAMED.encode()
    for line in head.split(b"\n")[:-1]:
        if line.startswith(prefix) and b"/" in line:  # Ray's own line of this kind has the name of the class
            return line.removeprefix(prefix).decode(errors="replace")
    return ""


def _read(path: Path, at: int, size: int) -> bytes | None:
    """Some bytes of a file of this user's; None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid():
            return None
        return os.pread(descriptor, size, at)
    except OSError:
        return None
    finally:
        os.close(descriptor)
