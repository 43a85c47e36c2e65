"""Connection: a program's use of a system that another program runs: on this machine, found by the directory of its
store, or on a cluster, found by the name of its application.

The entrance of the write path ([1]) and the read path ([8]). `async with connect("bank-data") as bank:` finds the
system and does with it what a `Runtime` does; the system goes on when the program ends, however it ends. On one machine
the way to it are sockets (`system/relayed.py`), and so it is to a cluster, by way of a node of this machine
(`system/node_system.py`): neither ray nor lmdb is imported. Where there is no such node, or this program is connected
to Ray already, it is a driver of Ray (`system/found_system.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Self

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError, InvalidMessage, StorageFailed
from ...runtime.printable import shown
from ...runtime.store.store_lock import MANIFEST
from ..nodes.local_shares import local_shares
from ..packaging.application import Application, check_name
from ..system.connected import ConnectedSystem
from ..system.node_system import NodeSystem
from ..system.relayed import RelayedSystem
from ..system.system import System
from .blocking import BlockingOperations
from .operations import Operations

__all__ = ["BlockingConnection", "Connection", "connect", "connect_blocking"]


class Connection(Operations):
    """A connection to a system that another program runs, on this machine or on a cluster. Made by `connect`; has the
    operations of `Runtime`.

    Opening it raises `Unavailable` if nothing runs there, or it cannot be reached.

    Example:
        async with connect("shop") as shop:
            await shop.execute(Till, "1", Pay(amount=5))
    """

    def __init__(self, name: str, catalogue: Catalogue | None, address: str, path: Path | None = None) -> None:
        """`path`: of the store, if a program on this machine runs it."""
        super().__init__(f"the connection to {name} is not open; use `async with connect(...)`, or start() it")
        self.name = name
        self._path = path
        self._catalogue = catalogue
        self._address = address
        self._folder: Path | None = None
        """The working directory, if the application is reached by way of a node of this machine."""

    def __repr__(self) -> str:
        return f"connect({self.name!r})"

    @property
    def address(self) -> str:
        """Of the cluster, or of the socket of the other program, while the connection is open."""
        active = self._active
        assert isinstance(active, ConnectedSystem)
        return active.address

    async def start(self) -> Self:
        """Return once commands and queries are answered."""
        if self._path is None and self._running is None:
            self._folder = await asyncio.to_thread(_folder_of_agents, self.name, self._address)
        return await super().start()

    def _made(self) -> System:
        if self._running is not None:
            raise CallerError(f"the connection to {self.name} is open already")
        if self._path is not None:
            return RelayedSystem(self._path, self._catalogue)
        if self._folder is not None:
            return NodeSystem(self.name, self._catalogue, self._address, self._folder)
        from ..system.found_system import FoundSystem  # a program that needs no cluster does without it

        return FoundSystem(self.name, self._catalogue, self._address)


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
        """Of the cluster, or of the socket of the other program, while the connection is open."""
        return self._connection.address


def connect(
    application: str | os.PathLike[str] | Application, classes: Application | None = None, *, address: str = "auto"
) -> Connection:
    """Find a system that another program runs; the connection is opened by `async with`, or by `start`.

    On this machine it is found by the directory of its store, on a cluster by the name of its application, and reached
    by way of a node of this machine. Neither needs Ray here, or the same version of Python. Without `classes` they are
    those of the system; commands and queries of classes of the same names are taken for them. Where this program does
    not have their modules, it can import them once the connection is open.

    Args:
        application: The directory of the store, as a `Path`, or as a text with a slash in it, or as the name of a
            folder in the working directory that has a store; or the name of an application on a cluster, or the
            `Application` itself.
        classes: The classes of this program, for a system that is named in another way.
        address: Of the cluster, `"HOST:PORT"`. `"auto"` is the one that `RAY_ADDRESS` names, else the one that
            `rayfold up` has started in the working directory, else the only one on this machine.

    Raises:
        Unavailable: When it is opened: nothing of that name runs, or it cannot be reached.
        StoreMissing: When it is opened: there is no store in that directory.
        StorageFailed: The directory cannot be read, or the working directory is gone.

    Example:
        async with connect("bank-data") as bank:
            print(await bank.status())
    """
    if not isinstance(address, str):
        raise InvalidMessage("connect", f"address is {shown(address)}", 'give "HOST:PORT" or "auto"')
    if classes is not None and not isinstance(classes, Application):
        raise InvalidMessage("connect", f"classes is {shown(classes)}", "give an Application with the classes")
    if isinstance(application, Application):
        return Connection(application.name, (classes or application).catalogue, address)
    catalogue = None if classes is None else classes.catalogue
    path = _store_at(application) if address == "auto" else None
    if path is not None:
        return Connection(path.name, catalogue, address, path)
    return Connection(check_name(application), catalogue, address)


def connect_blocking(
    application: str | os.PathLike[str] | Application, classes: Application | None = None, *, address: str = "auto"
) -> BlockingConnection:
    """`connect` without `await`: the connection is opened by `with`, or by `start`. Arguments and errors are the same.

    Example:
        with connect_blocking("bank-data") as bank:
            print(bank.status())
    """
    return BlockingConnection(connect(application, classes, address=address))


def _folder_of_agents(name: str, address: str) -> Path | None:
    """The working directory, if nodes of this machine serve this program without Ray; None if it has to be a driver of
    Ray, or is one. Raises what `local_shares` does, and `StorageFailed`."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return None
    try:
        folder = Path.cwd()
    except OSError as error:
        what = f"the working directory is gone: {error.strerror or error}; go to one that exists"
        raise StorageFailed(name, what) from error
    return folder if local_shares(name, address, folder) else None


def _store_at(application: object) -> Path | None:
    """The directory of a store, if this is one; None for the name of an application."""
    text = os.fspath(application) if isinstance(application, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        remedy = "give the directory of a store, the name of an application on a cluster, or the Application"
        raise InvalidMessage("connect", f"application is {shown(application)}", remedy)
    if not text:
        return None
    named = os.sep in text or not isinstance(application, str)
    try:
        path = Path(text).absolute()
        return path if named or (path / MANIFEST).is_file() else None
    except OSError as error:
        what = f"cannot see whether a store is there: {error.strerror or error}"
        raise StorageFailed(text, f"{what}; give its whole path, or go to a working directory that exists") from error
