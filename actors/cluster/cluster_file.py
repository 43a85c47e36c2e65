"""Cluster file: what `rayfold up` leaves behind, so that a later command finds exactly the processes it started.

Beside all steps. `cluster.json` in the folder of the data folders: the address, and of each node its identity and its
session, with the start time of the process that leads it and the boot of the machine, so that a reused process id is
not taken for it (`cluster/processes.py`). It is removed when the cluster is stopped, and rewritten when a lost node has
been started again. `head.port` and `wanted.json` beside it stay: the next `rayfold up` has the same port, as many
nodes, and as many CPUs for each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from ...runtime.errors import InvalidMessage, StorageFailed, StoreMismatch
from ...runtime.private import write_private
from .local import NODES_MAX, LocalCluster, LocalNode, LocalNodes
from .node import NodeIdentity
from .processes import Session

__all__ = [
    "CLUSTER_FILE",
    "CLUSTER_FOLDER",
    "address_in",
    "known_port",
    "known_wish",
    "read_cluster",
    "remove_cluster",
    "write_cluster",
]

CLUSTER_FOLDER: Final = "rayfold-cluster"
"""The default folder of the data folders for `rayfold up`."""

CLUSTER_FILE: Final = "cluster.json"
PORT_FILE: Final = "head.port"
WISH_FILE: Final = "wanted.json"
FORMAT: Final = 1

CLUSTER_FILE_BYTES_MAX: Final = 65_536
"""16 nodes have under 8,000."""


def write_cluster(nodes: LocalNodes) -> None:
    """Record what runs. Written beside its place and moved there: whole or not at all. Raises `StorageFailed`."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "address": nodes.address,
        "cpus": nodes.wanted.cpus,
        "nodes": [
            {
                "name": node.name,
                "node_id": node.identity.node_id,
                "data": str(node.data),
                "session": node.session.number,
                "started": node.session.started,
                "boot_id": node.session.boot_id,
            }
            for node in nodes.nodes
            if node.session is not None
        ],
    }
    path = nodes.folder / CLUSTER_FILE
    temporary = path.with_suffix(f".{os.getpid()}.new")
    contents = {
        CLUSTER_FILE: json.dumps(facts, indent=2) + "\n",
        PORT_FILE: nodes.address.rpartition(":")[2],
        WISH_FILE: json.dumps({"nodes": len(nodes.nodes), "cpus": nodes.wanted.cpus}) + "\n",
    }
    try:
        for name, content in contents.items():
            write_private(temporary, content.encode())
            temporary.rename(nodes.folder / name)
    except OSError as error:
        raise StorageFailed(str(path), error.strerror or str(error)) from error


def read_cluster(folder: Path, wanted: int | None = None, cpus: int | None = None) -> LocalNodes | None:
    """The cluster that was started here, whether its processes run or not; none if there is none.

    `wanted`, `cpus`: for a cluster that gets more nodes than it had, or others from its next start on. Raises
    `StoreMismatch` if the file is not what was written.
    """
    path = folder / CLUSTER_FILE
    if (content := _content(path)) is None:
        return None
    try:
        facts = json.loads(content)
        known = [_node(one) for one in facts["nodes"]] if facts["format"] == FORMAT else []
        had = int(facts["cpus"])
        address = str(facts["address"])
    except (ValueError, KeyError, TypeError) as error:
        remedy = "remove it, after making sure that no node of this folder runs"
        raise StoreMismatch(str(path), f"it is not what `rayfold up` wrote: {error!r}", remedy) from error
    cluster = LocalCluster(max(len(known), wanted or 0), had if cpus is None else cpus)
    nodes = LocalNodes(cluster, folder, remember=True, known=known)
    nodes.address = address
    return nodes


def address_in(folder: Path) -> str:
    """The address of the cluster that was started in `rayfold-cluster` of this folder, or in the folder itself; empty
    if none was. Raises what `read_cluster` does."""
    for place in (folder / CLUSTER_FOLDER, folder):
        path = place / CLUSTER_FILE
        if (content := _content(path)) is not None:
            try:
                return str(json.loads(content)["address"])
            except (ValueError, KeyError, TypeError) as error:
                what = f"it is not what `rayfold up` wrote: {error!r}"
                raise StoreMismatch(str(path), what, "give the address as HOST:PORT") from error
    return ""


def known_port(folder: Path) -> int | None:
    """The port that the head had when it last ran; None if it never did."""
    content = _content(folder / PORT_FILE)
    return int(content) if content is not None and content.isdigit() and len(content) <= 5 else None


def known_wish(folder: Path) -> LocalCluster:
    """How many nodes, of how many CPUs each, the cluster had when it last ran here; the default if none ever ran.

    Where an earlier release has written nothing of it, there are as many nodes as there are data folders.
    """
    try:
        facts = json.loads(_content(folder / WISH_FILE) or b"")
        return LocalCluster(facts["nodes"], facts["cpus"])
    except (ValueError, KeyError, TypeError, InvalidMessage):
        numbers = [int(name) for path in folder.glob("node-*/node.json") if (name := path.parent.name[5:]).isdecimal()]
        known = [number for number in numbers if number < NODES_MAX]
        return LocalCluster(max(known) + 1) if known else LocalCluster()


def remove_cluster(folder: Path) -> None:
    """Record that nothing runs any more."""
    (folder / CLUSTER_FILE).unlink(missing_ok=True)


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(CLUSTER_FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailed(str(path), error.strerror or str(error)) from error


def _node(one: dict[str, Any]) -> LocalNode:
    session = Session(int(one["session"]), int(one["started"]), str(one["data"]), str(one["boot_id"]))
    return LocalNode(NodeIdentity(str(one["node_id"]), str(one["name"])), Path(one["data"]), session)
