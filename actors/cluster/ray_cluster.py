"""Cluster: the Ray that the actors run on, started here or joined, with the settings that measurements call for.

Rules kept here: a runtime never joins a Ray that merely happens to run on the machine, unless asked to (`cluster=`); if
the caller has initialised Ray in this process, that one is used and left running. What this process started, it stops.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...runtime.errors import CallerError, RayfoldError, Unavailable
from .addresses import check_reachable, find_address, is_loopback
from .environment import OBJECT_STORE_BYTES, OWN_ACTOR_SLOT, kept_from_processes, prepare_environment
from .local import LocalCluster, LocalNodes
from .names import systems_in
from .node import NAME_LABEL, NODE_LABEL
from .ray_lines import without_lines_of_ray
from .ray_node import started_without_helpers
from .ray_session import RaySession
from .rpc import is_starting
from .token import ensure_token

__all__ = ["Cluster", "ClusterView", "NodeFacts"]

_NAMESPACE: Final = "rayfold"


class NodeFacts(NamedTuple):
    """One node of a cluster, as Ray's directory has it now."""

    node_id: str
    """The id of its data folder: the same after every restart."""
    name: str
    ray_node_id: str
    """Ray's own id, which is another one after each start."""
    address: str
    alive: bool


class ClusterView(NamedTuple):
    """What Ray's directory has at one moment."""

    nodes: list[NodeFacts]
    """See `Cluster.nodes`."""
    is_attached: bool
    """See `Cluster.is_attached`."""


@dataclass(slots=True)
class Cluster:
    """A Ray cluster that this process is connected to."""

    namespace: str
    session: RaySession | None
    """The connection of this process, to be closed; None if the program connected it itself."""
    counts_slots: bool
    """Whether the cluster has `OWN_ACTOR_SLOT`s; one that another program started may not."""
    local_nodes: LocalNodes | None = None
    """The nodes that were started for it, to be stopped with it."""

    @classmethod
    def start_or_join(
        cls,
        *,
        num_cpus: int | None,
        own_actors_max: int,
        cluster: LocalCluster | str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> Cluster:
        """The Ray of this process: the one the caller has initialised, or else a new local one.

        `cluster`: a `LocalCluster`, whose nodes are started with data folders in `folder`; `"HOST:PORT"`; or `"auto"`:
        the cluster that `RAY_ADDRESS` names, else the one that `rayfold up` has started in `folder` (default: the
        working directory), else the only one on this machine. Raises `Unavailable` if it cannot be reached or started,
        and `CallerError` if this process is connected to another Ray, or if there are several to choose from.
        """
        if cluster is None:
            return cls._start_alone(num_cpus, own_actors_max)
        if isinstance(cluster, str):
            return cls._join(cluster, Path(folder or "."))
        if folder is None:
            raise CallerError("a local cluster needs a folder for the data folders of its nodes")
        nodes = LocalNodes(cluster, folder, own_actors_max=own_actors_max)
        nodes.start()
        try:
            joined = cls._join(nodes.address, Path(folder))
        except BaseException:
            nodes.stop(grace_s=0)
            raise
        joined.local_nodes = nodes
        return joined

    @classmethod
    def _start_alone(cls, num_cpus: int | None, own_actors_max: int) -> Cluster:
        prepare_environment()
        import ray  # a second of CPU: paid when a runtime starts, not when rayfold is imported

        def start() -> None:
            if os.environ.get("RAY_AUTH_MODE", "token") == "token":
                ensure_token(os.environ)  # Ray itself would write it with mode 0644
            with kept_from_processes(), started_without_helpers(), without_lines_of_ray():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    namespace=_NAMESPACE,
                    resources={OWN_ACTOR_SLOT: own_actors_max} if own_actors_max else None,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )

        try:
            session = RaySession.join(start, starts=True)
        except RayfoldError:
            raise
        except Exception as error:  # Ray has no class of its own for it
            text = " ".join(str(error).split())
            remedy = "on a machine that is too busy it may later"
            raise Unavailable("the Ray of this program", f"does not come up: {text:.300}; {remedy}") from error
        return cls._connected(session)

    @classmethod
    def _join(cls, wanted: str, folder: Path) -> Cluster:
        address = find_address(folder) if wanted == "auto" else wanted
        prepare_environment(loopback=is_loopback(address))
        check_reachable(address)
        import ray

        if ray.is_initialized():
            present = ray.get_runtime_context().gcs_address
            if address != present:
                raise CallerError(f"this process is connected to the Ray at {present} and cannot join {address} too")

        def join() -> None:
            with without_lines_of_ray():
                ray.init(address=address, namespace=_NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)

        try:
            return cls._connected(RaySession.join(join, starts=False))
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            text = " ".join(str(error).split())
            remedy = "see whether it runs and whether this user has its token; `rayfold up` starts one here"
            raise Unavailable(f"the Ray cluster {address!r}", f"cannot be joined: {text:.300}; {remedy}") from error

    @classmethod
    def inside(cls) -> Cluster:
        """The cluster of the actor that asks."""
        return cls._connected(None)

    @classmethod
    def _connected(cls, session: RaySession | None) -> Cluster:
        import ray

        return cls(ray.get_runtime_context().namespace, session, OWN_ACTOR_SLOT in ray.cluster_resources())

    @property
    def address(self) -> str:
        """Where another process reaches this cluster."""
        import ray

        address: str = ray.get_runtime_context().gcs_address
        return address

    def nodes(self) -> list[NodeFacts]:
        """The nodes that have data folders, by name; also those that are gone, as long as Ray remembers them.

        Empty for a Ray that was started for one machine alone. A call to Ray's directory, of a few milliseconds.
        """
        return self.view().nodes

    def is_attached(self) -> bool:
        """Whether the node that this program is attached to is still up. Once it is not, nothing reaches this program
        any more, not even when a node has been started again in its place."""
        return self.view().is_attached

    def view(self) -> ClusterView:
        """`nodes` and `is_attached`, of one moment, for one call to Ray's directory."""
        import ray

        listed, here = ray.nodes(), ray.get_runtime_context().get_node_id()
        found: dict[str, NodeFacts] = {}
        for one in listed:
            labels = one.get("Labels") or {}
            if node_id := labels.get(NODE_LABEL):
                name = labels.get(NAME_LABEL, "") or node_id
                facts = NodeFacts(node_id, name, one["NodeID"], one["NodeManagerAddress"], bool(one["Alive"]))
                if facts.alive or node_id not in found:  # a node that was restarted is there twice
                    found[node_id] = facts
        is_attached = any(one["NodeID"] == here and one["Alive"] for one in listed)
        return ClusterView(sorted(found.values(), key=lambda node: (node.name, node.node_id)), is_attached)

    @property
    def node_socket(self) -> str:
        """The socket of the node that this process is attached to, which is there as long as the node is."""
        from ray._private import worker

        node: Any = worker._global_node
        return str(node.raylet_socket_name)

    def systems(self) -> list[str]:
        """The names of the systems on clusters that run here, deployed or not."""
        from ray.util import list_named_actors

        return systems_in(list_named_actors())

    def actor_named(self, name: str) -> Any:
        """The handle of a named actor. Raises `ValueError` if it has ended."""
        import ray

        return ray.get_actor(name, self.namespace)

    def is_starting(self, actor: Any) -> bool:
        """Whether Ray is still starting an actor's process; see `rpc.is_starting`."""
        return is_starting(actor)

    def leave_lost(self) -> None:
        """The node that this process was attached to has ended: end the connection, for all who share it. One that the
        program itself has made is left as it is."""
        session, self.session = self.session, None
        if session is not None:
            session.end()

    def stop(self) -> None:
        """End every process of a cluster that was started here, unless another runtime of this program uses it; leave
        any other cluster alone."""
        nodes, self.local_nodes = self.local_nodes, None
        session, self.session = self.session, None
        try:
            if session is not None:
                session.leave()
        finally:
            if nodes is not None:
                nodes.stop()
