"""A PostgreSQL server of our own for one measurement: a fresh cluster, on a Unix socket, with its default durability.

Rule kept here: nothing is weakened (`fsync`, `synchronous_commit` and `full_page_writes` are as PostgreSQL ships them),
it listens on no network, and it is gone at the end. PostgreSQL refuses to run as root, so there it runs as the user
`postgres`, whom its packages create.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..harness.processes import RunningProgram

USER: Final = "rayfold"
"""The database's superuser, trusted from each process that can open the socket."""

START_TIMEOUT_S: Final = 60.0


def missing() -> list[str]:
    """What a measurement needs and this machine lacks, in words."""
    wanted = {
        "a PostgreSQL server": _folder_of_programs() is not None,
        "psycopg": importlib.util.find_spec("psycopg") is not None,
        "psycopg_pool": importlib.util.find_spec("psycopg_pool") is not None,
        "the user postgres, for root to run it as": os.geteuid() != 0 or _unprivileged() is not None,
    }
    return [what for what, there in wanted.items() if not there]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[dict[str, str]]:
    """A server over a fresh cluster in `folder`, answering; yields the settings with which `eventsourcing` uses it.

    Raises `RuntimeError`, with the server's own last words, if it does not come up.
    """
    programs = _folder_of_programs()
    assert programs is not None, "ask `missing` first"
    account = _unprivileged() if os.geteuid() == 0 else None
    with _home(folder, account) as home:
        identity = _identity(account)
        _initialise(programs, home, identity)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}"]
        command: list[str | Path] = [programs / "postgres", "-D", home / "data", *options]
        with RunningProgram(command, stop=signal.SIGINT, cwd="/", **identity) as server:  # it ends fast, and in order
            _wait_until_ready(programs, home, server)
            yield {
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": "postgres",
                "POSTGRES_HOST": str(home),
                "POSTGRES_USER": USER,
                "POSTGRES_PASSWORD": "",
            }


@contextlib.contextmanager
def _home(folder: Path, account: pwd.struct_passwd | None) -> Iterator[Path]:
    """A folder for the server, its user's own. It lies in `folder` unless that user cannot get there, and then where
    temporary files lie, on the same device or not at all: another disk would be another measurement."""
    entered = account is None or all(parent.stat().st_mode & stat.S_IXOTH for parent in (folder, *folder.parents))
    place = folder if entered else Path(tempfile.gettempdir())
    if place.stat().st_dev != folder.stat().st_dev:
        raise RuntimeError(f"PostgreSQL's user cannot enter {folder}: give a --directory that every user can enter")
    with tempfile.TemporaryDirectory(prefix="postgres-", dir=place) as name:
        if account is not None:
            os.chown(name, account.pw_uid, account.pw_gid)
        yield Path(name)


def _folder_of_programs() -> Path | None:
    """Where `postgres` and `initdb` are: on the path, or where Debian puts the newest version of them."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(debian, key=lambda path: float(path.parent.name), default=None)


def _unprivileged() -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return None


def _identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """As whom its processes run."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _initialise(programs: Path, home: Path, identity: dict[str, Any]) -> None:
    how = ["-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale"]
    command: list[str | Path] = [programs / "initdb", "-D", home / "data", *how]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **identity)
    if done.returncode:
        raise RuntimeError(f"initdb failed: {' '.join(done.stderr.split())}")


def _wait_until_ready(programs: Path, home: Path, server: RunningProgram) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while server.runs and time.monotonic() < end_s:
        asked = subprocess.run([programs / "pg_isready", "-q", "-h", home], check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.05)
    last = server.errors().strip().splitlines()[-3:]
    raise RuntimeError(f"PostgreSQL did not start: {' '.join(last)}")
