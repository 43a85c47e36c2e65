"""Local cluster: several Ray nodes on one machine, each with a data folder of its own, for development and tests.

Beside all steps. `LocalCluster(nodes=3, cpus=1)` is the wish, a value; `LocalNodes` are the nodes that run: one session
of processes each (`local_node.py`), all on the loopback interface, as far apart as several machines are: a node can be
killed, frozen and brought back while the others go on. The first node is the head, which has Ray's own directory (GCS).

Rules kept here: whatever was started is ended, also when starting fails halfway, on Ctrl-C, and when this process is
killed (the nodes then see their standard input end). Only `let_go` leaves them running.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ...runtime.errors import CallerError, InvalidMessage, StorageFailed, Unavailable
from ...runtime.printable import shown
from ...runtime.private import open_private
from .environment import OBJECT_STORE_BYTES, OWN_ACTOR_SLOT, node_environment
from .local_node import KEEP
from .node import NodeIdentity, create_or_read_node, verify_node
from .processes import Session, end_sessions
from .token import ensure_token

__all__ = ["NODES_MAX", "LocalCluster", "LocalNode", "LocalNodes"]

NODES_MAX: Final = 16
"""The nodes of a local cluster: each takes some 300 MB and a second of CPU to start. More of them show nothing new."""

START_TIMEOUT_S: Final = 90.0
"""For one node to come up: 3 s on a quiet machine, and some 20 on one where everything else starts too."""

STOP_GRACE_S: Final = 10.0
"""For all nodes to end by themselves; what is left is killed."""

PORTS: Final = range(20_000, 32_000)
"""For the head: below those that Linux gives to outgoing connections, of which one would sit on the port of a head that
is away; the nodes' own attempts to reach it, for example."""

_CLOSED_S: Final = 5.0
"""For the port of a head that was killed to be free. A process that is being killed gives its memory back first, and
with it the environment by which it is known as this node's; its sockets up to 0.3 s later, on a busy machine."""

_LOOK_S: Final = 0.02
"""Seconds between two checks of it."""

LOG: Final = "node.log"
"""In the data folder: the output of the node's own program and of Ray's start, since the last start."""

LOG_TAIL_BYTES: Final = 2_000
"""Bytes of that which are read when a node does not come up."""


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A cluster of several nodes on this machine, started for a runtime and ended with it.

    Args:
        nodes: How many.
        cpus: CPUs that each of them reports to Ray.

    Raises:
        InvalidMessage: A number that cannot be.

    Example:
        with BlockingRuntime("bank-data", aggregates=[Account], cluster=LocalCluster(nodes=3)) as bank:
            print([node.name for node in bank.status().nodes])
    """

    nodes: int = 3
    cpus: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.nodes, int) or isinstance(self.nodes, bool) or not 1 <= self.nodes <= NODES_MAX:
            raise InvalidMessage("LocalCluster", f"nodes is {shown(self.nodes)}", f"give 1 to {NODES_MAX}")
        if not isinstance(self.cpus, int) or isinstance(self.cpus, bool) or self.cpus < 1:
            raise InvalidMessage("LocalCluster", f"cpus is {shown(self.cpus)}", "give the CPUs of one node, at least 1")


@dataclass(slots=True)
class LocalNode:
    """One node of a local cluster: its place and identity, and its processes while it has any."""

    identity: NodeIdentity
    data: Path
    session: Session | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    """Process of this program; none for a node that an earlier program has started and left running."""

    @property
    def name(self) -> str:
        """`node-0`, `node-1`, …"""
        return self.identity.name

    @property
    def alive(self) -> bool:
        """Whether its processes are up, as far as the operating system knows."""
        return self.session is not None and self.session.leads()


class LocalNodes:
    """The running nodes of a local cluster, over data folders `folder/node-0`, `folder/node-1`, …

    A context manager that starts all of them and ends all of them. The folders are made if they are missing, and the
    nodes are who they were if not. Nodes are named by their number; 0 is the head, without which Ray starts and finds
    no actor. `own_actors_max`: how many own actors each node has room for. `remember`: whether the detached actors of
    an earlier run on these folders start again. `known`: the first of the nodes, where they are known.
    """

    def __init__(
        self,
        wanted: LocalCluster,
        folder: str | os.PathLike[str],
        *,
        own_actors_max: int = 16,
        remember: bool = False,
        known: Sequence[LocalNode] = (),
        port: int | None = None,
    ) -> None:
        self.wanted = wanted
        self.port = port
        """The port of the head at its next start; None for any, or the one that it had."""
        self.folder = Path(folder).absolute()
        folders = [self.folder / f"node-{number}" for number in range(len(known), wanted.nodes)]
        self.nodes = [*known, *(LocalNode(create_or_read_node(data, data.name), data) for data in folders)]
        self.address = ""
        """`HOST:PORT` of the cluster, for `ray.init(address=…)`; empty until the head is up for the first time."""
        self._own_actors_max = own_actors_max
        self._remember = remember
        self._forget = False

    def start(self) -> None:
        """Start every node that is not up: first the head, then the others at once.

        Raises `StoreMissing` or `StoreMismatch` for a data folder that is gone or another's, and `Unavailable` if a
        node does not come up, with its last output, for example that its data folder is in use. Then nothing that was
        started here is left running.
        """
        missing = [number for number, node in enumerate(self.nodes) if not node.alive]
        self._forget = len(missing) == len(self.nodes) and not self._remember
        try:
            for group in (missing[:1], missing[1:]) if 0 in missing else ((), missing):
                for number in group:
                    self._spawn(number)
                for number in group:
                    self._await_up(self.nodes[number])
        except BaseException:
            self._end([self.nodes[number] for number in missing], grace_s=0)
            raise

    def start_node(self, number: int) -> None:
        """Start one node that is not up, on its data folder, and wait until it is. Raises what `start` does."""
        if self.nodes[number].alive:
            raise CallerError(f"{self.nodes[number].name} is up")
        self._spawn(number)
        self._await_up(self.nodes[number])

    def kill_node(self, number: int) -> None:
        """SIGKILL to every process of the node, and wait until all have ended."""
        self._end([self.nodes[number]], grace_s=0)

    def stop_node(self, number: int) -> None:
        """End one node as a shutdown of its machine would, and wait until all its processes have ended."""
        self._end([self.nodes[number]], grace_s=STOP_GRACE_S)

    def restart_node(self, number: int) -> None:
        """SIGKILL to every process of the node, then start it again on its data folder."""
        self.kill_node(number)
        self.start_node(number)

    def signal_node(self, number: int, what: signal.Signals) -> int:
        """Send a signal to every process of the node (SIGSTOP freezes it, SIGCONT goes on); to how many it was sent."""
        session = self.nodes[number].session
        return session.signal(what) if session is not None else 0

    def let_go(self) -> None:
        """Leave the nodes running after the end of this process. `stop` still ends them."""
        for node in self.nodes:
            if node.process is not None and node.process.stdin is not None:
                node.process.stdin.write(KEEP)
                node.process.stdin.close()

    def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """End all processes of all nodes and wait until they have ended. Stopping twice is allowed.

        Raises `Unavailable`, naming the processes, if the kernel does not end one.
        """
        self._end(self.nodes, grace_s=grace_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, number: int) -> None:
        node = self.nodes[number]
        verify_node(node.data, node.identity.node_id)  # a folder that is gone or another's: never made anew
        self._end([node], grace_s=0)  # what a killed leader may have left: no old actor beside the new one
        plan = {
            "data": str(node.data),
            "cpus": self.wanted.cpus,
            "resources": {OWN_ACTOR_SLOT: self._own_actors_max} if self._own_actors_max else {},
            "object_store_bytes": OBJECT_STORE_BYTES,
            "head_address": self.address if number else None,
            "forget": self._forget and not number,
            "port": None if number else self._port_of_head(),
        }
        ensure_token(os.environ)
        with _open_log(node.data / LOG) as log:
            node.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rayfold.actors.cluster.local_node", json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=node_environment(os.environ, node.data, head=not number, loopback=True),
                start_new_session=True,
            )
        node.session = Session.led_by(node.process.pid, node.data)

    def _port_of_head(self) -> int:
        """The former port, because the other nodes expect it there; any port, if there was none or no node is left."""
        alive = any(node.alive for node in self.nodes)
        if self.port is not None and not alive:
            if _is_free(self.port):
                return self.port
            raise Unavailable(f"port {self.port}", "another program listens there; stop that, or choose another port")
        if self.address and _is_free(port := int(self.address.rpartition(":")[2]), _CLOSED_S if alive else 0.0):
            return port
        if alive:
            what = "the port of the head has been taken by another program; stop that, or stop all nodes first"
            raise Unavailable(self.address, what)
        return next(port for port in random.SystemRandom().sample(PORTS, len(PORTS)) if _is_free(port))

    def _await_up(self, node: LocalNode) -> None:
        process = node.process
        assert process is not None  # it was just started, with a pipe
        assert process.stdout is not None
        report = _line(process.stdout.fileno(), time.monotonic() + START_TIMEOUT_S)
        process.stdout.close()
        if "address" in report:
            self._forget = False
            self.address = str(report["address"])
            return
        self._end([node], grace_s=0)
        raise Unavailable(f"{node.name} (data folder {node.data})", report.get("error") or _why(node.data / LOG))

    def _end(self, nodes: list[LocalNode], *, grace_s: float) -> None:
        sessions = [node.session for node in nodes if node.session is not None]
        for node in nodes:
            if node.process is not None and node.process.stdin is not None:
                with contextlib.suppress(OSError):
                    node.process.stdin.close()
        left = end_sessions(sessions, grace_s=grace_s)
        for node in nodes:
            if node.process is not None and not left:
                node.process.wait()
                if node.process.stdout is not None:
                    node.process.stdout.close()
                node.process = None
            if not left:
                node.session = None
        if left:
            raise Unavailable(str(self.folder), f"processes {', '.join(map(str, left))} do not end, not even killed")


def _is_free(port: int, within_s: float = 0.0) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                if time.monotonic() >= deadline:
                    return False
            else:
                return True
        time.sleep(_LOOK_S)


def _line(descriptor: int, deadline: float) -> Mapping[str, Any]:
    """The one line that a node prints: its address, or an error. Empty if it ends before, or prints nothing in time."""
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return {"error": f"it has not come up within {START_TIMEOUT_S:g} s"}
        read = os.read(descriptor, 65_536)
        if not read:
            return {}
        line += read
    report: dict[str, Any] = json.loads(line)
    return report


def _open_log(path: Path) -> Any:
    try:
        return os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")
    except OSError as error:
        raise StorageFailed(str(path), error.strerror or str(error)) from error


def _why(log: Path) -> str:
    """The last output of a node before it ended."""
    with contextlib.suppress(OSError):
        lines = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        if lines:
            return f"it ended while it was starting: {lines[-1].strip()}; more in {log}"
    return f"it ended while it was starting; more in {log}"
