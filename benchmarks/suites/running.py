"""A bank that runs: one Ray for all cases of a run, a fresh store for each, and the invariants at the end.

Rules kept here: Ray is started once, because its start takes seconds and is not what is measured; everything else is
fresh, so that no case inherits a log, a cache or a busy process from the one before; the folder of a case is gone when
the case is over, whatever happened, and so are its shares on the nodes of a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rayfold import Aggregate, Projection, Receipt, Runtime
from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.actors.cluster.node import NODE_LABEL, data_folder_here, node_id_here
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.nodes.store import AnyStore, ClusterStore
from rayfold.actors.settings import Settings
from rayfold.runtime.log.contract import Reader
from rayfold.runtime.store.memory_logs import MemoryLogs
from rayfold.runtime.store.node_store import open_share

from ..harness.contract import Options
from ..workloads.bank import Account, AllBalances, Balances, OwnAccount
from .invariants import balances_in, dirty_pages, fsync_violations, log_violations, read_model_violations
from .measuring import CpuMeter

OWN_ACTORS_MAX: Final = 16
"""The slots that the shared Ray has for own actors: the runtime's default."""

VISIBLE_TIMEOUT_S: Final = 60.0
"""For the read models to have seen everything, after the timed part."""

_ON_NODES_TIMEOUT_S: Final = 60.0
"""For a node to do what takes milliseconds, once it has a process for it."""

_shared: list[Cluster] = []


def shared_ray() -> None:
    """Start the Ray of this run, unless this process is connected to one already."""
    if not _shared:
        _shared.append(Cluster.start_or_join(num_cpus=None, own_actors_max=OWN_ACTORS_MAX))


def stop_shared_ray() -> None:
    """End the Ray that `shared_ray` started; one that was joined stays."""
    while _shared:
        _shared.pop().stop()


@contextlib.contextmanager
def fresh_folder(options: Options) -> Iterator[Path]:
    """A new folder in the run's directory, removed at the end."""
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="case-", dir=options.directory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@dataclass(slots=True)
class Running:
    """A runtime under measurement, with its processes by role."""

    bank: Runtime
    folder: Path
    """Of the case."""
    pids: dict[str, list[int]]
    """Role -> processes: `driver`, `partitions`, `projectors`, `own_actors`. Those of other machines have no place here
    and are left out."""
    projection: type[Projection] = Balances
    """The read model that is compared with the log."""
    started_at: dict[int, int] = field(default_factory=dict)
    """Partition -> position of the log's end before anything was sent."""
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    replicas: int = 0
    """Of that read model."""

    @property
    def store(self) -> AnyStore:
        """Where the logs are."""
        return self.bank._store

    def cpu(self) -> CpuMeter:
        """CPU by role from now on. Roles without a process are left out."""
        return CpuMeter({role: pids for role, pids in self.pids.items() if pids})

    async def learn_processes(self) -> None:
        """Find out which process does what; again once own actors have come up."""
        status = await self.bank.status()
        here = _are_all_here([node.address for node in status.nodes])
        roles: dict[str, Sequence[Any]]
        roles = {"partitions": status.partitions, "projectors": status.projectors, "own_actors": status.own_actors}
        self.pids = {"driver": [os.getpid()]} | {name: [of.pid for of in ones if here] for name, ones in roles.items()}

    async def violations(self, receipts: Sequence[Receipt]) -> list[str]:
        """The invariants of the bank. Call it right after the last acknowledgement, while the runtime is still up."""
        told = self.log_violations(receipts)
        if not receipts:
            told.append("nothing was acknowledged")
        if self.replicas and not any(self.started_at.values()):
            with self._readers() as readers:
                expected = balances_in(readers.values())
            told += await self._read_models(expected)
        return told

    def log_violations(self, receipts: Sequence[Receipt]) -> list[str]:
        """The invariants of the logs alone, of any application whose commands leave one event each."""
        told = self.fsync_violations()
        with self._readers() as readers:
            return told + log_violations(readers, receipts, self.started_at)

    @contextlib.contextmanager
    def _readers(self) -> Iterator[dict[int, Reader]]:
        readers: dict[int, Reader] = {number: self.store.open_reader(number) for number in range(self.store.partitions)}
        try:
            yield readers
        finally:
            for reader in readers.values():
                reader.close()

    def fsync_violations(self) -> list[str]:
        """Whether what was acknowledged is on the disk."""
        store = self.store
        if isinstance(store, ClusterStore):
            told = _on_nodes(store.map.names, _dirty_files, store.name)
        else:
            assert not isinstance(store, MemoryLogs), "on a disk"
            files = [store.partition_path(number) / "data.mdb" for number in range(store.partitions)]
            told = [None if dirty_pages(files[0]) is None else fsync_violations(files)]
        if None in told:
            self.notes["fsync"] = "not checked: Linux before 6.5 does not show which pages are on the disk"
        return [line for lines in told for line in lines or ()]

    async def caught_up(self) -> None:
        """Wait until every replica has seen everything. Raises `NotYetVisible`."""
        await self.bank.caught_up(timeout_s=VISIBLE_TIMEOUT_S)

    async def _read_models(self, expected: dict[str, int]) -> list[str]:
        """The read model of every replica. Queries without `after=` go to idle replicas in turn, so each gets one."""
        await self.caught_up()
        told: list[str] = []
        for _ in range(self.replicas):
            answered = await self.bank.ask(self.projection, AllBalances(), timeout_s=VISIBLE_TIMEOUT_S)
            told += read_model_violations("read model", expected, answered)
        return told


@contextlib.asynccontextmanager
async def running_bank(
    options: Options,
    *,
    partitions: int = 1,
    replicas: int = 0,
    aggregates: Sequence[type[Aggregate]] = (Account, OwnAccount),
    projections: Sequence[type[Projection]] = (Balances,),
    store: Path | None = None,
    cluster: str | None = None,
) -> AsyncIterator[Running]:
    """A runtime over a fresh store, or over an existing one. Without replicas it has no projection at all.

    `cluster`: the address of one over whose nodes the store is spread. Without it, that of the options, unless the
    store is an existing one: that is here.
    """
    joined = options.address if store is None else None
    if cluster is None:
        shared_ray()
    with fresh_folder(options) as folder:
        arguments: dict[str, Any] = {
            "aggregates": list(aggregates),
            "projections": list(projections) if replicas else [],
            "replicas": max(1, replicas),
            "settings": Settings(timeout_s=60.0, own_actors_max=OWN_ACTORS_MAX),
            "cluster": cluster or joined,
        }
        path = store or folder / f"bench-{secrets.token_hex(4)}"
        try:
            async with Runtime(path, partitions=None if store else partitions, **arguments) as bank:
                running = Running(bank, folder, {}, projections[0], replicas=replicas)
                await running.learn_processes()
                running.started_at = await bank.heads()
                if options.pin:
                    _pin(running)
                yield running
        finally:
            if joined is not None:
                _remove_share(path.name)


def _pin(running: Running) -> None:
    """Give writers, projectors and this process cores of their own, and note what came of it."""
    from ..harness.pinning import pin_processes

    note = pin_processes(writers=running.pids["partitions"], projectors=running.pids["projectors"])
    if note:
        running.notes["pinning"] = note


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


# What has to be done where the logs are, when a bank is spread over the nodes of a cluster


def _on_nodes(node_ids: Iterable[str], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns on each of these nodes, which are up."""
    import ray

    remote: Any = ray.remote(function)
    asked = [
        remote.options(num_cpus=0, label_selector={NODE_LABEL: node_id}).remote(*arguments) for node_id in node_ids
    ]
    returned: list[Any] = ray.get(asked, timeout=_ON_NODES_TIMEOUT_S)
    return returned


def _are_all_here(addresses: Iterable[str]) -> bool:
    """Whether these nodes are on the machine of this process, where their processes can be examined."""
    import ray

    return set(addresses) <= {ray.util.get_node_ip_address()}


def _dirty_files(name: str) -> list[str] | None:
    """On a node: what of its share was acknowledged and is not on the disk; None where Linux does not show it."""
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


def _remove_share(name: str) -> None:
    """Remove a store, whose system has ended, from every node of the cluster that this process is connected to."""
    from rayfold.actors.cluster.ray_cluster import Cluster

    _on_nodes([node.node_id for node in Cluster.inside().nodes() if node.alive], _remove_here, name)


def _remove_here(name: str) -> None:
    data = data_folder_here()
    assert data is not None
    shutil.rmtree(data / name, ignore_errors=True)
