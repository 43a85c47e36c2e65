"""The control plane in simulated time: pairs of faults find nothing in the real parts, and planted bugs are found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain

import pytest

from rayfold.actors.cluster.ray_cluster import NodeFacts
from rayfold.actors.control.moves import PartitionMoves
from rayfold.actors.control.partitions import PartitionInstance
from rayfold.actors.nodes.agents import NodeAgents
from rayfold.actors.partition.log_owner import LogOwner
from rayfold.benchmarks.torture.simulation.clock import simulate
from rayfold.benchmarks.torture.simulation.control_disk import OpenLog
from rayfold.benchmarks.torture.simulation.control_running import (
    Covered,
    Run,
    find_wrong,
    kinds_at,
    pairs_of,
    run_control,
    singles_of,
)
from rayfold.benchmarks.torture.simulation.control_world import (
    STORIES,
    ControlBuild,
    ControlLoop,
    ControlWorld,
    Fault,
    Story,
)
from rayfold.runtime.log.sealing import Seal, WriteOwnership
from rayfold.runtime.store.home_statement import ARRIVING, CopyFacts, HomeStatement
from rayfold.runtime.store.node_share import NodeShare
from rayfold.runtime.store.partition_map import PartitionMap

pytestmark = pytest.mark.slow

STRIDE = 5
"""Of the single faults, and of pairs of them: a prime, so that all kinds and steps are met. The scenario tries each
single one, and `control_running` all pairs."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Some hundred clusters log what goes wrong with them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("story", STORIES)
def test_faults_at_each_step_and_pairs_of_them_leave_one_complete_log_that_goes_on(story: Story) -> None:
    covered, quiet = Covered(), run_control(story)
    singles = [Fault(step, kind) for step, what in enumerate(quiet.steps[:80], 1) for kind in kinds_at(what)]
    firsts, seconds = singles[::STRIDE], singles[:: 3 * STRIDE]
    plans = [(), *((one,) for one in firsts), *((one, two) for one in firsts[::6] for two in seconds if one < two)]
    wrong = find_wrong((run_control(story, plan) for plan in plans), covered)
    assert wrong is None, wrong.told()
    print(f"{story}: {covered}")
    assert covered.singles > 10
    assert covered.pairs > 3


def test_a_plan_of_faults_happens_the_same_way_again() -> None:
    plan = [Fault(7, "kill a"), Fault(12, "message late")]
    assert run_control("move", plan) == run_control("move", plan)


def test_the_watch_sees_a_lost_node_while_a_replacement_takes_long() -> None:
    world = ControlWorld("move")

    async def story() -> None:
        world.loop = asyncio.get_running_loop()
        world._begin_supervisor()
        await asyncio.sleep(3.0)
        supervision = world.supervisor
        assert supervision is not None
        assert supervision.started
        never = asyncio.Event()

        async def takes_long() -> None:
            await never.wait()

        supervision.replacements.put_right = takes_long  # type: ignore[method-assign]
        await asyncio.sleep(2 * supervision.watch_s)
        world._kill_node(world.nodes["b"])
        await asyncio.sleep(2 * supervision.watch_s)
        assert "b" not in supervision.shares.up
        assert 1 in supervision.unavailable()

    simulate(story(), ControlLoop)


# Planted bugs -----------------------------------------------------------------------------------------------------


class TidiesByItsOwnMap(NodeShare):
    """What was found first: a copy is removed since by the map here the partition is at home elsewhere."""

    def leftovers(self) -> list[CopyFacts]:
        for one in super().leftovers():
            if one.name.endswith(ARRIVING) or one.write_ownership.successor:
                self._disk.remove(one.name)
        return super().leftovers()


class RemovesWhatIsSealed(NodeShare):
    """What was found second: the old log is removed since it is sealed, whether the new home can open its own or
    not."""

    def discard(self, name: str, home: HomeStatement) -> str:
        copy = self._look(name)
        if copy is not None and copy.write_ownership.successor:
            self._disk.remove(name)
        return ""


class RemovesBeforeItWasOpened(NodeShare):
    """The epochs are not compared."""

    def discard(self, name: str, home: HomeStatement) -> str:
        return super().discard(name, home._replace(write_ownership=home.write_ownership._replace(epoch=1 << 40)))


class MakesAStoreWithoutAsking(NodeAgents):
    """Nodes that do not answer are taken for nodes that have nothing."""

    def _check_all_answered(self, nodes: Iterable[NodeFacts], found: object) -> None: ...


class EachMakesItsOwnStore(NodeAgents):
    async def _proposed(self, node_id: str, new: PartitionMap) -> PartitionMap:
        return new


class BreaksFinalSeals(LogOwner):
    def unseal(self, successor: str, epoch: int) -> None:
        if not self._serves():
            self._with_log(lambda log: log.change_write_ownership(lambda present: WriteOwnership(present.epoch)))
            self.released = False


class HandsOverWhateverTheSeal(LogOwner):
    def hand_over(self, successor: str, epoch: int, version: int) -> WriteOwnership:
        since = max(version, self._map_here().version + 1)
        return self._with_log(
            lambda log: log.change_write_ownership(lambda present: WriteOwnership(present.epoch, successor, since))
        )


class OpensSealedLogs(OpenLog):
    def activate(self) -> int:
        return self.change_write_ownership(lambda present: present._replace(epoch=present.epoch + 1)).epoch


class ForgetsWhatItsLogsDecided(NodeShare):
    def with_hand_overs(self, known: PartitionMap) -> PartitionMap:
        return known


class ExchangesItsMap(NodeShare):
    """The map that comes last is kept, whatever was known here."""

    def place(self, known: PartitionMap) -> PartitionMap:
        present = self._disk.open_share()
        if present is None or present.map is None:
            return super().place(known)
        for partition in known.at_home_on(self._node_id):
            self._settle(partition, known.epochs[partition])
        self._disk.write_map(known)
        return known


class DoesNotTakeOverTheEpoch(NodeShare):
    def finish(self, partition: int, sealed: Seal) -> None:
        with suppress(StopIteration):
            super().finish(partition, sealed._replace(epoch=0))


class MapsBeforeItHandsOver(PartitionMoves):
    """The new home is given the map before the old one has given up its log for good."""

    async def _hand_over(
        self, partition: int, present: PartitionInstance, source: str, to: str, sealed: Seal
    ) -> PartitionMap:
        shares = self._system.shares
        await self._copy_up_to(partition, source, to, sealed.head)
        await shares.call(to, lambda agent: agent.finish, partition, sealed)
        moved = shares.map.with_home(partition, to, epoch=sealed.epoch)
        await shares.call(to, lambda agent: agent.place, moved)
        return await super()._hand_over(partition, present, source, to, sealed)


class ReportsSuccessAtOnce(PartitionMoves):
    async def _confirm(self, partition: int, to: str, sealed: Seal) -> None: ...


class LeavesSealsAlone(PartitionMoves):
    async def _unseal(self, partition: int, seated: PartitionInstance, successor: str, epoch: int) -> None: ...


LIKELY: Sequence[Sequence[Fault]] = (
    (),
    (Fault(1, "second supervisor"),),
    (Fault(3, "second supervisor"),),
    (Fault(5, "second supervisor"),),
    (Fault(5, "disk full"),),
    (Fault(11, "answer lost"),),
    (Fault(12, "cut a"),),
    (Fault(1, "second supervisor"), Fault(25, "message late")),
)
"""What has shown a planted bug before, and is tried first; where the steps have changed, all faults and pairs are."""


def _found(story: Story, build: ControlBuild) -> Run | None:
    """The first run that shows a planted bug."""
    likely = (run_control(story, plan, build) for plan in LIKELY)
    return find_wrong(chain(likely, singles_of(story, build), pairs_of(story, build, stride=13)))


PLANTED: dict[str, tuple[Story, Callable[[ControlBuild], ControlBuild]]] = {
    "TidiesByItsOwnMap": ("move", lambda build: replace(build, share=TidiesByItsOwnMap)),
    "RemovesWhatIsSealed": (
        "move",
        lambda build: replace(build, share=RemovesWhatIsSealed, moves=ReportsSuccessAtOnce),
    ),
    "RemovesBeforeItWasOpened": ("move", lambda build: replace(build, share=RemovesBeforeItWasOpened)),
    "MakesAStoreWithoutAsking": ("forgotten", lambda build: replace(build, shares=MakesAStoreWithoutAsking)),
    "EachMakesItsOwnStore": ("create", lambda build: replace(build, shares=EachMakesItsOwnStore)),
    "BreaksFinalSeals": ("move", lambda build: replace(build, owner=BreaksFinalSeals)),
    "HandsOverWhateverTheSeal": ("move", lambda build: replace(build, owner=HandsOverWhateverTheSeal)),
    "OpensSealedLogs": ("move", lambda build: replace(build, log=OpensSealedLogs)),
    "ForgetsWhatItsLogsDecided": ("move", lambda build: replace(build, share=ForgetsWhatItsLogsDecided)),
    "ExchangesItsMap": ("move", lambda build: replace(build, share=ExchangesItsMap)),
    "DoesNotTakeOverTheEpoch": ("move", lambda build: replace(build, share=DoesNotTakeOverTheEpoch)),
    "MapsBeforeItHandsOver": ("move", lambda build: replace(build, moves=MapsBeforeItHandsOver)),
    "ReportsSuccessAtOnce": ("move", lambda build: replace(build, moves=ReportsSuccessAtOnce)),
    "LeavesSealsAlone": ("move", lambda build: replace(build, moves=LeavesSealsAlone)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_bug_is_found(planted: str) -> None:
    story, plant = PLANTED[planted]
    assert _found(story, plant(ControlBuild())) is not None
