"""Cluster: the Ray that the actors run on, started here or joined, with the settings that measurements call for.

Rules kept here: a runtime never joins a Ray that merely happens to run on the machine, unless told to (`cluster=`); if
the caller has initialised Ray in this process, that one is used and left running. What this process started, it stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...runtime.errors import CallerError, RayfoldError, StorageFailed, Unavailable
from ...runtime.printable import printable_log
from ...runtime.private import check_owner, make_private_folder, write_private
from ..process.reaper import MARK
from .node import DATA_VARIABLE, NAME_LABEL, NODE_LABEL
from .ray_session import RaySession

log = printable_log(__name__)

if TYPE_CHECKING:
    from .local import LocalCluster, LocalNodes

__all__ = [
    "GCS_FOLDER",
    "OBJECT_STORE_BYTES",
    "OWN_ACTOR_SLOT",
    "SUPERVISOR",
    "Cluster",
    "NodeFacts",
    "ensure_token",
    "has_token",
    "node_environment",
    "prepare_environment",
]

OWN_ACTOR_SLOT: Final = "rayfold_own_actor"
"""The Ray resource of which each own actor takes one: `num_cpus=0` alone would admit any number of them."""

_ENVIRONMENT: Final = {
    # Ray starts workers at nice 15: they would lose every race against the process that calls them.
    "RAY_worker_niceness": "0",
    # Whoever reaches a Ray cluster runs code in it: only with the token.
    "RAY_AUTH_MODE": "token",
    # Under `uv run` Ray would start workers in a copy of the project with a fresh environment.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Whatever calls Ray after a runtime has left it would otherwise join any Ray that it finds on this machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}

_OF_A_PROGRAM: Final = {
    # After that long without its head Ray ends the process, which is not Ray's: a web service, say. Ray's own 60 s stay
    # for the processes of nodes (`node_environment`).
    "RAY_gcs_rpc_server_reconnect_timeout_s": "31536000",
}
"""For the process that uses a cluster, and not for the nodes that it starts."""

_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""A local cluster otherwise listens on all interfaces; `0` makes it loopback only, and no other machine can join."""

_READ_AT_IMPORT: Final = {"RAY_AUTH_MODE", _LOOPBACK, "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}

_DETECTION: Final = {
    # A lost node is noticed after some 5 s, where Ray's defaults take up to 65 s. Only where there are several nodes:
    # a machine that is alone has nobody to be missed by, and much to lose from a false alarm when it is busy.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Not `RAY_grpc_client_keepalive_*`: at 3 s Ray's own servers answer with "too many pings" and close the connection,
    # and a killed or frozen node was noticed no sooner with it (at once, and after 8.6 s).
    # Not `RAY_gcs_rpc_server_reconnect_timeout_s`, which would have the processes of a cut-off node end sooner than
    # after Ray's 60 s: the nodes of a head that restarts would end as well. That a lost node's actors go on is harmless
    # here: the log refuses what they append once another has taken over.
}

GCS_FOLDER: Final = "gcs"
"""In the head's data folder: Ray's own directory of nodes, actors and names, so that a restarted head knows them."""

OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024
"""Nothing large goes through the object store; Ray's default of 30 % of memory would be reserved for nothing."""

SUPERVISOR: Final = "/supervisor"
"""What the name of a spread system's supervisor in Ray ends with."""

_NAMESPACE: Final = "rayfold"

_REACH_TIMEOUT_S: Final = 5.0
"""For a connection to the head of a cluster that is to be joined."""

_ANSWER_TIMEOUT_S: Final = 15.0
"""For its first bytes, which on a machine that is overloaded take longer than the connection."""

_HTTP2_SETTINGS: Final = b"\x04"
"""The type of a frame, after the three bytes of its length."""

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
"""What a client begins with: the preface, and settings without any."""


class NodeFacts(NamedTuple):
    """One node of a cluster, as Ray knows it now."""

    node_id: str
    """Of its data folder: the same after every restart."""
    name: str
    ray_node_id: str
    """Ray's own id, which is another one after each start."""
    address: str
    alive: bool


@dataclass(slots=True)
class Cluster:
    """A Ray cluster that this process is connected to."""

    namespace: str
    session: RaySession | None
    """The connection of this process, to be left; None if somebody else connected it."""
    counts_slots: bool
    """Whether the cluster has `OWN_ACTOR_SLOT`s; one that somebody else started may not."""
    local_nodes: LocalNodes | None = None
    """The nodes that were started for it, to be stopped with it."""

    @classmethod
    def start_or_join(
        cls,
        *,
        num_cpus: int | None,
        own_actors_max: int,
        cluster: LocalCluster | str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> Cluster:
        """The Ray of this process: the one the caller has initialised, or else a new local one.

        `cluster`: a `LocalCluster`, whose nodes are started with data folders in `folder`; `"HOST:PORT"`; or `"auto"`:
        the cluster that `RAY_ADDRESS` names, else the one that `rayfold up` has started in `folder` (default: the
        working directory), else the only one on this machine. Raises `Unavailable` if it cannot be reached or started,
        and `CallerError` if this process is connected to another Ray, or if there are several to choose from.
        """
        if cluster is None:
            return cls._start_alone(num_cpus, own_actors_max)
        if isinstance(cluster, str):
            return cls._join(cluster, Path(folder or "."))
        from .local import LocalNodes

        if folder is None:
            raise CallerError("a local cluster needs a folder for the data folders of its nodes")
        nodes = LocalNodes(cluster, folder, own_actors_max=own_actors_max)
        nodes.start()
        try:
            joined = cls._join(nodes.address, Path(folder))
        except BaseException:
            nodes.stop(grace_s=0)
            raise
        joined.local_nodes = nodes
        return joined

    @classmethod
    def _start_alone(cls, num_cpus: int | None, own_actors_max: int) -> Cluster:
        prepare_environment()
        import ray  # a second of CPU: paid when a runtime starts, not when rayfold is imported

        def start() -> None:
            if os.environ.get("RAY_AUTH_MODE", "token") == "token":
                ensure_token(os.environ)  # Ray itself would write it with mode 0644
            with _kept_from_processes():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    namespace=_NAMESPACE,
                    resources={OWN_ACTOR_SLOT: own_actors_max} if own_actors_max else None,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )

        try:
            session = RaySession.join(start, starts=True)
        except RayfoldError:
            raise
        except Exception as error:  # Ray has no class of its own for it
            told = " ".join(str(error).split())
            remedy = "on a machine that is too busy it may later"
            raise Unavailable("the Ray of this program", f"does not come up: {told:.300}; {remedy}") from error
        return cls._connected(session)

    @classmethod
    def _join(cls, wanted: str, folder: Path) -> Cluster:
        address = _found(folder) if wanted == "auto" else wanted
        prepare_environment(loopback=_is_loopback(address))
        _reach(address)
        import ray

        if ray.is_initialized():
            present = ray.get_runtime_context().gcs_address
            if address != present:
                raise CallerError(f"this process is connected to the Ray at {present} and cannot join {address} too")

        def join() -> None:
            ray.init(address=address, namespace=_NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)

        try:
            return cls._connected(RaySession.join(join, starts=False))
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            told = " ".join(str(error).split())
            remedy = "see whether it runs and whether this user has its token; `rayfold up` starts one here"
            raise Unavailable(f"the Ray cluster {address!r}", f"cannot be joined: {told:.300}; {remedy}") from error

    @classmethod
    def inside(cls) -> Cluster:
        """The cluster of the actor that asks."""
        return cls._connected(None)

    @classmethod
    def _connected(cls, session: RaySession | None) -> Cluster:
        import ray

        return cls(ray.get_runtime_context().namespace, session, OWN_ACTOR_SLOT in ray.cluster_resources())

    @property
    def address(self) -> str:
        """Where another process reaches this cluster."""
        import ray

        address: str = ray.get_runtime_context().gcs_address
        return address

    def nodes(self) -> list[NodeFacts]:
        """The nodes that have data folders, by name; also those that are gone, as long as Ray remembers them.

        Empty for a Ray that was started for one machine alone. A call to Ray's directory, of a few milliseconds.
        """
        import ray

        found: dict[str, NodeFacts] = {}
        for one in ray.nodes():
            labels = one.get("Labels") or {}
            if node_id := labels.get(NODE_LABEL):
                name = labels.get(NAME_LABEL, "") or node_id
                facts = NodeFacts(node_id, name, one["NodeID"], one["NodeManagerAddress"], bool(one["Alive"]))
                if facts.alive or node_id not in found:  # a node that was restarted is there twice
                    found[node_id] = facts
        return sorted(found.values(), key=lambda node: (node.name, node.node_id))

    def is_attached(self) -> bool:
        """Whether the node that this program is attached to is still up. Once it is not, nothing reaches this program
        any more, not even when a node has been started again in its place."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        return any(one["NodeID"] == here and one["Alive"] for one in ray.nodes())

    @property
    def node_socket(self) -> str:
        """The socket of the node that this process is attached to, which is there as long as the node is."""
        from ray._private import worker

        node: Any = worker._global_node
        return str(node.raylet_socket_name)

    def systems(self) -> list[str]:
        """The names of the spread systems that run here, deployed or not."""
        from ray.util import list_named_actors

        names: list[str] = list_named_actors()
        return sorted(name.removesuffix(SUPERVISOR) for name in names if name.endswith(SUPERVISOR))

    def actor_named(self, name: str) -> Any:
        """The handle of a named actor. Raises `ValueError` if it has ended."""
        import ray

        return ray.get_actor(name, self.namespace)

    def leave_lost(self) -> None:
        """The node that this process was attached to has ended: end the connection, for all who share it. One that the
        program itself has made is left as it is."""
        session, self.session = self.session, None
        if session is not None:
            session.end()

    def stop(self) -> None:
        """End every process of a cluster that was started here, unless another runtime of this program uses it; leave
        any other cluster alone."""
        nodes, self.local_nodes = self.local_nodes, None
        session, self.session = self.session, None
        try:
            if session is not None:
                session.leave()
        finally:
            if nodes is not None:
                nodes.stop()


def prepare_environment(*, loopback: bool = True) -> None:
    """Set what Ray reads from the environment, except what the caller has set.

    Whether Ray uses tokens is read when it is imported: once it is, changing that would set this process and the
    cluster it starts at odds with one another. `loopback`: whether the cluster keeps to this machine.
    """
    imported = "ray" in sys.modules
    for name, value in {**_ENVIRONMENT, **_OF_A_PROGRAM, **({_LOOPBACK: "0"} if loopback else {})}.items():
        if not (imported and name in _READ_AT_IMPORT):
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def _kept_from_processes() -> Iterator[None]:
    """The processes of a Ray of this program, which inherit its environment, do without what is for programs: they
    would go on for ever after a program that was killed. So does the program itself, since Ray reads its settings
    between starting them and connecting to them: without its Ray for 60 s, it is ended by it."""
    ours = {name: value for name, value in _OF_A_PROGRAM.items() if os.environ.get(name) == value}
    for name in ours:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(ours)


def node_environment(base: Mapping[str, str], data: Path, *, head: bool, loopback: bool) -> dict[str, str]:
    """The environment of the processes of a node: `base`, the data folder, and settings that `base` does not have.

    head: also keep Ray's directory in the data folder. loopback: whether all nodes are on this machine.
    """
    environment = {**_ENVIRONMENT, **_DETECTION, **base, DATA_VARIABLE: str(data)}
    environment.pop("RAY_ADDRESS", None)  # of another cluster: this node's workers would inherit it
    for name, value in _OF_A_PROGRAM.items():
        if environment.get(name) == value:
            del environment[name]
    if loopback:
        environment[_LOOPBACK] = "0"
    else:
        environment.pop(_LOOPBACK, None)
    if head:
        environment.setdefault("RAY_gcs_storage", "rocksdb")
        environment.setdefault("RAY_gcs_storage_path", str(data / GCS_FOLDER))
    return environment


def ensure_token(environment: Mapping[str, str]) -> None:
    """Make the token of this user's clusters if there is none; nothing if the environment gives one or wants none.

    Raises `StorageFailed` if it cannot be written.
    """
    if environment.get("RAY_AUTH_MODE", "token") != "token" or environment.get("RAY_AUTH_TOKEN"):
        return
    path = _token_path(environment)
    try:
        if not path.parent.exists():
            make_private_folder(path.parent)
        if not path.exists():
            _make_token(path)
        _protect_token(path)
    except OSError as error:
        raise StorageFailed(str(path), f"cannot write the token: {error.strerror or error}") from error


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether this user has a token, or none is wanted."""
    if environment.get("RAY_AUTH_MODE", "token") != "token" or environment.get("RAY_AUTH_TOKEN"):
        return True
    return _token_path(environment).exists()


def _token_path(environment: Mapping[str, str]) -> Path:
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def _make_token(path: Path) -> None:
    """Written beside its place and linked there: it is never there in part, nor open to others, and the first of two
    makers wins."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    write_private(temporary, secrets.token_hex(32).encode())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _protect_token(path: Path) -> None:
    """Tighten a token that Ray itself has written: readable by every user of the machine. Raises `NotPrivate` for that
    of another user."""
    check_owner(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("%s could be read by other users of this machine; make another one if some are not trusted", path)
        path.chmod(0o600)


def _found(folder: Path) -> str:
    """The address of the cluster that `"auto"` is. Raises `CallerError` where there are several, and `Unavailable`
    where there is none."""
    from .file import address_in

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
        raise CallerError(f"{what}; say which as HOST:PORT, or set RAY_ADDRESS")
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
    """Of the clusters that have a node on this machine, as the command lines of the nodes say; without those that a
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


def _is_loopback(address: str) -> bool:
    """Whether the cluster at this address keeps to this machine."""
    return address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")


def _noted_address() -> str:
    """Of the last cluster of this machine, as Ray has noted it down, whether it still runs or not; empty if none is."""
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _reach(address: str) -> None:
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
    its port, listen too: a head sends the settings of HTTP/2 (RFC 9113, 3.4) as soon as somebody connects."""
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_TIMEOUT_S)
    except (OSError, OverflowError) as error:
        return f"nobody listens there: {error}"
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
