"""Fork server: Ray's workers of one node are forked from a process that has already imported what each of them needs.

Beside all steps. `cluster/ray_node.py` has Ray start this file where it would start its own worker program. The first
process that runs it stays, as the server: it imports Ray and the libraries that actors use, and forks the worker that
it was to be. Each later one hands its arguments and its standard streams to the server and ends, and the child that is
forked goes on in its place. Ray knows a worker by what the worker reports, and not by the process that it started.

Why: of the 1.2 s of CPU until an actor is open, 0.6 went into imports (`docs/decisions/0025-workers-are-forked.md`).

Rules kept here:
- a child is forked only if all would be as if it had been started: the same environment, no library changed on the
  disk since it was imported, one thread in the server. Else, and whenever something is amiss, the process runs the
  worker program itself
- a child runs only while its process waits for that, and the process ends when Ray knows the child: never both run, and
  Ray never has the number of a process that has ended
- no one else gets in: both ends check that the other one is of the same user
- the server ends with its node
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and os.path.exists(os.path.join(sys.path[0], os.path.basename(__file__))):
    del sys.path[0]  # this folder, whose modules are not for import by name

import array
import contextlib
import gc
import importlib
import importlib.util
import json
import select
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["MARK", "WORKER"]

MARK: Final = "RAYFOLD_RAY_STARTED_BY"
"""As in `reaper.py`: Ray was started by a program for itself, and so its workers use that program's Rayfold."""

WORKER: Final = "ray._private.workers.default_worker"

_LIBRARIES: Final = (
    WORKER,
    "ray._common.pydantic_compat",
    "ray._common.usage.usage_lib",
    "ray.util.serialization_addons",
    "lmdb",
    "msgpack",
    "pydantic.main",
    "pydantic.plugin._schema_validator",
    "pydantic.type_adapter",
    "pydantic.types",
    "zoneinfo",
)
_RAYFOLD: Final = ("rayfold.actors.partition.actor", "rayfold.actors.projection.actor")

_CREDENTIALS: Final = struct.Struct("iII")
_LENGTH: Final = struct.Struct("!I")
_REQUEST_BYTES_MAX: Final = 4 * 1024 * 1024
"""More than the kernel passes to a program."""

_JOB: Final = "RAY_JOB_ID"
"""The one variable in which the workers of a node differ. Ray keeps what it is when it is imported."""

_NO_JOB: Final = "ffffffff"
"""A worker that is started before it is needed is of no job, until it gets its first task."""

_STREAMS: Final = 3
_WAITING_MAX: Final = 128
_LOOK_S: Final = 0.2
"""Seconds between two checks of whether the node knows this worker by now."""

_REQUEST_S: Final = 10.0
"""A process that has connected writes at once."""


class _Request(NamedTuple):
    arguments: list[str]
    environment: dict[str, str]
    folder: str


class _Served(NamedTuple):
    """What a worker has of the server that it was forked from."""

    waiting: socket.socket | None
    """At whose other end the process waits whose place it takes; None if that is the server itself."""


def main() -> None:
    """Be the worker: in a child of the server of this node, or here."""
    waiting = _hand_over()
    path = importlib.util.find_spec(WORKER).origin  # type: ignore[union-attr]  # a module that Ray has
    assert path is not None  # it is a file, and not built in
    sys.argv[0] = path
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(path))
    _release_when_known(waiting, _watch_node())
    import runpy

    runpy.run_path(path, run_name="__main__")


def _hand_over() -> socket.socket | None:
    """Returns in what is to be the worker, with the connection to the process whose place it takes; None if it takes
    no other's. A process that has handed over ends here, as soon as the other end is closed."""
    node = os.getppid()
    if os.environ.get("RAY_RAYLET_PID") != str(node):
        _end_without_node()
        return None
    try:
        address = _address(node)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(address)
            except ConnectionRefusedError:
                served = _serve(address, node)
                if served is not None:
                    return served.waiting
                connection.connect(address)
            if _other_end(connection)[1] != os.getuid():
                return None
            request = json.dumps(_Request(sys.argv, dict(os.environ), os.getcwd())).encode()
            streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", range(_STREAMS)))]
            connection.sendmsg([_LENGTH.pack(len(request))], streams)
            connection.sendall(request)
            if connection.recv(1) == b"1":
                connection.recv(1)
                os._exit(0)
    except (OSError, ValueError):  # also what JSON does not take
        pass
    return None


def _end_without_node() -> None:
    """End if the node that has started this process is gone: a worker would try to reach it for a minute. On a busy
    machine a node may end, and its program with all that looks for leftovers, before what it has started runs."""
    node = os.environ.get("RAY_RAYLET_PID", "")
    if node.isdecimal() and not os.path.exists(f"/proc/{node}"):
        os._exit(1)


def _watch_node() -> threading.Event:
    """Until this event is set, end with the node: a worker that it does not know yet would try to reach it for half a
    minute. Later on Ray ends its workers."""
    known, node = threading.Event(), os.environ.get("RAY_RAYLET_PID", "")
    if not node.isdecimal():
        return known
    try:
        alive = os.pidfd_open(int(node))
    except OSError:
        _end_without_node()
        return known

    def watch() -> None:
        while not known.is_set():
            if select.select([alive], [], [], _LOOK_S)[0] and not known.is_set():
                os._exit(1)
        os.close(alive)

    threading.Thread(target=watch, name="rayfold watches its node", daemon=True).start()
    return known


def _release_when_known(waiting: socket.socket | None, known: threading.Event) -> None:
    """The process whose place this one takes ends when Ray knows this one: until then Ray would kill that one, by its
    number, if it takes too long, and a number may be another process's by then."""
    from ray._private import worker

    module: Any = worker
    rays_own = module.connect

    def connect(*given: Any, **options: Any) -> Any:
        try:
            return rays_own(*given, **options)
        finally:
            known.set()
            if waiting is not None:
                waiting.close()

    module.connect = connect


def _address(node: int) -> str:
    """The abstract socket of the server of the node with this process id, which no other process has had."""
    started = Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[19]
    return f"\0rayfold-workers-{os.getuid()}-{node}-{started}"


def _other_end(connection: socket.socket) -> tuple[int, int]:
    """The process at the other end, and its user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    return process, user


def _serve(address: str, node: int) -> _Served | None:
    """Be the server until the node ends. Returns in a worker, whose process goes on as the program that Ray wanted;
    and None if there is a server by now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.bind(address)
        except OSError:
            return None
        server.listen(_WAITING_MAX)
        alive = os.pidfd_open(node)
        environment = os.environ | {_JOB: _NO_JOB}  # before what is imported adds to it
        own_job = os.environ.get(_JOB, _NO_JOB)
        os.environ[_JOB] = _NO_JOB
        _import(_LIBRARIES)
        if MARK in environment and _is_rayfold_of_this_file():
            _import(_RAYFOLD)
        files = _files()
        gc.collect()
        gc.freeze()  # pages that no collection writes to stay shared between the workers
        forks = len(os.listdir("/proc/self/task")) == 1  # others would be lost
        if not forks or os.fork() == 0:  # the worker that this process was started as
            os.close(alive)
            os.environ[_JOB] = own_job
            if forks:
                os.setpgid(0, 0)
            return _Served(None)
        try:
            return _fork_for_others(server, alive, environment, files)
        except BaseException:
            os._exit(1)  # the process that waits runs the worker program itself


def _fork_for_others(
    server: socket.socket, alive: int, environment: dict[str, str], files: dict[str, tuple[int, int]]
) -> _Served:
    """Returns in a worker only."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel keeps nothing of a worker that has ended
    while True:
        readable, _, _ = select.select([server.fileno(), alive], [], [])
        if alive in readable:
            os._exit(0)
        connection, _ = server.accept()
        with contextlib.ExitStack() as held:
            held.enter_context(connection)
            try:
                request, streams = _read(connection)
            except (OSError, TypeError, ValueError):  # not a request, or not of this user
                continue
            for stream in streams:
                held.callback(os.close, stream)
            same = request.environment | {_JOB: _NO_JOB} == environment
            if same and files == {name: _stamp(name) for name in files} and os.fork() == 0:
                os.close(alive)
                _become(request, streams, connection)
                return _Served(connection.dup())


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # the code that needs it meets the error
            importlib.import_module(name)


def _is_rayfold_of_this_file() -> bool:
    """Whether `import rayfold` gives the Rayfold that this file belongs to."""
    found = importlib.util.find_spec("rayfold")
    if found is None or found.origin is None:
        return False
    here = os.path.realpath(os.path.join(os.path.dirname(found.origin), "actors", "os_process", "fork_server.py"))
    return here == os.path.realpath(__file__)


def _files() -> dict[str, tuple[int, int]]:
    """The files that were imported, and how to see that one of them has changed since."""
    names = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return {name: _stamp(name) for name in names if name}


def _stamp(name: str) -> tuple[int, int]:
    try:
        status = os.stat(name)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _read(connection: socket.socket) -> tuple[_Request, list[int]]:
    """Raises `OSError`, `TypeError` or `ValueError` for what is not a request, or another user's."""
    if _other_end(connection)[1] != os.getuid():
        raise ValueError("another user")
    connection.settimeout(_REQUEST_S)
    head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, _STREAMS)
    try:
        if len(head) != _LENGTH.size or len(streams) != _STREAMS:
            raise ValueError("not a request")
        left, parts = _LENGTH.unpack(head)[0], []
        if left > _REQUEST_BYTES_MAX:
            raise ValueError("too long")
        while left:
            part = connection.recv(left)
            if not part:
                raise ValueError("cut off")
            parts.append(part)
            left -= len(part)
        return _Request(*json.loads(b"".join(parts))), streams
    except BaseException:
        for stream in streams:
            os.close(stream)
        raise


def _become(request: _Request, streams: list[int], connection: socket.socket) -> None:
    """Take the place of the process that waits at the other end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # as Ray does with each worker
    with contextlib.suppress(OSError):
        other, _ = _other_end(connection)
        Path("/proc/self/oom_score_adj").write_text(Path(f"/proc/{other}/oom_score_adj").read_text())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request.folder)
    if _JOB in request.environment:
        os.environ[_JOB] = request.environment[_JOB]
    sys.argv[:] = request.arguments
    try:
        connection.sendall(b"1")
    except OSError:
        os._exit(1)  # the process has ended: Ray has given up on it, and starts another


if __name__ == "__main__":
    main()
