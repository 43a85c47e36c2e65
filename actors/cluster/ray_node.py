"""Ray's node, of the processes that our actors need and no others.

Beside all steps. Used by `cluster/ray_cluster.py` for the Ray of a program and by `cluster/local_node.py` for that of a
cluster. Besides its directory (`gcs_server`) and its daemon (`raylet`, with two agents) Ray starts three Python
programs with a head, whatever is asked of it: a server for its dashboard (without a page, if none is requested), one
that reads the logs for the driver (which does not use them), and the autoscaler's (with nothing to scale). Nothing here
uses them, and `ray.init` waits until the first has come up.

Why by overriding methods of Ray's own class: there are options for two of the three, and `ray.init` hands on neither.
Measured on two cores of an AMD EPYC (VM), a runtime of one partition from start to end: 4.6 s of CPU instead of 6.9,
and its end takes 0.4 s instead of 1.4.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["ended_servers", "node_class", "started_without_helpers"]

_SERVERS: Final = ("gcs_server", "raylet")


def node_class() -> Any:
    """`ray._private.node.Node`, without the three."""
    from ray._private.node import Node

    class NodeWithoutHelpers(Node):
        """A node whose head has a directory and a daemon alone."""

        def start_monitor(self) -> None:
            """The autoscaler's is not started."""

        def start_log_monitor(self) -> None:
            """Logs are read from their files (`observe/session_logs.py`)."""

        def start_api_server(self, **_: Any) -> None:
            """No server of a dashboard; a node hands its address on to what it starts."""
            self._webui_url = ""

    return NodeWithoutHelpers


@contextlib.contextmanager
def started_without_helpers() -> Iterator[None]:
    """A `ray.init` in here starts such a node. One thread at a time."""
    from ray._private import node

    module: Any = node
    rays_own = module.Node
    module.Node = node_class()
    try:
        yield
    finally:
        module.Node = rays_own


def ended_servers() -> list[str]:
    """Which of the two servers of the Ray that this process has started have ended by themselves. Ray starts neither of
    them again, and without them nothing works any more."""
    worker: Any = sys.modules.get("ray._private.worker")  # a process that has started a Ray has imported it
    node = None if worker is None else worker._global_node
    return [] if node is None else [name for name, _ in node.dead_processes() if name in _SERVERS]
