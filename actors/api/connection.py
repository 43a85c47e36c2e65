"""Connection: a program's use of an application that was deployed on a cluster, or of a runtime that another one has
started there.

The entrance of the write path ([1]) and the read path ([8]). `async with connect("bank") as bank:` finds the
application by its name and does with it what a `Runtime` does; the application goes on when the program ends, however
it ends.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError, InvalidMessage
from ..cluster.file import address_in
from ..cluster.ray_cluster import Cluster
from ..cluster.ray_session import started_in_thread
from ..packaging.application import Application, check_name
from ..system.remote import RemoteSystem
from .blocking import BlockingOperations
from .operations import Operations

__all__ = ["BlockingConnection", "Connection", "connect", "connect_blocking"]


_PATIENCE_S: Final = 20.0
"""How long a supervisor may be silent before a program that connects starts another one."""


class Connection(Operations):
    """A connection to an application that runs on a cluster. Made by `connect`; has the operations of `Runtime`.

    Opening it raises `Unavailable` if the cluster cannot be reached or nothing of that name runs there.

    Example:
        async with connect("shop") as shop:
            await shop.execute(Till, "1", Pay(amount=5))
    """

    def __init__(self, name: str, catalogue: Catalogue | None, address: str) -> None:
        super().__init__(f"the connection to {name} is not open; use `async with connect(...)`, or start() it")
        self.name = name
        self._catalogue = catalogue
        self._address = address

    def __repr__(self) -> str:
        return f"connect({self.name!r})"

    @property
    def address(self) -> str:
        """Of the cluster, while the connection is open."""
        assert isinstance(self._active, RemoteSystem)
        return self._active.address

    def _made(self) -> RemoteSystem:
        if self._running is not None:
            raise CallerError(f"the connection to {self.name} is open already")
        return _Found(self.name, self._catalogue, self._address)


class BlockingConnection(BlockingOperations):
    """A connection without `await`. Made by `connect_blocking`; has the operations of `BlockingRuntime`.

    Example:
        with connect_blocking("shop") as shop:
            shop.execute(Till, "1", Pay(amount=5))
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._connection = connection

    @property
    def address(self) -> str:
        """Of the cluster, while the connection is open."""
        return self._connection.address


def connect(application: str | Application, *, address: str = "auto") -> Connection:
    """Find an application that runs on a cluster; the connection is opened by `async with`, or by `start`.

    With a name alone the classes are those that were deployed; commands and queries of classes of the same names
    are taken for them. Where this program does not have their modules, it can import them once the connection is
    open.

    Args:
        application: Its name, or the `Application` itself.
        address: Of the cluster, `"HOST:PORT"`. `"auto"` is the one that `RAY_ADDRESS` names, else the one that
            `rayfold up` has started in the working directory, else the only one on this machine.

    Raises:
        Unavailable: When it is opened: the cluster cannot be reached, or nothing of that name runs there.

    Example:
        async with connect("shop", address="one:6379") as shop:
            print(await shop.status())
    """
    if not isinstance(address, str):
        raise InvalidMessage("connect", f"address is {address!r}", 'give "HOST:PORT" or "auto"')
    if isinstance(application, Application):
        return Connection(application.name, application.catalogue, address)
    return Connection(check_name(application), None, address)


def connect_blocking(application: str | Application, *, address: str = "auto") -> BlockingConnection:
    """`connect` without `await`: the connection is opened by `with`, or by `start`. Arguments and errors are the same.

    Example:
        with connect_blocking("shop") as shop:
            print(shop.status())
    """
    return BlockingConnection(connect(application, address=address))


class _Found(RemoteSystem):
    """The application, found by its name."""

    _rejoins = True

    def __init__(self, name: str, catalogue: Catalogue | None, wanted: str) -> None:
        super().__init__(name, catalogue)
        self._wanted, self._folder = wanted, Path.cwd()

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
        return Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=wanted, folder=self._folder)

    def _revive(self, cluster: Cluster) -> None:
        from ..control.supervisor_actor import revive

        revive(self._name, cluster.namespace, _PATIENCE_S)
