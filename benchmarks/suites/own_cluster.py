"""A bank on a cluster of its own: nodes of this machine that are started for one case, and ended with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rayfold.actors.cluster.local import LocalCluster, LocalNodes

from ..harness.contract import Options
from .running import Running, fresh_folder, running_bank, stop_shared_ray

__all__ = ["bank_on_own_cluster"]


@contextlib.asynccontextmanager
async def bank_on_own_cluster(
    options: Options, *, nodes: int, cpus: int, partitions: int, replicas: int
) -> AsyncIterator[tuple[Running, LocalNodes]]:
    """A bank over the nodes of a new cluster. The Ray that other cases share makes room for it."""
    stop_shared_ray()
    with fresh_folder(options) as folder:
        local = LocalNodes(LocalCluster(nodes=nodes, cpus=cpus), folder)
        await asyncio.to_thread(local.start)
        try:
            bank = running_bank(options, partitions=partitions, replicas=replicas, cluster=local.address)
            async with bank as running:
                yield running, local
        finally:
            await asyncio.to_thread(local.stop)
