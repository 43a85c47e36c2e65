"""Local node: the program that is one node of a local cluster, the leader of its session.

Beside all steps; `cluster/local.py` starts it. It starts Ray's processes of one node inside this machine, prints one
line of JSON when they are up, and then waits: while its standard input is open, its parent is responsible for it. When
that ends, or SIGTERM comes, or one of Ray's processes ends, it ends everything in its session and then itself. The line
`keep` on standard input makes it stay for good.

Why not `ray start --block`: that command refuses several nodes on the loopback interface, and gives the nodes the
machine's own address instead, where others reach them. This does what `ray.cluster_utils.Cluster` does, whose classes
are Ray's own; a process for each node, because a node that is lost and brought back is what local clusters are for.

Rules kept here: nothing outlives it. Ray's processes are killed by the kernel when this one is (fate sharing), and
what they leave over comes to this process, which reaps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ...runtime.errors import RayfoldError
from ...runtime.private import open_private
from .environment import GCS_FOLDER
from .node import hold_node, read_node
from .processes import Session
from .ray_node import node_class

__all__ = ["main"]

KEEP: Final = b"keep\n"

_LOOK_S: Final = 0.5
"""Seconds between two checks that Ray's processes run."""

_LEAVE_S: Final = 5.0
"""How long the workers of a node that is being stopped may take to end by themselves."""

_PR_SET_CHILD_SUBREAPER: Final = 36


def main() -> None:
    """`python -m rayfold.actors.cluster.local_node`, with the plan of the node as JSON in its only argument."""
    report = os.dup(1)  # the one line goes there; whatever Ray prints goes to the log
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    plan = json.loads(sys.argv[1])
    try:
        _hold = hold_node(plan["data"])
        if plan["forget"]:  # only now: before the hold, it may be that of a running cluster
            shutil.rmtree(Path(plan["data"]) / GCS_FOLDER, ignore_errors=True)
        node = _start(plan)
        with os.fdopen(report, "w") as line:
            line.write(json.dumps({"address": node.gcs_address}) + "\n")
        try:
            _watch(node)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come with the end of standard input: once is enough
            node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
    except RayfoldError as error:
        os.write(report, (json.dumps({"error": str(error)}) + "\n").encode())
        sys.exit(2)
    finally:
        _end_the_rest(Path(plan["data"]))


def _start(plan: dict[str, Any]) -> Any:
    """Ray's processes of this node."""
    from ray._private.parameter import RayParams

    options: dict[str, Any] = {
        "num_cpus": plan["cpus"],
        "num_gpus": 0,
        "object_store_memory": plan["object_store_bytes"],
        "resources": plan["resources"],
        "labels": read_node(plan["data"]).labels,
        "node_name": read_node(plan["data"]).name,
        "min_worker_port": 0,
        "max_worker_port": 0,
        "include_dashboard": False,
    }
    if head := plan["head_address"] is None:
        options["gcs_server_port"] = plan["port"]
    else:  # and a port that the head's daemon does not have
        options |= {"gcs_address": plan["head_address"], "node_manager_port": 0}
    with _alone(Path(plan["data"]).parent):
        return node_class()(RayParams(**options), head=head, shutdown_at_exit=False, spawn_reaper=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One node of the cluster after the other: two that start at once choose the same name for their sockets, and Ray
    gives up on one of them. What takes longest, importing ray, all have done at the same time by then."""
    descriptor = open_private(folder / "starting.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _watch(node: Any) -> None:
    """Wait until the process that started this node is gone, unless it was asked to stay, or one of Ray's processes
    is."""
    from ray._private.utils import write_ray_address

    watched, buffered = [0], b""
    while not node.dead_processes():
        readable, _, _ = select.select(watched, [], [], _LOOK_S)
        if not readable:
            continue
        read = os.read(0, 64)
        buffered = (buffered + read)[-64:]
        if buffered.endswith(KEEP):
            watched = []
            if node.head:  # for programs that join `auto`
                write_ray_address(node.gcs_address)
        elif not read:
            return


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _end_the_rest(data: Path) -> None:
    """Kill what is left of this session after a while, and reap what came to this process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    session = Session.led_by(os.getpid(), data)
    kill_from = time.monotonic() + _LEAVE_S
    while others := [pid for pid in session.members() if pid != os.getpid()]:
        if time.monotonic() >= kill_from:
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


if __name__ == "__main__":
    main()
