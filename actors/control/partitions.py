"""Partition actors: one for each partition of a system on a cluster, at its home, and another one when it is lost for
good.

Beside step [3], on the event loop of the supervising process. Ray starts a partition again by itself when its process
is killed, and when its node is back. What is here is for what Ray does not do: a partition that moves to another node,
that gets new code, or that Ray has forgotten (version 2.60 forgets the actors of a node when its directory ends between
storing the node's death and storing its effect on the actors).

Rules kept here: no two actors ever have the same name; the next one is up, with its code loaded, before the last one
releases the log, so that commands wait for milliseconds; and should both run, the log's epoch decides, not what is
known here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from ...runtime.errors import RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.write.residents import RESIDENTS_MAX, SAVED_AT_ONCE
from ..cluster.names import partition_name, partition_named
from ..cluster.rpc import call, kill, one_line, open_actor
from ..cluster.scheduling import Scheduling
from ..partition.actor import PartitionPlan, start_partition
from ..partition.handle import PartitionHandle

__all__ = ["PartitionActors", "PartitionInstance"]

log = printable_log(__name__)

_START_TIMEOUT_S: Final = 60.0
"""For the process of a partition: a second on a quiet machine, and a minute where everything starts at once."""

_OPEN_TIMEOUT_S: Final = 30.0
"""For opening a log and taking it over: milliseconds."""


class PartitionInstance(NamedTuple):
    """A partition's actor."""

    name: str
    """In Ray; never used twice."""
    node_id: str
    generation: int
    """The generation of the code that it runs."""
    actor: PartitionHandle


class PartitionActors:
    """The actors of all partitions. Used on one event loop only."""

    def __init__(
        self, plan_of: Callable[[int, str, int], PartitionPlan], scheduling: Scheduling, generation: int
    ) -> None:
        """`plan_of`: of a partition at home on a node, with the code of a generation."""
        self.seated: dict[int, PartitionInstance] = {}
        self._plan_of = plan_of
        self._scheduling = scheduling
        self._generation = generation

    def handles(self) -> list[PartitionHandle]:
        """The actors, by the number of their partition."""
        return [self.seated[number].actor for number in sorted(self.seated)]

    def start(self, number: int, node_id: str, generation: int | None = None) -> PartitionInstance:
        """An actor for a partition, to which no client is sent yet. It starts as soon as its node is up.

        generation: of its code. Unless it is given, that of the present actor: a partition gets other code by a
        deployment alone."""
        present = self.seated.get(number)
        chosen = generation or (present.generation if present else self._generation)
        plan = self._plan_of(number, node_id, chosen)
        name = partition_name(plan.name, number, node_id, self._scheduling.unused(chosen))
        return PartitionInstance(name, node_id, chosen, self.start_actor(plan, name))

    def start_actor(self, plan: PartitionPlan, name: str) -> PartitionHandle:
        """An actor of this name, on the node of its plan. The simulation has others."""
        return start_partition(plan, name, self._scheduling.partition(plan.node_id))

    def take_in(self, names: Iterable[str], actor_named: Callable[[str], Any], homes: Sequence[str]) -> None:
        """Go on with the actors that an earlier supervisor has left: of each partition the one of the latest code that
        is bound to its home. Others are of a move or a deployment that was interrupted."""
        for name in sorted(names):
            parsed = partition_named(name)
            if parsed is None or parsed.number >= len(homes) or homes[parsed.number] != parsed.node_id:
                continue
            present = self.seated.get(parsed.number)
            if present is None or parsed.generation > present.generation:
                with contextlib.suppress(ValueError):  # it has ended since
                    self.seated[parsed.number] = PartitionInstance(
                        name, parsed.node_id, parsed.generation, actor_named(name)
                    )

    async def open(self, number: int) -> None:
        """Have a partition's actor open its log, if it has not. Raises what keeps it from that, and `Unavailable`."""
        await open_actor(self.seated[number].actor, f"partition {number}", _OPEN_TIMEOUT_S)

    async def replace(self, number: int, node_id: str, generation: int | None = None) -> None:
        """Put another actor in the place of a partition's, which closes first if it answers. generation: see `start`.

        Raises `Unavailable` or `DefinitionError` if the other one does not come up, and then nothing has changed.
        """
        following = self.start(number, node_id, generation)
        try:
            await self.prepare(number, following)
            await self.report_residents(number, following)
        except BaseException:
            self.kill(following.actor)
            raise
        await self.hand_over(number, following)

    def kill(self, actor: PartitionHandle) -> None:
        """End an actor at once, for good."""
        kill(actor)

    def start_over(self, number: int, generation: int | None = None) -> None:
        """Another actor for a partition whose node is down; it starts when that is up. generation: see `start`."""
        present = self.seated[number]
        self.kill(present.actor)
        self.seated[number] = self.start(number, present.node_id, generation)

    async def prepare(self, number: int, seated: PartitionInstance) -> None:
        """Return once an actor is up and has loaded the application's code. Raises `Unavailable`, `DefinitionError`."""
        try:
            await call(seated.actor.prepare, (), timeout_s=_START_TIMEOUT_S)
        except RayfoldError:
            raise
        except Exception as error:
            raise Unavailable(f"partition {number}", f"its next actor did not start: {one_line(error)}") from error

    async def report_residents(self, number: int, following: PartitionInstance) -> None:
        """Send the next actor of a partition the list of what the present one has in memory, so that commands to that
        do not wait until it is loaded. If that fails, they do wait."""
        present = self.seated.get(number)
        with contextlib.suppress(Exception):
            for first in range(0, RESIDENTS_MAX, SAVED_AT_ONCE):
                saved = await call(present.actor.residents, first) if present else []
                if not saved:
                    return
                await call(following.actor.prepare, saved)

    async def hand_over(self, number: int, following: PartitionInstance) -> None:
        """The present actor of a partition, if there is one, releases the log, and this one, which is up, opens it."""
        present = self.seated.get(number)
        if present is not None:
            with contextlib.suppress(Exception):  # a frozen one is fenced off when the next one opens the log
                await call(present.actor.close)
            self.kill(present.actor)
        self.seated[number] = following
        await self.open(number)

    async def end(self) -> None:
        """End all of them, each when it has closed its log, or after five seconds."""
        closing = (call(one.actor.close) for one in self.seated.values())
        await asyncio.gather(*closing, return_exceptions=True)
        for one in self.seated.values():
            self.kill(one.actor)
