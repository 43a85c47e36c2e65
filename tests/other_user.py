"""Another user of the machine, who tries things: a real process with another user id. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOBODY = 65534

BECOMES = f"""
import fcntl, os, socket, sys
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.umask(0)
"""
"""In the process itself: another user may not be allowed to start an interpreter in the home of root."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")


def as_nobody(code: str, *arguments: object) -> str:
    """What `code` prints in a process of user `nobody` with umask 0. It may use `fcntl`, `os`, `socket` and `sys`."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BECOMES + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
