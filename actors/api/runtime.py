"""Runtime: a whole system, started and stopped as one: store, cluster, projectors, partitions, client.

What is put together, in the order in which the parts depend on one another, stands in `system/local.py`, for one
machine, and in `supervision.py`, for a cluster. What a program does with it is in `operations.py`.

Rules kept here: whatever was started is stopped, also when starting fails halfway, on Ctrl-C, and when stopping is
itself interrupted; the directory is held by one runtime at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Self, TypeVar

from ...runtime.arguments import checked_path
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Event
from ...runtime.domain.projection import Projection
from ...runtime.errors import CallerError, InvalidMessage
from ...runtime.printable import shown
from ...runtime.processes.since import Since
from ...runtime.sinks.sink import Sink
from ...runtime.store.store import open_or_create_store
from ..cluster.local import LocalCluster
from ..packaging.application import (
    Application,
    EffectClasses,
    Processes,
    application_here,
    check_partitions,
    checked_settings,
)
from ..settings import Settings
from ..system.system import System
from .operations import Operations

__all__ = ["PARTITIONS_DEFAULT", "Runtime"]

PARTITIONS_DEFAULT: Final = 2
"""The partitions of a new store. The number is fixed for its life; two use two cores, and cost one process more
than one does."""

LINGER_S: Final = 10.0
"""How long a system waits for the next program: longer than a web server takes to start its workers anew."""

LINGER_MAX_S: Final = 366 * 86_400.0
"""Longer is a typing error."""

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")


class Runtime(Operations):
    """An event-sourced application over a directory. `async with Runtime(...) as bank:` starts and stops it.

    In a notebook or a script that has no `async with`: `bank = await Runtime(...).start()` and `await bank.stop()`,
    or `BlockingRuntime`, which is the same without `await`.

    Args:
        path: The store's directory; made if it is missing or empty.
        application: An `Application` with all classes, as `rayfold check` and `rayfold verify` take one; or else
            `aggregates` and `projections`.
        aggregates: The aggregate classes.
        projections: The projection classes.
        partitions: Of a new store (default 2); for an existing one it may be left out.
        replicas: Of each projection, or a mapping from projection to number.
        own_actors_max: How many own actors may be alive at once; see `settings`.
        timeout_s: Seconds after which a call is `Unavailable`; see `settings`.
        settings: All bounds and deadlines.
        num_cpus: CPUs that are reported to Ray for this machine, if this runtime starts Ray.
        cluster: Spread the store over several nodes. A `LocalCluster` is started for it, with the nodes' data
            folders in the directory; "auto" or "HOST:PORT" is a cluster that runs, whose nodes have data folders.
            The system's name is then the last part of the path, by which other programs `connect` to it while this
            runtime runs.
        events: Classes of events that the store holds and no aggregate here evolves.
        retired: Stored names of events and aggregate types that were given up; their events are passed over (see
            docs/evolution.md).
        processes: The process classes, or a mapping from each to its `since`.
        since: From where on a process takes part, or effects do, that are new to a store with events: "now",
            "beginning", or behind a receipt. Later starts pass over it.
        effects: The `Effects` classes, or a mapping from each to its `since`.
        sinks: What publishes events to other systems (see docs/sinks.md).
        linger: Have a process of its own run the system, for any number of programs: the first one starts it, and it
            ends 10 s after the last one has gone, or that many seconds (see docs/several-programs.md).

    Raises:
        InvalidMessage: The arguments contradict each other. `start` has the errors of starting.

    Example:
        async with Runtime("bank-data", aggregates=[Account], projections=[Balances]) as bank:
            receipt = await bank.execute(Account, "alice", Deposit(amount=100))
            print(await bank.ask(Balances, BalanceOf(account="alice"), after=receipt))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        application: Application | None = None,
        *,
        aggregates: Sequence[type[Aggregate]] = (),
        projections: Sequence[type[Projection]] = (),
        partitions: int | None = None,
        replicas: int | Mapping[type[Projection], int] = 1,
        own_actors_max: int | None = None,
        timeout_s: float | None = None,
        settings: Settings | None = None,
        num_cpus: int | None = None,
        cluster: LocalCluster | str | None = None,
        events: Sequence[type[Event]] = (),
        retired: Sequence[str] = (),
        processes: Processes = (),
        since: Since | None = None,
        effects: EffectClasses = (),
        sinks: Sequence[Sink] = (),
        linger: bool | float = False,
    ) -> None:
        self._path = checked_path("Runtime", path)
        super().__init__(f"the runtime on {self._path} is not running; use `async with`, or start() it")
        application = application_here(
            "Runtime",
            application,
            aggregates=aggregates,
            projections=projections,
            replicas=replicas,
            settings=settings,
            events=events,
            retired=retired,
            processes=processes,
            since=since,
            effects=effects,
            sinks=sinks,
        )
        self._catalogue, self._projections = application.catalogue, application.projections
        self._partitions = application.partitions if partitions is None else check_partitions(partitions, "Runtime")
        self._replicas = application.replicas
        self._settings = checked_settings(
            application.settings if settings is None else settings, own_actors_max, timeout_s
        )
        self._num_cpus = _checked_cpus(num_cpus)
        self._cluster = _checked_cluster(cluster)
        self._linger_s = _checked_linger(linger, cluster, self._settings)

    async def start(self) -> Self:
        """Start everything, and return once commands and queries are answered.

        Raises `StoreInUse` (naming who has it), `StoreMismatch`, `CodeMismatch` (the classes do not fit what the store
        holds: each difference with its remedy), `StoreMissing`, `Damaged`, `StorageFailed`, or, with
        `cluster=`, `Unavailable`; then nothing is left running.
        """
        return await super().start()

    async def stop(self) -> None:
        """Stop everything that `start` started. What was acknowledged is on disk. Stopping twice is allowed."""
        await super().stop()

    def _made(self) -> System:
        if self._running is not None:
            raise CallerError(f"the runtime on {self._path} is started already")
        if self._linger_s is not None:
            from ..system.lingering import LingeringSystem

            return LingeringSystem(
                self._path,
                self._catalogue,
                self._replicas,
                self._settings,
                PARTITIONS_DEFAULT,
                self._partitions,
                self._num_cpus,
                self._linger_s,
            )
        if self._cluster is None:
            from ..system.local import LocalSystem  # a program that only connects does without it

            opened = partial(open_or_create_store, self._path, PARTITIONS_DEFAULT, self._partitions)
            return LocalSystem(self._catalogue, self._replicas, self._settings, opened, self._num_cpus)
        from ..system.cluster import ClusterSystem

        replicas = {projection.projection_name: count for projection, count in self._replicas.items()}
        return ClusterSystem(self._path, self._cluster, self._catalogue, self._partitions, replicas, self._settings)


def _checked_cpus(num_cpus: object) -> int | None:
    if num_cpus is None or (isinstance(num_cpus, int) and not isinstance(num_cpus, bool) and num_cpus >= 1):
        return num_cpus
    raise InvalidMessage("Runtime", f"num_cpus is {shown(num_cpus)}", "give a number from 1")


def _checked_linger(linger: object, cluster: object, settings: Settings) -> float | None:
    """How long the system waits for the next program, in seconds; None if this program runs it itself."""
    if linger is False:
        return None
    if linger is True:
        linger = LINGER_S
    if isinstance(linger, bool) or not isinstance(linger, int | float) or not 0 <= linger <= LINGER_MAX_S:
        raise InvalidMessage("Runtime", f"linger is {shown(linger)}", "give True, or a number of seconds up to a year")
    if cluster is not None:
        raise InvalidMessage("Runtime", "linger is for one machine", "deploy the application on the cluster instead")
    if not settings.local_sockets:
        raise InvalidMessage("Runtime", "linger needs sockets", "leave out Settings(local_sockets=False)")
    return float(linger)


def _checked_cluster(cluster: object) -> LocalCluster | str | None:
    if cluster is None or isinstance(cluster, LocalCluster | str):
        return cluster
    raise InvalidMessage("Runtime", f"cluster is {shown(cluster)}", 'give a LocalCluster(), "auto" or "HOST:PORT"')
