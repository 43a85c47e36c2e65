"""FoundSystem: a program's connection to an application on a cluster, found by its name.

Beside steps [1], [2] and [8]. It joins the cluster, makes sure that the supervisor runs, and is a `RemoteSystem` from
then on; it joins anew when this program's node has ended.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import StorageFailed, Unavailable
from ...runtime.store.store_lock import MANIFEST
from ..cluster.cluster_file import address_in
from ..cluster.ray_cluster import Cluster
from ..cluster.ray_session import started_in_thread
from .remote import RemoteSystem

__all__ = ["FoundSystem"]

_PATIENCE_S: Final = 20.0
"""How long a supervisor may be silent before a program that connects starts another one."""


class FoundSystem(RemoteSystem):
    """The application, found by its name."""

    _rejoins = True

    def __init__(self, name: str, catalogue: Catalogue | None, wanted: str) -> None:
        super().__init__(name, catalogue)
        self._wanted = wanted
        try:
            self._folder = Path.cwd()
        except OSError as error:
            what = f"the working directory is gone: {error.strerror or error}; go to one that exists"
            raise StorageFailed(name, what) from error

    async def start(self) -> None:
        """Join the cluster, make sure that the supervisor runs, and attach."""
        cluster = self._joined_to = await started_in_thread(self._joined, Cluster.stop)
        self._undo.push_async_callback(self._stop_cluster)
        await asyncio.to_thread(self._revive, cluster)
        await self.attach(cluster)

    async def _stop_cluster(self) -> None:
        """The one that it uses by then."""
        await asyncio.to_thread(self._cluster.stop)

    def _joined(self) -> Cluster:
        wanted = self._wanted
        if wanted == "auto" and self._address:  # the same one again; where `rayfold up` has started it by now
            wanted = address_in(self._folder) or self._address
        try:
            return Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=wanted, folder=self._folder)
        except Unavailable as error:
            if self._wanted != "auto" or (self._folder / self._name / MANIFEST).exists():
                raise
            what = f"{error.what}. And {self._folder} has no folder {self._name!r} with a store"
            raise Unavailable(error.subject, what) from error

    def _revive(self, cluster: Cluster) -> None:
        from ..control.supervisor_actor import revive

        revive(self._name, cluster.namespace, _PATIENCE_S)
