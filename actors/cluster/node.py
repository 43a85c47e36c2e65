"""Node: who a machine of a cluster is, kept in its data folder and not in Ray, so that it survives every restart.

Beside all steps. A *node* is a Ray node that has a *data folder*. The folder holds `node.json` (the node's id and
name) and one folder for each store that has partitions at home there. Ray gives a node another id each time it starts;
this one stays, and a node shows it to the cluster as the label `rayfold-node`, so that an actor can be bound to where
its log lies. The processes of a node find their data folder in the environment: `RAYFOLD_DATA`.

Rules kept here: the identity is made once, whole or not at all, and never made anew over one that is damaged; a data
folder belongs to one running node at a time. Nothing here imports ray.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...runtime.durable_files import decode_facts, encode_facts, fsync_folder
from ...runtime.errors import InvalidId, StorageFailed, StoreInUse, StoreMismatch, StoreMissing
from ...runtime.private import make_private_folder, open_private, tighten
from ...runtime.store.partition_map import MAP, PROPOSAL
from ...runtime.store.store_lock import MANIFEST

__all__ = [
    "DATA_VARIABLE",
    "NAME_LABEL",
    "NODE_LABEL",
    "NodeIdentity",
    "create_or_read_node",
    "data_folder_here",
    "hold_node",
    "node_id_here",
    "read_node",
    "verify_node",
]

NODE_LABEL: Final = "rayfold-node"
"""The label under which a Ray node shows the id of its data folder."""

NAME_LABEL: Final = "rayfold-node-name"
"""... and its name, for people."""

DATA_VARIABLE: Final = "RAYFOLD_DATA"
"""Where the processes of a node find its data folder: set for its raylet, and inherited by the workers."""

NODE_FILE: Final = "node.json"
LOCK: Final = "node.lock"
FORMAT: Final = 1

NODE_FILE_BYTES_MAX: Final = 65_536
"""It has under 300."""

_NODES_OWN: Final = re.compile(r"node\.(json(\.\d+\.new)?|lock|log)|gcs|code|lost\+found|\..*")
"""What a node keeps beside its stores, what the root of a disk has, and the home of a service's user (`.ray`)."""

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
"""What Ray takes as the value of a label."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who a node is, for as long as its data folder exists."""

    node_id: str
    """A UUID, made with the data folder."""
    name: str
    """For people; unique by custom, not by force. What counts is the id."""

    @property
    def labels(self) -> dict[str, str]:
        """How the Ray node of this data folder is labelled."""
        return {NODE_LABEL: self.node_id, NAME_LABEL: self.name}

    def __str__(self) -> str:
        return f"node {self.name} ({self.node_id})"


def create_or_read_node(folder: str | os.PathLike[str], name: str) -> NodeIdentity:
    """The identity in this data folder, made there under `name` if the folder is missing or has none.

    The name of an existing one stands. Raises `InvalidId` for a name that cannot be a label, and what `read_node` does.
    """
    path = Path(folder).absolute()
    if not _NAME.fullmatch(name):
        raise InvalidId("node name", name, "must be 1 to 63 letters, digits, '-', '_' or '.', none of these at an end")
    try:
        _check_may_be_data_folder(path)
        make_private_folder(path)
        fsync_folder(path.parent)
        if not (path / NODE_FILE).exists():
            _write(path, NodeIdentity(str(uuid.uuid4()), name))
    except OSError as error:
        raise StorageFailed(str(path), f"cannot make a data folder here: {error.strerror or error}") from error
    return read_node(path)


def read_node(folder: str | os.PathLike[str]) -> NodeIdentity:
    """The identity in this data folder.

    Raises `StoreMissing` if there is none, `StoreMismatch` if it is damaged or of another format, `StorageFailed`.
    """
    path = Path(folder).absolute() / NODE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(NODE_FILE_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        what = f"this is not the data folder of a node: it holds no {NODE_FILE}"
        raise StoreMissing(str(path.parent), what) from None
    except OSError as error:
        raise StorageFailed(str(path), error.strerror or str(error)) from error
    remedy = f"restore {NODE_FILE} from a copy; the stores beside it are not touched"
    facts = decode_facts(content, path, "the identity of the node", remedy)
    if facts.get("format") != FORMAT:
        what = f"the data folder has format {facts.get('format')}"
        raise StoreMismatch(str(path), what, f"this version of Rayfold reads format {FORMAT}")
    return NodeIdentity(str(facts["node_id"]), str(facts["name"]))


def verify_node(folder: str | os.PathLike[str], node_id: str) -> NodeIdentity:
    """The identity in this data folder, which must be that of `node_id`, the label of the Ray node.

    Raises `StoreMismatch` for the data folder of another node, and what `read_node` does.
    """
    try:
        found = read_node(folder)
    except StoreMissing as error:
        what = f"no {NODE_FILE} here, where the data folder of node {node_id} belongs; bring it back, or mount its disk"
        raise StoreMissing(error.path, what) from None
    if found.node_id != node_id:
        what = f"this is the data folder of {found}, but the Ray node here is labelled {NODE_LABEL}={node_id}"
        raise StoreMismatch(str(Path(folder).absolute()), what, "start each node with the data folder that is its own")
    return found


def data_folder_here(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The data folder of the node that this process runs on; none where the node has none."""
    folder = environment.get(DATA_VARIABLE)
    return Path(folder) if folder else None


def node_id_here() -> str:
    """The id of the node that this process runs on; empty where the node has no data folder."""
    folder = data_folder_here()
    return read_node(folder).node_id if folder is not None else ""


def hold_node(folder: str | os.PathLike[str]) -> int:
    """Hold the data folder for the node that this process runs: the descriptor of a lock that ends with the process.

    The descriptor is inheritable on purpose: `exec` hands the hold on to the program that becomes the node.
    Raises `StoreInUse`, which names the process that holds it, or `StorageFailed`.
    """
    path = Path(folder).absolute()
    try:
        tighten(path)
        descriptor = open_private(path / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise StorageFailed(str(path / LOCK), f"cannot open the lock: {error.strerror or error}") from error
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreInUse(str(path), f"a running node (process {holder})") from None
    line = f"{os.getpid()}\n".encode()
    os.pwrite(descriptor, line, 0)
    os.ftruncate(descriptor, len(line))
    return descriptor


def _check_may_be_data_folder(path: Path) -> None:
    """Before a folder becomes the data folder of a node, and all that it holds is made private. Raises `StoreMismatch`
    for one that holds what is neither a node's nor a store; `OSError`."""
    if not path.is_dir() or (path / NODE_FILE).exists():
        return
    others = [one.name for one in path.iterdir() if not _NODES_OWN.fullmatch(one.name) and not _is_store(one)]
    if others:
        listed = ", ".join(sorted(others)[:3])
        what = f"it holds no {NODE_FILE}, and things that are neither a node's nor a store: {listed}"
        raise StoreMismatch(str(path), what, f"choose an empty folder, or bring {NODE_FILE} back")


def _is_store(path: Path) -> bool:
    return any((path / name).exists() for name in (MANIFEST, MAP, PROPOSAL))


def _write(folder: Path, identity: NodeIdentity) -> None:
    """Beside its place, fsynced, then linked there: whole or not at all, and the first of two makers wins."""
    facts = {"format": FORMAT, "node_id": identity.node_id, "name": identity.name}
    temporary = folder / f"{NODE_FILE}.{os.getpid()}.new"
    with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(encode_facts(facts))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, folder / NODE_FILE)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    fsync_folder(folder)
