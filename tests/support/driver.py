"""A program of a user's, run as a process of its own, and every process that it brings with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_driver(*arguments: str, folder: Path = ROOT) -> subprocess.Popen[str]:
    """Run `python arguments` beside the checkout, with nothing of this process's Ray in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )


def rays_own_programs(pids: set[int]) -> set[str]:
    """The programs of Ray's that run in these processes, without its workers."""
    found = set()
    for pid in pids:
        first, *rest = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        found |= {
            Path(word).name for word in (first, *rest[:2]) if "/ray/" in word and (word == first or word[-3:] == ".py")
        }
    return found - {"default_worker.py", "setup_worker.py"}


def wait_until_gone(pids: set[int], timeout_s: float = 200) -> None:
    """Return once none of them runs. Raises `AssertionError` with those that still do."""
    waiting = threading.Event()
    left = pids
    for _ in range(int(timeout_s * 10)):
        left = {pid for pid in left if _name_if_alive(pid)}
        if not left:
            return
        waiting.wait(0.1)
    raise AssertionError(f"still running: {[(pid, _name_if_alive(pid)) for pid in left]}")


def _name_if_alive(pid: int) -> str:
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return ""
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().strip() or "?"
    except OSError:
        return ""
