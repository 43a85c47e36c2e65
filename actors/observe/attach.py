"""Connection: how a second process finds the running system of a store, and observes it.

Beside all steps. The runtime that holds a store writes into the store's lock how it is reached: the address of its Ray,
the namespace, and what the names of its actors begin with. A process with the directory, and the token of that Ray
(both are the same user's, by default), may then connect as a second driver of that Ray.

Rules kept here: looking changes nothing and keeps nothing alive: an observer may come and go, or be killed, and the
system is not affected. What is not running is reported in one line, and never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ...runtime.errors import CallerError, Unavailable
from ...runtime.store.store import Store
from ...runtime.store.store_lock import Holder, holder_of
from ..cluster.environment import prepare_environment
from ..cluster.names import names_of, partition_name
from ..cluster.ray_lines import without_lines_of_ray
from .status import Observer, Status

if TYPE_CHECKING:
    from ..cluster.ray_cluster import Cluster

__all__ = ["RunningSystem", "connection_facts"]

_READ_AT_IMPORT: Final = "RAY_AUTH_MODE"
"""What has to be set before Ray is imported: whether this cluster needs a token."""

_LOOK_UP_TIMEOUT_S: Final = 5.0
"""For the names of the actors: it takes a millisecond."""


def connection_facts(cluster: Cluster, name: str) -> dict[str, str]:
    """How a system is reached whose actors' names begin with `name`: what its hold publishes."""
    return {
        "ray_address": cluster.address,
        "ray_namespace": cluster.namespace,
        "ray_auth_mode": os.environ.get(_READ_AT_IMPORT, ""),
        "name": name,
    }


class RunningSystem:
    """The running system of a store, seen from another process. A context manager; `close` ends the connection.

    Raises `Unavailable` if nothing runs on the store, or it cannot be reached from here.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.holder = _reachable_holder(store)
        _join(self.holder)
        self._observer = Observer(self.store)
        self._handles: dict[str, Any] = {}

    async def status(self) -> Status:
        """What runs where, how far it is, and whether it answers. The actors are looked up anew each time.

        Raises `Unavailable` when the Ray that was joined is there no more.
        """
        system = self.holder.connection["name"]
        handles = await self._in_time(lambda: self._actors(system))
        partitions = {
            number: handles[name]
            for number in range(self.store.partitions)
            if (name := partition_name(system, number)) in handles
        }
        return await self._observer.observe(partitions, dict(sorted(handles.items())))

    def _actors(self, system: str) -> dict[str, Any]:
        """The handles of all actors of this system, by name. An actor that has ended has none."""
        import ray
        import ray.util

        handles = {}
        for name in names_of(system, ray.util.list_named_actors()):
            with contextlib.suppress(ValueError):  # it has ended since
                handles[name] = self._handles.get(name) or ray.get_actor(name)
        self._handles = handles
        return handles

    async def _in_time(self, look_up: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Ray waits for minutes for a cluster that has ended. In a thread of its own it does so alone, and a daemon's
        waiting keeps no process from ending."""
        found: Future[dict[str, Any]] = Future()

        def run() -> None:
            try:
                found.set_result(look_up())
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=run, name="rayfold look-up", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(found), _LOOK_UP_TIMEOUT_S)
        except Exception as error:
            raise Unavailable(str(self.holder), "its Ray does not answer any more") from error

    def close(self) -> None:
        """Leave the Ray that was joined. The system runs on."""
        import ray

        self._handles = {}
        ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _reachable_holder(store: Store) -> Holder:
    holder = holder_of(store.path)
    if holder is None:
        raise Unavailable(str(store.path), "no runtime has it open now")
    if holder.host != socket.gethostname():
        raise Unavailable(str(store.path), f"it is held by {holder}; ask on that machine")
    if not holder.connection:
        raise Unavailable(str(store.path), f"{holder} has not started its actors; try again in a moment")
    if "ray_address" not in holder.connection:
        raise Unavailable(str(store.path), f"it is the share of a node, held by {holder}; ask by its name")
    return holder


def _join(holder: Holder) -> None:
    """Become a second driver of that Ray."""
    if mode := holder.connection["ray_auth_mode"]:
        os.environ.setdefault(_READ_AT_IMPORT, mode)
    prepare_environment()
    import ray

    if ray.is_initialized():
        raise CallerError("this process runs a Ray of its own; ask its own runtime, or ask from another process")
    try:
        with without_lines_of_ray():
            ray.init(
                address=holder.connection["ray_address"],
                namespace=holder.connection["ray_namespace"],
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise Unavailable(str(holder), f"its Ray cannot be reached: {text:.200}") from error
