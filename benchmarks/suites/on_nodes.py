"""On nodes: what has to be done where the logs are, when a bank is spread over the nodes of a cluster.

Rule kept here: nothing of a run stays on a node: its share is removed when the case is over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from typing import Any, Final

from rayfold.actors.cluster.node import NODE_LABEL, data_folder_here, node_id_here
from rayfold.runtime.store.node_store import open_share

from .invariants import dirty_pages, fsync_violations

__all__ = ["are_all_here", "dirty_files", "on_nodes", "remove_share"]

_TIMEOUT_S: Final = 60.0
"""For a node to do what takes milliseconds, once it has a process for it."""


def on_nodes(node_ids: Iterable[str], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns on each of these nodes, which are up."""
    import ray

    remote: Any = ray.remote(function)
    asked = [
        remote.options(num_cpus=0, label_selector={NODE_LABEL: node_id}).remote(*arguments) for node_id in node_ids
    ]
    returned: list[Any] = ray.get(asked, timeout=_TIMEOUT_S)
    return returned


def are_all_here(addresses: Iterable[str]) -> bool:
    """Whether these nodes are on the machine of this process, where their processes can be looked at."""
    import ray

    return set(addresses) <= {ray.util.get_node_ip_address()}


def dirty_files(name: str) -> list[str] | None:
    """On a node: what of its share was acknowledged and is not on the disk; None where Linux cannot tell."""
    data = data_folder_here()
    assert data is not None
    share = open_share(data / name, node_id_here())
    if share is None:
        return []
    here = [number for number in range(share.store.partitions) if number not in share.store.away]
    files = [share.store.partition_path(number) / "data.mdb" for number in here]
    if files and dirty_pages(files[0]) is None:
        return None
    return fsync_violations(files)


def remove_share(name: str) -> None:
    """Remove a store, whose system has ended, from every node of the cluster that this process is connected to."""
    from rayfold.actors.cluster.ray_cluster import Cluster

    on_nodes([node.node_id for node in Cluster.inside().nodes() if node.alive], _remove_here, name)


def _remove_here(name: str) -> None:
    data = data_folder_here()
    assert data is not None
    shutil.rmtree(data / name, ignore_errors=True)
