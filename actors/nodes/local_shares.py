"""Local shares: the shares of an application's store that nodes of this machine have, found without Ray.

Beside steps [1] and [8]: a program without Ray speaks to the agent of one of these nodes (`../system/node_system.py`).

A node shows what it is to the other processes of its user: the command line of its raylet has the address of its
cluster, and its environment the data folder. In that is the share, and in the lock of the share who holds it, and at
which socket. No head is asked, so that programs find their way while it is away.

Rule kept here: only nodes of this user count, also for root, who could read others'.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Final, NamedTuple

from ...runtime.errors import CallerError, RayfoldError
from ...runtime.store.partition_map import MAP
from ...runtime.store.store_lock import MANIFEST, Holder, holder_of
from ..cluster.cluster_file import address_in
from ..cluster.node import DATA_VARIABLE

__all__ = ["NO_SOCKETS", "LocalShare", "local_shares"]

NO_SOCKETS: Final = {"sockets": "off"}
"""What a node agent publishes that serves no programs: they are drivers of Ray."""

_ENVIRONMENT_BYTES_MAX: Final = 4 << 20
"""Linux allows 2 MiB of arguments and environment, unless it is configured otherwise."""


class LocalShare(NamedTuple):
    """One share, of a node that runs."""

    address: str
    """Of the cluster, as its nodes know it."""
    path: Path

    def holder(self) -> Holder | None:
        """Who holds it now: the node agent; None while that is away."""
        with contextlib.suppress(RayfoldError):
            found = holder_of(self.path)
            if found is not None and found.host == socket.gethostname():
                return found
        return None


def local_shares(name: str, wanted: str, folder: Path) -> list[LocalShare]:
    """The shares of the application of this name on this machine. `wanted`: the address of the cluster, or `"auto"`:
    the one that `RAY_ADDRESS` names, else the one that was started in `folder`, else the only one on this machine.

    Empty where no node of this user has one that serves programs. Raises `CallerError` if there are several clusters to
    choose from, and what `address_in` does.
    """
    address = wanted if wanted != "auto" else os.environ.get("RAY_ADDRESS") or address_in(folder)
    nodes = [(at, data) for at, data in _nodes_here() if not address or _is_same(at, address)]
    if len(clusters := sorted({at for at, _ in nodes})) > 1 and not address:
        what = f"{len(clusters)} clusters run on this machine, and none is of this folder: {', '.join(clusters)}"
        raise CallerError(f"{what}; choose one with HOST:PORT, or set RAY_ADDRESS")
    shares = [LocalShare(at, data / name) for at, data in nodes]
    found = [share for share in shares if (share.path / MANIFEST).exists() or (share.path / MAP).exists()]
    holders = [share.holder() for share in found]
    return [
        share for share, holder in zip(found, holders, strict=True) if holder is None or holder.connection != NO_SOCKETS
    ]


def _nodes_here() -> list[tuple[str, Path]]:
    """The nodes with data folders that this user runs on this machine: the address of the cluster, and the folder."""
    found: set[tuple[str, Path]] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if not words[0].endswith(b"/raylet") or process.stat().st_uid != os.geteuid():
                continue
            with (process / "environ").open("rb") as file:
                environment = file.read(_ENVIRONMENT_BYTES_MAX).split(b"\0")
            data = _value(environment, f"{DATA_VARIABLE}=")
            address = _value(words, "--gcs-address=")
            if data and address:
                found.add((address, Path(data)))
    return sorted(found)


def _value(texts: list[bytes], name: str) -> str:
    start = name.encode()
    return next((os.fsdecode(text.removeprefix(start)) for text in texts if text.startswith(start)), "")


def _is_same(address: str, wanted: str) -> bool:
    """Whether two addresses, of which the first is that of a node of this machine, are of the same head."""
    if address == wanted:
        return True
    (host, _, port), (wanted_host, _, wanted_port) = address.rpartition(":"), wanted.rpartition(":")
    if port != wanted_port:
        return False
    hosts, wanted_hosts = _resolved(host), _resolved(wanted_host)
    return bool(hosts & wanted_hosts) or (all(map(_is_local, hosts)) and any(map(_is_local, wanted_hosts)))


def _resolved(host: str) -> set[str]:
    with contextlib.suppress(OSError, UnicodeError):
        return {str(one[4][0]) for one in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)}
    return set()


def _is_local(host: str) -> bool:
    """Whether it is an address of this machine, and not of another one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trying:
        trying.bind((host, 0))
        return True
    return False
