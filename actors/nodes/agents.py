"""NodeAgents: those of all nodes, and the map on which they agree.

Beside all steps, on the event loop of the process that supervises a system on a cluster. What is here decides whether
there is a store, which one, and where its partitions are; nothing of that is remembered anywhere but in the shares
themselves.

Rules kept here: a new store is made only where every known node of the cluster has answered that it has nothing of one,
but for nodes that are down and that the deployer has given up by name; a missing answer is never taken for "nothing". A
map is never forced on a node: each merges it with what it has, and what it answers is learnt here. A node that is gone
is not waited for: it is given the map when it is back.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar, TypeVarTuple

from ...runtime.errors import RayfoldError, StoreInUse, StoreMismatch, StoreMissing, Unavailable
from ...runtime.printable import printable_log
from ...runtime.store.node_share import ShareFacts
from ...runtime.store.partition_map import PROPOSAL, PartitionMap, merged
from ...runtime.stream import new_placement
from ..cluster.ray_cluster import NodeFacts
from ..cluster.retry import Patience, retried
from ..cluster.rpc import Method, Reply, call, kill, one_line
from .agent import NodeAgentPlan, Revive, Serve, start_node_agent
from .handle import NodeAgentHandle
from .new_store import check_all_answered
from .store import ClusterStore

__all__ = ["NodeAgents"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

log = printable_log(__name__)

_ANSWER_TIMEOUT_S: Final = 30.0
"""Timeout of a node agent's call: making the logs of a new store takes some 10 ms each, its process a second."""

_LEFTOVER_S: Final = 20.0
"""How long to wait for the node agent of a system that was killed to release its share."""

_RETRY_S: Final = 0.25

_ROUNDS_MAX: Final = 4
"""How often a map is published while nodes answer with a later one."""


class NodeAgents:
    """The shares of one store, each through its node agent."""

    def __init__(
        self,
        name: str,
        namespace: str,
        *,
        detached: bool,
        silent_s: float,
        revive: Revive | None = None,
        serve: Serve | None = None,
    ) -> None:
        """`silent_s`: how long a node agent may be silent, while its node is up, before there is another one. `revive`:
        how a node agent starts the supervisor again, and `serve`: how it serves programs; None where it should not."""
        self._map: PartitionMap | None = None
        """Once they are open."""
        self.troubles: dict[str, RayfoldError] = {}
        """Node id -> why its share cannot be used, though the node is up."""
        self.up: set[str] = set()
        """The nodes that are up, as far as is known; kept up to date by the supervisor."""
        self._name = name
        self._namespace = namespace
        self._detached = detached
        self._silent_s = silent_s
        self._revive, self._serve = revive, serve
        self._agents: dict[str, NodeAgentHandle] = {}

    @property
    def map(self) -> PartitionMap:
        """On which the nodes agree. There is one as soon as they are open."""
        assert self._map is not None
        return self._map

    @property
    def store(self) -> ClusterStore:
        """The store, as its map is now."""
        return ClusterStore(self._name, self._namespace, self.map)

    def agent(self, node_id: str) -> NodeAgentHandle:
        """The agent of a node, started if there is none."""
        agent = self._agents.get(node_id)
        if agent is None:
            plan = NodeAgentPlan(self._name, node_id, self._namespace, self._detached, self._revive, self._serve)
            agent = self._agents[node_id] = start_node_agent(plan)
        return agent

    async def open(
        self,
        nodes: Iterable[NodeFacts],
        partitions: int | None,
        partitions_default: int,
        *,
        create: bool = True,
        store_id: str = "",
        without: Collection[str] = (),
    ) -> None:
        """Find the store on these nodes, all nodes of the cluster, up or not; or make it there.

        `create`: whether a new store may be made if no node has one: that is, if every node has answered, and has none.
        `store_id`: the store that this system had before; no other one is opened, and none is made in its place.
        `without`: ids of nodes that a new store may be made without, if they are down.

        Raises `StoreMismatch` where nodes have shares of different stores, another store than `store_id`, or another
        number of partitions, `StoreMissing` if there is no store and none may be made, `StoreInUse`, and `Unavailable`
        if there is no node, none of them answers, or those that do not may have the store.
        """
        nodes = list(nodes)
        names = {node.node_id: node.name for node in nodes if node.alive}
        self.up = set(names)
        if not names:
            what = "no node of this cluster has a data folder; start its nodes with `rayfold up` or `rayfold node`"
            raise Unavailable(f"the store {self._name}", what)
        found = await self._facts(names)
        if not found:
            raise next(iter(self.troubles.values()))
        _check_one_store(self._name, found, names)
        maps = [facts.map for facts in found.values() if facts.map is not None]
        self._check_expected(found, create=create, store_id=store_id)
        if maps:
            self._map = merged(maps).with_nodes(names)
        else:
            if not store_id:
                asked = [node for node in nodes if node.alive or node.node_id not in without]
                self._check_all_answered(asked, found)
            self._map = await self._adopted_or_made(found, names, partitions or partitions_default)
        if partitions not in (None, len(self.map.owners)):
            what = f"the store has {len(self.map.owners)} partitions, not {partitions}"
            remedy = f"open it with {len(self.map.owners)}: the number is fixed when a store is created"
            raise StoreMismatch(self._name, what, remedy)
        await self.publish(self.map)

    async def add(self, node: NodeFacts) -> None:
        """A node has joined, or is there again. Its newer facts are merged into the map, and the reverse."""
        try:
            facts = await self._open(node.node_id)
            if facts.store_id and facts.map is not None and facts.store_id == self.map.store_id:
                self._map = merged([self.map, facts.map])
            self._map = self.map.with_nodes({node.node_id: node.name})
        except RayfoldError as error:
            self._in_trouble(node.node_id, error)
        else:
            await self.publish(self.map)

    async def publish(self, store_map: PartitionMap) -> None:
        """Have all nodes that are up keep this map. Those that cannot are in trouble, and the others go on."""
        await self.learn(store_map, self.up)

    async def learn(self, store_map: PartitionMap, nodes: Iterable[str]) -> None:
        """This is part of the map from now on; these nodes are given it at once, the others when it is published. What
        they know besides is learnt from them."""
        self._map = merged([self.map, store_map])
        nodes = list(nodes)
        for _ in range(_ROUNDS_MAX):
            published = self.map
            await asyncio.gather(*(self._publish_to(node_id, published) for node_id in nodes))
            if self.map == published:
                return

    async def call(
        self,
        node_id: str,
        method: Callable[[NodeAgentHandle], Method[Reply[T], *Arguments]],
        *arguments: *Arguments,
        timeout_s: float = _ANSWER_TIMEOUT_S,
    ) -> T:
        """The answer of the agent of a node. Raises what it replies, and `Unavailable` if it does not answer."""
        try:
            return await call(method(self.agent(node_id)), *arguments, timeout_s=timeout_s)
        except RayfoldError:
            raise
        except Exception as error:
            what = f"the node agent of {self._name} does not answer there: {one_line(error) or 'no answer in time'}"
            raise Unavailable(f"node {self._node_name(node_id)}", what) from error

    def replace(self, node_id: str) -> None:
        """End a node agent that does not answer, though its node is up, and start another."""
        kill(self.agent(node_id))
        del self._agents[node_id]
        self.agent(node_id)

    async def end(self) -> None:
        """End all node agents; the shares are free."""
        for agent in self._agents.values():
            kill(agent)
        self._agents.clear()

    # -------------------------------------------------------------------------------------------------------------

    async def _facts(self, names: Mapping[str, str]) -> dict[str, ShareFacts]:
        """What each node has. A share that must not be used is an error; a node agent that does not answer is left
        out."""
        answers = await asyncio.gather(*(self._open(node_id) for node_id in names), return_exceptions=True)
        found = {}
        for node_id, answer in zip(names, answers, strict=True):
            if isinstance(answer, Unavailable):
                self._in_trouble(node_id, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[node_id] = answer
        return found

    async def _open(self, node_id: str) -> ShareFacts:
        """Waits for killed processes to release their shares, and for a node agent that is just being started. One that
        stays silent is replaced once: Ray may have forgotten it (`replacements.py`)."""
        began_s, failure, replaced = asyncio.get_running_loop().time(), Exception(), False

        def note(error: Exception) -> None:
            nonlocal failure
            failure = error

        async def opened(_: float) -> ShareFacts:
            nonlocal replaced
            waited_s = asyncio.get_running_loop().time() - began_s
            if waited_s > self._silent_s and isinstance(failure, Unavailable) and not replaced:
                replaced = True
                self.replace(node_id)
            return await self.call(node_id, lambda agent: agent.open, timeout_s=self._silent_s)

        again = (StoreInUse, Unavailable)
        for_s = self._silent_s + _LEFTOVER_S
        facts = await retried(opened, Patience(for_s, pause_s=_RETRY_S, again=again, never=(), note=note))
        self.troubles.pop(node_id, None)
        return facts

    def _check_expected(self, found: Mapping[str, ShareFacts], *, create: bool, store_id: str) -> None:
        """A store that is not there is made on the caller's word only, and never in the place of one that was."""
        present = {facts.store_id for facts in found.values() if facts.map is not None or (facts.whole and facts.used)}
        if store_id and not present:
            what = f"no node that is up has store {store_id}; start the nodes that have it, and it is opened by itself"
            raise Unavailable(f"the store {self._name}", what)
        if store_id and store_id not in present:
            what = f"the nodes have store {', '.join(present)}, and this system had store {store_id}"
            raise StoreMismatch(self._name, what, "bring that one back, or take the system down and deploy it again")
        if not present and not create:
            what = "no node that is up has a store of that name, and creation was not requested"
            raise StoreMissing(self._name, what)

    def _check_all_answered(self, nodes: Iterable[NodeFacts], found: Mapping[str, ShareFacts]) -> None:
        """Before a store is made, or one node's is taken for the whole. Raises `Unavailable`."""
        check_all_answered(self._name, nodes, found)

    async def _adopted_or_made(
        self, found: Mapping[str, ShareFacts], names: Mapping[str, str], partitions: int
    ) -> PartitionMap:
        """No node has a map: either one node has a whole store, which is spread from there, or there is none yet."""
        for node_id, facts in found.items():
            if facts.whole and facts.used:
                log.info("store %s of node %s becomes one of the cluster", facts.store_id, names[node_id])
                spread = PartitionMap.spread(
                    facts.store_id, facts.partitions, {node_id: names[node_id]}, facts.placement
                )
                return spread.with_nodes(names)
        if used := [names[node_id] for node_id, facts in found.items() if facts.used]:
            what = f"{', '.join(used)} has logs of it that were used, and no node has its map"
            raise StoreMissing(self._name, f"{what}; start the nodes that have one, or restore a backup")
        nodes = {node_id: names[node_id] for node_id in found}
        new = PartitionMap.spread(str(uuid.uuid4()), partitions, nodes, new_placement())
        new = await self._proposed(min(found), new)
        if absent := sorted(new.name_of(node_id) for node_id in set(new.owners) - found.keys()):
            what = f"its creation also involved {', '.join(absent)}"
            raise Unavailable(f"the store {self._name}", f"{what}; start what is missing, or move {PROPOSAL} away")
        await asyncio.gather(*(self.call(node_id, lambda agent: agent.create, new) for node_id in found))
        return new

    async def _proposed(self, node_id: str, new: PartitionMap) -> PartitionMap:
        """Another supervisor may be making a store, too: one node decides which it is."""
        return await self.call(node_id, lambda agent: agent.propose, new)

    async def _publish_to(self, node_id: str, store_map: PartitionMap) -> None:
        try:
            here = await self.call(node_id, lambda agent: agent.place, store_map)
        except RayfoldError as error:
            self._in_trouble(node_id, error)
        else:
            self._map = merged([self.map, here])
            self.troubles.pop(node_id, None)

    def _in_trouble(self, node_id: str, error: RayfoldError) -> None:
        if str(self.troubles.get(node_id)) != str(error):
            log.error("the share of %s on node %s: %s", self._name, self._node_name(node_id), error)
        self.troubles[node_id] = error

    def _node_name(self, node_id: str) -> str:
        return node_id if self._map is None else self._map.name_of(node_id)


def _check_one_store(name: str, found: Mapping[str, ShareFacts], names: Mapping[str, str]) -> None:
    """Nodes must not have different stores of one name. The beginnings of a store that was never finished do not count.

    Raises `StoreMismatch`.
    """
    stores: dict[str, str] = {}
    for node_id, facts in found.items():
        if facts.map is not None or (facts.whole and facts.used):
            stores.setdefault(facts.store_id, node_id)
    if len(stores) > 1:
        listed = ", ".join(f"{names[node_id]} has {store_id}" for store_id, node_id in stores.items())
        raise StoreMismatch(name, f"the nodes have shares of different stores: {listed}", "move all but one away")
    loose = [node_id for node_id, facts in found.items() if facts.map is None and facts.whole and facts.used]
    if len(loose) > 1:
        listed = ", ".join(names[node_id] for node_id in loose)
        raise StoreMismatch(name, f"several nodes have a copy of the whole store: {listed}", "keep one of them")
