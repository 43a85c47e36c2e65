"""Descriptors: whether this process may open the files of another log, asked before it is opened.

Beside the write path. A store has up to 1,024 partitions with two files each, and the usual limit of a process is 1,024
files. Without this check LMDB says "Too many open files" in the middle of something else, and so does whatever opens
the next file or socket of the process.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

from ..errors import StorageFailed

__all__ = ["DESCRIPTORS_OF_A_LOG", "DESCRIPTORS_SPARE", "check_descriptors"]

DESCRIPTORS_OF_A_LOG: Final = 3
"""An open log: its data file, once more for synced writes of a writer, and its lock file."""

DESCRIPTORS_SPARE: Final = 32
"""Left for sockets, files and the next process that is started."""


def check_descriptors(path: Path, name: str) -> None:
    """Raise `StorageFailed` unless one more log may be opened: the limit, what is open, and what would be enough.

    The soft limit is raised to what is needed where the hard limit allows it: that is what it is for. 20 us.
    """
    opened = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = opened + DESCRIPTORS_OF_A_LOG + DESCRIPTORS_SPARE
    if soft in (resource.RLIM_INFINITY, -1) or needed <= soft:
        return
    wanted = max(2 * soft, needed)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return
    what = f"{name} is not opened: this process has {opened:,} files open, and may have {hard:,} (ulimit -Hn)"
    remedy = f"a process that reads all partitions needs {DESCRIPTORS_OF_A_LOG} for each and {DESCRIPTORS_SPARE} more"
    raise StorageFailed(str(path), f"{what}; {remedy}: raise the limit (LimitNOFILE= of systemd, ulimit -n)")
