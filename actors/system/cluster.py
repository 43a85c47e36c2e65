"""ClusterSystem: what a runtime with `cluster=` consists of: a cluster, a supervisor of its own, and a connection to
it.

Beside all steps. It has what a `LocalSystem` has; the actors are started by the supervisor, on the nodes of the
cluster, and end with it, which ends with this program: however that ends, Ray ends what it has started.

Rule kept here: one system of a name on a cluster at a time. The supervisor's name in Ray decides who has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import StoreInUse
from ..cluster.local import LocalCluster
from ..cluster.names import supervisor_name
from ..cluster.ray_cluster import Cluster
from ..cluster.rpc import call, kill, open_actor
from ..packaging.application import ApplicationPlan, check_name
from ..settings import Settings
from .remote import RemoteSystem

__all__ = ["ClusterSystem"]

_OPEN_TIMEOUT_S: Final = 3600.0
"""For everything to start: a long log that is replayed into a read model takes long, and its progress is in the
status."""

_STOP_TIMEOUT_S: Final = 30.0
"""For everything to end by itself."""


class ClusterSystem(RemoteSystem):
    """A spread system that this program has started. Used on its event loop only."""

    def __init__(
        self,
        path: Path,
        cluster: LocalCluster | str,
        catalogue: Catalogue,
        partitions: int | None,
        replicas: Mapping[str, int],
        settings: Settings,
    ) -> None:
        super().__init__(check_name(path.name), catalogue)
        self._path = path
        self._wanted = cluster
        self._of_new_store = partitions
        self._replicas = dict(replicas)
        self._settings = settings

    async def start(self) -> None:
        """Cluster, supervisor, and a connection to it."""
        cluster = await asyncio.to_thread(self._joined)
        self._undo.push_async_callback(asyncio.to_thread, cluster.stop)
        plan = self._plan(cluster)
        supervisor = self._supervised(plan, cluster)
        self._undo.push_async_callback(self._end, supervisor)
        await open_actor(supervisor, self._name, _OPEN_TIMEOUT_S)
        await self.attach(cluster)

    def _joined(self) -> Cluster:
        return Cluster.start_or_join(
            num_cpus=None, own_actors_max=self._settings.own_actors_max, cluster=self._wanted, folder=self._path
        )

    def _plan(self, cluster: Cluster) -> ApplicationPlan:
        from ..packaging.shipping import ship  # it imports ray, which `Cluster` prepares

        assert self._own is not None  # a program that starts a system has its classes
        classes = ship(self._own)
        settings, slots = self._settings, cluster.counts_slots
        return ApplicationPlan(
            self._name, classes, self._of_new_store, self._replicas, settings, counts_slots=slots, create=True
        )

    def _supervised(self, plan: ApplicationPlan, cluster: Cluster) -> Any:
        from ..control.supervisor_actor import start_supervisor

        try:
            return start_supervisor(plan.name, cluster.namespace, plan)
        except ValueError:
            what = f"a system of that name on the cluster {cluster.address} ({supervisor_name(plan.name)})"
            raise StoreInUse(plan.name, what) from None

    async def _end(self, supervisor: Any) -> None:
        with contextlib.suppress(Exception):
            await call(supervisor.stop, timeout_s=_STOP_TIMEOUT_S)
        kill(supervisor)
