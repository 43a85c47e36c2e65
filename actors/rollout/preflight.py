"""Trial: what the nodes of a cluster have of an application, and whether its code fits there, before it is deployed.

Beside all steps. One short task on every node that is up, in a worker of its own that ends afterwards: modules that it
has loaded would be taken for those of the next trial. It loads the classes as actors will, from a folder that is
removed again, reads whose store is in the node's data folder, and compares the classes with the logs that are at home
there (`runtime/checks/dry_run.py`).

Rule kept here: nothing is changed, on no node, and no lock is taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...runtime.checks.dry_run import dry_run
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CodeMismatch, DefinitionError, RayfoldError, StoreMismatch, Unavailable, UnknownEvent
from ...runtime.store.node_store import open_share
from ...runtime.store.store import AGENDAS, Store
from ..cluster.node import NODE_LABEL, data_folder_here, node_id_here
from ..cluster.ray_cluster import Cluster, NodeFacts
from ..cluster.rpc import Method, Reply, call, one_line, replies

__all__ = ["Found", "store_in", "try_on_nodes"]

_LOOK_S: Final = 0.5
"""Seconds between two checks of whether the nodes that have not answered yet are still up."""

_TIMEOUT_S: Final = 600.0
"""Timeout for a worker to start, to load the application's classes, and to read a sample of each log: seconds; of logs
of an older format, which do not record what they hold, the whole log is read once."""


class Found(NamedTuple):
    """What one node answered."""

    node: str
    """Its name."""
    node_id: str
    store_id: str
    """The id of the store that it has a share of; empty if it has none."""
    partitions: int


async def try_on_nodes(name: str, classes: bytes, packed: bytes, cluster: Cluster) -> list[Found]:
    """What each node that is up has of the application's store. `packed`: the modules that its classes are in. A node
    that goes down before it has answered is left out: Ray's directory has one that was killed as up for seconds, and
    one that went with the head for seconds after the head is back.

    Raises what keeps a node from loading the classes, with the name of the node, `CodeMismatch` and others for what
    speaks against them there, and `Unavailable` if a node does not answer.
    """
    nodes = [node for node in await asyncio.to_thread(cluster.nodes) if node.alive]
    asked = {node.node_id: asyncio.create_task(_try_on(node, name, classes, packed)) for node in nodes}
    try:
        while waited_for := {task for task in asked.values() if not task.done()}:
            if (await asyncio.wait(waited_for, timeout=_LOOK_S))[0]:
                continue
            up = {node.node_id for node in await asyncio.to_thread(cluster.nodes) if node.alive}
            for node_id in asked.keys() - up:  # the task would wait there for the node to be back
                asked.pop(node_id).cancel()
        return await asyncio.gather(*asked.values())
    finally:
        for task in asked.values():
            task.cancel()


def store_in(name: str, found: Iterable[Found]) -> Found | None:
    """The store that these nodes have; None if there is none. Raises `StoreMismatch` where they have several."""
    having = {one.store_id: one for one in found if one.store_id}
    if len(having) > 1:
        shares = ", ".join(f"{one.node} has {one.store_id}" for one in having.values())
        raise StoreMismatch(name, f"the nodes have shares of different stores: {shares}", "move all but one away")
    return next(iter(having.values()), None)


async def _try_on(node: NodeFacts, name: str, classes: bytes, packed: bytes) -> Found:
    import ray

    remote: Any = ray.remote(num_cpus=0, max_calls=1)(_try_here)
    options: Any = remote.options(max_retries=1, label_selector={NODE_LABEL: node.node_id})
    trying: Method[Reply[Found], str, bytes, bytes] = options
    try:
        found = await call(trying, name, classes, packed, timeout_s=_TIMEOUT_S)
    except DefinitionError as error:
        where, what, remedy = error.args
        raise DefinitionError(f"{where}, on node {node.name}", what, remedy) from None
    except RayfoldError:
        raise
    except Exception as error:
        what = f"{name} could not be tried there: {one_line(error) or f'no answer in {_TIMEOUT_S:g} s'}"
        raise Unavailable(f"node {node.name}", what) from error
    return found._replace(node=node.name, node_id=node.node_id)


@replies
def _try_here(name: str, classes: bytes, packed: bytes) -> Found:
    with ExitStack() as open_until_done:
        catalogue = _loaded(classes, packed, open_until_done)
        store = _store_here(name)
        if store is None:
            return Found("", "", "", 0)
        _compare(name, catalogue, store, open_until_done)
        return Found("", "", store.store_id, store.partitions)


def _loaded(classes: bytes, packed: bytes, open_until_done: ExitStack) -> Catalogue:
    """Raises `DefinitionError` if a module cannot be imported here."""
    from ..packaging.shipping import unship

    folder = open_until_done.enter_context(tempfile.TemporaryDirectory(prefix="rayfold-trial-"))
    if packed:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            archive.extractall(folder)
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
    return unship(classes, importable=hashlib.sha256(packed).hexdigest() if packed else "")


def _store_here(name: str) -> Store | None:
    """The store of which this node has a share. What an interrupted creation has left is none."""
    data = data_folder_here()
    share = None if data is None else open_share(Path(data) / name, node_id_here())
    if share is None or (share.map is None and not share.whole):
        return None
    store = share.store
    if share.map is None and not any(_is_used(store.open_reader(number)) for number in range(store.partitions)):
        return None
    return store


def _compare(name: str, catalogue: Catalogue, store: Store, open_until_done: ExitStack) -> None:
    """Raises what speaks against these classes for the logs that are at home here: what does not fit what they hold,
    and of a sample what cannot be read or folded."""
    readers = {}
    for number in set(range(store.partitions)) - store.away:
        readers[number] = store.open_reader(number)
        open_until_done.callback(readers[number].close)
    run = dry_run(catalogue, readers, agendas=store.path / AGENDAS)
    if run.misfits:
        raise CodeMismatch(name, run.misfits)
    for kind in run.unreadable:
        raise UnknownEvent(kind.name, kind.schema_version, kind.why)
    for stream, why in run.failed:
        raise StoreMismatch(name, f"{stream} cannot be folded with this code: {why}", "`rayfold check` lists all")


def _is_used(reader: Any) -> bool:
    try:
        return bool(reader.head() or reader.epoch())
    finally:
        reader.close()
