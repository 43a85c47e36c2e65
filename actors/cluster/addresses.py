"""Addresses: which Ray cluster is meant by `"auto"`, and whether its head answers, found out without Ray."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Final

from ...runtime.errors import CallerError, Unavailable
from ..os_process.reaper import MARK
from .cluster_file import address_in

__all__ = ["find_address", "is_loopback", "check_reachable"]

_CONNECT_TIMEOUT_S: Final = 5.0
"""Timeout of a connection to the head of a cluster before it is joined."""

_ANSWER_TIMEOUT_S: Final = 15.0
"""For its first bytes, which on a machine that is overloaded take longer than the connection."""

_HTTP2_SETTINGS: Final = b"\x04"
"""The type of a frame, after the three bytes of its length."""

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
"""What a client begins with: the preface, and settings without any."""


def find_address(folder: Path) -> str:
    """The address of the cluster that `"auto"` is. Raises `CallerError` where there are several, and `Unavailable`
    where there is none."""
    if address := os.environ.get("RAY_ADDRESS", "") or _present_address():
        return address
    if address := address_in(folder.absolute()):
        if why := _why_not(address):
            what = f"the cluster of {folder.absolute()}, at {address}, does not answer: {why}"
            raise Unavailable("the Ray cluster 'auto'", f"{what}; `rayfold up` there starts what is missing of it")
        return address
    here = sorted(address for address in _addresses_here() if _is_address(address))
    why_not = {address: _why_not(address) for address in here}
    answering = [address for address in here if not why_not[address]]
    if len(answering) > 1:
        what = f"{len(answering)} clusters run on this machine, and none is of this folder: {', '.join(answering)}"
        raise CallerError(f"{what}; choose one with HOST:PORT, or set RAY_ADDRESS")
    if answering:
        return answering[0]
    found = "none runs on this machine"
    if here:
        found = f"processes of the one at {here[0]} run, and {why_not[here[0]]}"
    elif noted := _noted_address():
        found += f"; the last one was at {noted}"
    raise Unavailable("the Ray cluster 'auto'", f"{found}; `rayfold up` starts one, and HOST:PORT names another")


def _present_address() -> str:
    """Of the Ray that this process is connected to; empty if it is to none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return str(ray.get_runtime_context().gcs_address)


def _addresses_here() -> set[str]:
    """Of the clusters that have a node on this machine, from the command lines of the nodes; without those that a
    program has started for itself alone."""
    found: set[str] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if not words[0].endswith(b"/raylet"):
                continue
            with contextlib.suppress(PermissionError):  # another user's
                if f"{MARK}=".encode() in (process / "environ").read_bytes():
                    continue
            found |= {word.partition(b"=")[2].decode() for word in words if word.startswith(b"--gcs-address=")}
    return found


def is_loopback(address: str) -> bool:
    """Whether the cluster at this address keeps to this machine."""
    return address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")


def _noted_address() -> str:
    """Of the last cluster of this machine, as Ray has noted it down, whether it still runs or not; empty if none is."""
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def check_reachable(address: str) -> None:
    """Raise `Unavailable` soon where no head of a cluster answers: Ray itself tries for minutes, deaf to Ctrl-C."""
    if not _is_address(address):
        raise CallerError(f"the address of a Ray cluster is HOST:PORT or 'auto', not {address!r}")
    if why := _why_not(address):
        what = f"{why}; see whether its head runs; `rayfold up` starts a cluster here"
        raise Unavailable(f"the Ray cluster {address!r}", what)


def _is_address(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal()


def _why_not(address: str) -> str:
    """Why no head of a cluster can be reached there; empty if one can. A head that is frozen, and another program at
    its port, listen too: a head sends the settings of HTTP/2 (RFC 9113, 3.4) at each connection."""
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S)
    except (OSError, OverflowError) as error:
        return f"no process listens there: {error}"
    with connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return ""  # what answers is encrypted
        try:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.sendall(_HTTP2_PREFACE)
            answered = connection.recv(4)
        except OSError:
            answered = b""
    if answered[3:4] == _HTTP2_SETTINGS:
        return ""
    return "what listens there does not answer as the head of a cluster does"
