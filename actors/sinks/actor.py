"""SinksActor: the process in which the sinks of a system publish, each on a thread of its own.

Beside the read path. Before it: the logs, which it reads as any subscriber does, on this node or through node agents.
After it: other systems (`runtime/sinks/`). It is one actor of a system; Ray starts it again where it was killed, and on
another node where its node was lost. Should two of them run, the lease of each sink decides which publishes it.

Rules kept here: no work in `__init__` that can fail; what a target does, or does not, holds its own sink; nothing is
published by a partition, so that commands do not wait for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ray

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.feed.committed_positions import CommittedPositions, Member
from ...runtime.feed.group_coordinator import coordinator_of
from ...runtime.feed.subscription import Feed, SubscriptionOptions, open_feed
from ...runtime.printable import printable_log
from ...runtime.sinks.publisher import Publisher
from ...runtime.sinks.sink import Sink
from ...runtime.store.readable_store import ReadableStore
from ..client.partition_calls import ActorCalls
from ..cluster.rpc import one_line, replies
from ..nodes.store import DiskStore
from ..os_process.actor_log import begin_log
from ..packaging.shipping import unship
from .handle import SinksAnswer, SinksHandle

__all__ = ["SinksActor", "SinksPlan", "start_sinks"]

log = printable_log(__name__)

_ASK_S: Final = 5.0
"""How long a partition may take that is away or busy, before its sink tries again."""

_STOP_S: Final = 3.0
"""For what is on its way to be confirmed when the actor ends."""


@dataclass(frozen=True, slots=True)
class SinksPlan:
    """All that the actor needs to start, and to start again after a crash."""

    store: DiskStore
    catalogue: bytes
    """The application's classes, and its sinks; see `shipping.py`."""
    namespace: str
    partitions: tuple[str, ...]
    """Names of the actors of all partitions at first."""


class SinksActor:
    """The sinks of one system."""

    def __init__(self, plan: SinksPlan) -> None:
        begin_log()
        self._plan = plan
        self._names, self._unavailable = plan.partitions, dict[int, str]()
        self._actors: dict[str, Any] = {}
        """Partitions by name."""
        self._publishers: list[Publisher] = []
        self._opening = threading.Lock()
        threading.Thread(target=self._open, name="rayfold opens sinks", daemon=True).start()

    def _open(self) -> None:
        """By itself, as after a restart. A call of an actor to itself may be lost there."""
        try:
            self._begin()
        except Exception as error:  # who asks it to open gets it too
            log.error("the sinks do not begin: %s", one_line(error))

    @ray.method
    @replies
    def open(self) -> None:
        """Load the application's code, and begin to publish. Safe to repeat: it is asked with every tick. Raises
        `DefinitionError`."""
        self._begin()

    def _begin(self) -> None:
        with self._opening:
            if self._publishers:
                return
            catalogue = unship(self._plan.catalogue)
            self._publishers = [self._publisher(sink, catalogue) for sink in catalogue.sinks if isinstance(sink, Sink)]
            for publisher in self._publishers:
                publisher.start()

    @ray.method
    def set_partitions(self, names: tuple[str, ...], unavailable: Mapping[int, str]) -> None:
        """The actors of all partitions have these names, and these partitions are away."""
        self._names, self._unavailable = names, dict(unavailable)
        self._actors = {name: actor for name, actor in self._actors.items() if name in names}

    @ray.method(concurrency_group="reads")
    @replies
    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    @ray.method(concurrency_group="reads")
    @replies
    def status(self) -> SinksAnswer:
        """What each sink is doing."""
        return SinksAnswer(os.getpid(), [publisher.facts() for publisher in self._publishers])

    @ray.method
    @replies
    def close(self) -> None:
        """End all sinks: what was confirmed is acknowledged, and another process may have them."""
        for publisher in self._publishers:
            publisher.stop(0.0)
        for publisher in self._publishers:
            publisher.stop(_STOP_S)

    # -------------------------------------------------------------------------------------------------------------

    def _publisher(self, sink: Sink, catalogue: Catalogue) -> Publisher:
        store = self._plan.store
        coordinator = coordinator_of(sink.subscription, store.partitions)

        def committed(
            _store: ReadableStore, member: Member, start: Mapping[int, int], link_at: Callable[[int, int], str]
        ) -> CommittedPositions:
            return CommittedPositions(self._calls(), None, member, start, link_at, store.store_id)

        def opened() -> Feed:
            wanted = SubscriptionOptions(sink.subscription, types=list(sink.types), acknowledge="by hand")
            if sink.since == "now":
                wanted = wanted._replace(from_="end")
            return open_feed(store, catalogue, wanted, committed, own=True)

        def is_on() -> bool:
            on: bool = self._calls().call(coordinator, "switched", sink.subscription, patience_s=_ASK_S)[0]
            return on

        def is_skipped(event: str) -> bool:
            found: bool = self._calls().call(coordinator, "skipped", sink.subscription, event, patience_s=_ASK_S)
            return found

        return Publisher(sink, opened, is_on, is_skipped)

    def _calls(self) -> ActorCalls:
        return ActorCalls(self._reached, leased=True)

    def _reached(self, partition: int) -> tuple[Any, str]:
        if why := self._unavailable.get(partition, ""):
            return None, why
        name = self._names[partition]
        actor = self._actors.get(name)
        if actor is None:
            actor = self._actors[name] = ray.get_actor(name, self._plan.namespace)
        return actor, ""


def start_sinks(
    plan: SinksPlan, name: str, *, detached: bool, scheduling: Mapping[str, Any] | None = None
) -> SinksHandle:
    """The actor, which Ray restarts without limit. One of this name that exists already is that one."""
    remote: Any = ray.remote  # its types do not know concurrency groups
    actor = remote(concurrency_groups={"reads": 2})(SinksActor)
    options = actor.options(
        name=name,
        namespace=plan.namespace,
        get_if_exists=True,
        lifetime="detached" if detached else None,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        enable_task_events=False,
        **(scheduling or {}),
    )
    started: SinksActor = options.remote(plan)
    return started
