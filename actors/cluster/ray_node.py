"""Ray's node, of the processes that our actors need and no others, and with workers that start quickly.

Beside all steps. Used by `cluster/ray_cluster.py` for the Ray of a program and by `cluster/local_node.py` for that of a
cluster. Besides its directory (`gcs_server`) and its daemon (`raylet`, with two agents) Ray starts three Python
programs with a head, whatever is asked of it: a server for its dashboard (without a page, if none is requested), one
that reads the logs for the driver (which does not use them), and the autoscaler's (with nothing to scale). Nothing here
uses them, and `ray.init` waits until the first has come up. The agents only wait (`os_process/waiting_agent.py`), and
workers are forked (`os_process/fork_server.py`).

Why by overriding methods of Ray's own class: there are options for two of the three, and `ray.init` hands on neither.
Measured on two cores of an AMD EPYC (VM), a runtime of one partition from start to end, without the three: 4.6 s of CPU
instead of 6.9, and its end takes 0.4 s instead of 1.4. The others: `docs/decisions/0025-workers-are-forked.md`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..os_process import fork_server, waiting_agent

__all__ = ["ended_servers", "node_class", "started_without_helpers"]

_SERVERS: Final = ("gcs_server", "raylet")


def node_class() -> Any:
    """`ray._private.node.Node`, without the three."""
    from ray._private.node import Node

    class NodeWithoutHelpers(Node):
        """A node whose head has a directory and a daemon alone."""

        def start_raylet(self, *given: Any, **options: Any) -> None:
            """With our own programs for its workers and its agents."""
            self._ray_params.update(worker_path=str(Path(fork_server.__file__)))
            with _waiting_agents():
                super().start_raylet(*given, **options)

        def start_monitor(self) -> None:
            """The autoscaler's is not started."""

        def start_log_monitor(self) -> None:
            """Logs are read from their files (`observe/session_logs.py`)."""

        def start_api_server(self, **_: Any) -> None:
            """No server of a dashboard; a node hands its address on to what it starts."""
            self._webui_url = ""

    return NodeWithoutHelpers


@contextlib.contextmanager
def _waiting_agents() -> Iterator[None]:
    """A daemon that is started in here starts `waiting_agent.py`, with the command of the agent as its arguments."""
    from ray._private import services

    rays_own = services._build_python_executable_command_memory_profileable
    plain = [sys.executable, "-u"]
    ours = [sys.executable, "-I", "-S", str(Path(waiting_agent.__file__))]

    def command(*given: Any, **options: Any) -> list[str]:
        started: list[str] = rays_own(*given, **options)
        return ours if started == plain else started  # else under a profiler

    with _replaced(services, "_build_python_executable_command_memory_profileable", command):
        yield


@contextlib.contextmanager
def started_without_helpers() -> Iterator[None]:
    """A `ray.init` in here starts such a node. One thread at a time."""
    from ray._private import node

    with _replaced(node, "Node", node_class()):
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, ours: Any) -> Iterator[None]:
    """Ray finds what is ours under the name of its own in here."""
    rays_own = getattr(module, name)
    setattr(module, name, ours)
    try:
        yield
    finally:
        setattr(module, name, rays_own)


def ended_servers() -> list[str]:
    """Which of the two servers of the Ray that this process has started have ended by themselves. Ray starts neither of
    them again, and without them nothing works any more."""
    worker: Any = sys.modules.get("ray._private.worker")  # a process that has started a Ray has imported it
    node = None if worker is None else worker._global_node
    return [] if node is None else [name for name, _ in node.dead_processes() if name in _SERVERS]
