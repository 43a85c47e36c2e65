"""Reaper: ends the processes of a Ray that outlive the program that started it.

Beside all steps. A program may be killed, or end by SIGTERM, at any moment, also while Ray starts. Ray's own processes
end with it, but workers that are just starting try to reach their node for up to a minute. So a small process waits for
the end of the program, and then ends what is left.

Rules kept here:
- a process is ended on evidence only: its environment has the mark of this one start, and either shows that a Ray node
  started it (`RAY_RAYLET_PID`), or what it runs is a file of Ray's. What the program starts itself is neither
- the reaper ends with the program, some seconds later at most, and needs neither ray nor rayfold: 15 ms to start, 9 MB
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

__all__ = ["MARK", "end_marked", "new_mark", "start_reaper"]

MARK: Final = "RAYFOLD_RAY_STARTED_BY"
"""The variable that all processes of one start of Ray have in their environment."""

_STARTED_BY_A_NODE: Final = b"RAY_RAYLET_PID="
_LOOK_EVERY_S: Final = 0.2
_GIVE_UP_S: Final = 60.0
"""A worker that has just been forked shows its environment within milliseconds; no start takes longer than this."""

_QUIET_LOOKS: Final = 5
"""Looks in a row that find nothing before it is over: a node may have been about to fork when it ended."""


def new_mark() -> str:
    """A mark that no other start has."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def start_reaper(mark: str, ray_folder: str) -> subprocess.Popen[bytes]:
    """Start the process that ends what bears the mark once this process is gone. `kill` it when nothing is left."""
    command = [sys.executable, "-I", "-S", os.path.realpath(__file__), str(os.getpid()), mark, ray_folder]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, cwd="/")


def end_marked(mark: str, ray_folder: str) -> int:
    """Kill the processes of the Ray that was started with this mark. Returns how many there were. `ray_folder`: where
    Ray is installed."""
    found = 0
    for one in Path("/proc").iterdir():
        if one.name.isdecimal() and _is_marked(one, mark, ray_folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(one.name), signal.SIGKILL)
                found += 1
    return found


def _is_marked(process: Path, mark: str, ray_folder: str) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        command = (process / "cmdline").read_bytes()
        state = (process / "stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):  # it ended, or is another user's
        return False
    of_ray = any(entry.startswith(_STARTED_BY_A_NODE) for entry in environment) or ray_folder.encode() in command
    return of_ray and f"{MARK}={mark}".encode() in environment and state != b"Z"


def _reap(pid: int, mark: str, ray_folder: str) -> None:
    """Wait for the end of a process, then end what bears the mark until there is nothing left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.getppid() == pid:
        time.sleep(_LOOK_EVERY_S)
    deadline_s, quiet = time.monotonic() + _GIVE_UP_S, 0
    while quiet < _QUIET_LOOKS and time.monotonic() < deadline_s:
        quiet = 0 if end_marked(mark, ray_folder) else quiet + 1
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    _reap(int(sys.argv[1]), *sys.argv[2:])
