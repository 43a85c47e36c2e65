"""A driver of a cluster, in a process of its own: it joins the address it is given, and obeys its standard input.

One line of JSON answers each line. `nodes`: what the cluster knows of its nodes. `await NAME up|gone`: the same, once
the node is. `place NAME`: start the detached actor of that node. `ask NAME`: the actor's calls so far, its process and
data folder, found by its name, as soon as it answers. `alone FOLDER`: start a runtime that knows nothing of nodes in
that folder, and stop it again: the sessions that its processes had.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, Final

from rayfold import BlockingRuntime
from rayfold.actors.cluster.node import DATA_VARIABLE, NODE_LABEL
from rayfold.actors.cluster.ray_cluster import Cluster, NodeFacts
from tests.bank import Account, Balances

PATIENCE_S: Final = 60.0
WAITING: Final = threading.Event()


class Seat:
    """What sits on a node and returns where that is."""

    def __init__(self) -> None:
        self.calls = 0

    def say(self) -> list[Any]:
        """How often it was asked, and where it is."""
        self.calls += 1
        return [self.calls, os.getpid(), os.environ.get(DATA_VARIABLE)]


def main(address: str) -> None:
    """Until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints there whenever a node is lost
    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=1, cluster=address)
    print(json.dumps(cluster.address), file=answers, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        print(json.dumps(OBEYS[word](cluster, *rest)), file=answers, flush=True)
    cluster.stop()


def nodes(cluster: Cluster) -> list[NodeFacts]:
    """All of them."""
    return cluster.nodes()


def await_node(cluster: Cluster, name: str, how: str) -> list[NodeFacts]:
    """All of them, once that one is up or gone. Ray does not report it: it has to be polled."""
    deadline = time.monotonic() + PATIENCE_S
    while next(one for one in cluster.nodes() if one.name == name).alive != (how == "up"):
        assert time.monotonic() < deadline, cluster.nodes()
        WAITING.wait(0.1)
    return cluster.nodes()


def place(cluster: Cluster, name: str) -> list[Any]:
    """Start the actor of a node, bound to it."""
    import ray

    node_id = next(one for one in cluster.nodes() if one.name == name).node_id
    options: dict[str, Any] = {"lifetime": "detached", "max_restarts": -1, "label_selector": {NODE_LABEL: node_id}}
    actor: Any = ray.remote(Seat).options(name=name, num_cpus=0, **options).remote()
    said: list[Any] = ray.get(actor.say.remote(), timeout=PATIENCE_S)
    return said


def ask(cluster: Cluster, name: str) -> list[Any]:
    """What the actor of a node answers, however often it has to be asked."""
    import ray

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            said: list[Any] = ray.get(cluster.actor_named(name).say.remote(), timeout=5)
            return said
        except (ray.exceptions.RayError, ValueError):
            assert time.monotonic() < deadline
            WAITING.wait(0.1)


def alone(cluster: Cluster, folder: str) -> list[int]:
    """The sessions of the processes of a runtime on one machine, read while it runs."""
    with BlockingRuntime(folder, aggregates=[Account], projections=[Balances], partitions=4, replicas=3) as bank:
        status: Any = bank.status()
        assert all(one.alive for one in (*status.partitions, *status.projectors))
        return [os.getsid(one.pid) for one in (*status.partitions, *status.projectors)]


OBEYS: Final[dict[str, Any]] = {"nodes": nodes, "await": await_node, "place": place, "ask": ask, "alone": alone}

if __name__ == "__main__":
    main(sys.argv[1])
