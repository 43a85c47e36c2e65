"""The standing check of a running system: an alarm in status, metrics and log, and the wrong state dropped."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rayfold import (
    Aggregate,
    Command,
    Event,
    OwnActor,
    Projection,
    Query,
    Runtime,
    Shared,
    answer,
    decide,
    evolve,
    project,
)
from rayfold.actors.cli.console import PrintableConsole
from rayfold.actors.observe.metrics import samples
from rayfold.actors.observe.screen import as_values, drawn
from rayfold.actors.observe.status import Status
from rayfold.actors.settings import Settings

pytestmark = pytest.mark.slow

CALLS = itertools.count(1)


class Roll(Command):
    pass


class RolloutProgress(Event):
    pass


class Steady(Aggregate, placement=Shared()):
    rolls: int = 0

    @decide
    def roll(self, command: Roll) -> RolloutProgress:
        return RolloutProgress()

    @evolve
    def rolled(self, event: RolloutProgress) -> None:
        self.rolls += 1


class Dice(Steady, name="Dice", placement=Shared()):
    """Its state is another one at each fold."""

    last: int = 0

    @evolve
    def rolled(self, event: RolloutProgress) -> None:
        self.last = next(CALLS)


class OwnDice(Dice, name="OwnDice", placement=OwnActor()):
    """The same in an actor of its own."""


class Sum(Query[int]):
    pass


class Sums(Projection):
    last: int = 0

    @project
    def rolled(self, event: RolloutProgress) -> None:
        self.last = next(CALLS)

    @answer
    def sum(self, query: Sum) -> int:
        return self.last


async def alarmed(running: Runtime, enough: Callable[[Status], bool]) -> Status:
    """The status, once there is the alarm that a test waits for."""
    while not enough(status := await running.status()):
        await asyncio.sleep(0.02)
    return status


@pytest.mark.usefixtures("cluster")
async def test_what_is_not_a_fold_of_the_log_is_an_alarm_in_status_and_metrics(tmp_path: Path) -> None:
    settings = Settings(standing_check_share=1.0)
    async with Runtime(
        tmp_path / "store", aggregates=[Steady, Dice], projections=[Sums], partitions=1, settings=settings
    ) as running:
        for _ in range(3):
            await running.execute(Steady, "a", Roll())
            await running.execute(Dice, "a", Roll())
        await running.ask(Sums, Sum(), after=await running.heads())
        status = await alarmed(running, lambda seen: bool(seen.partitions[0].alarms and seen.projectors[0].alarms))
        (of_partition, *_), (of_projector, *_) = status.partitions[0].alarms, status.projectors[0].alarms
        assert of_partition.kind == "resident"
        assert re.fullmatch(r"Dice/a at version [123] in partition 0", of_partition.subject)
        assert "its handlers are not deterministic" in of_partition.what
        assert {one.subject.partition(" ")[0] for one in status.partitions[0].alarms} == {"Dice/a"}
        assert (of_projector.kind, of_projector.subject) == ("read model", "Sums, part 0")

        figures = {sample.name: sample.value for sample in samples(status, "store")}
        assert figures["rayfold_partition_alarms"] >= 1
        assert figures["rayfold_projector_alarms"] >= 1
        assert as_values(status, running.store, None)["partitions"][0]["alarms"][0]["kind"] == "resident"
        screen = PrintableConsole(width=200, record=True, file=io.StringIO())
        screen.print(drawn(status, running.store, "x"))
        assert f"{of_partition.subject}: its handlers are not deterministic" in screen.export_text()


@pytest.mark.usefixtures("cluster")
async def test_an_own_actor_tells_its_partition(tmp_path: Path) -> None:
    settings = Settings(standing_check_share=1.0, own_actors_max=2)
    async with Runtime(tmp_path / "store", aggregates=[OwnDice], partitions=1, settings=settings) as running:

        async def rolled() -> Status:
            """One more command, which goes to the own actor once that is there."""
            await running.execute(OwnDice, "b", Roll())
            return await running.status()

        def in_its_own_actor(seen: Status) -> bool:
            return any("in its own actor" in alarm.subject for alarm in seen.partitions[0].alarms)

        while not in_its_own_actor(status := await rolled()):
            await asyncio.sleep(0.02)
        assert "its handlers are not deterministic" in status.partitions[0].alarms[-1].what


@pytest.mark.usefixtures("cluster")
async def test_it_can_be_turned_off(tmp_path: Path) -> None:
    settings = Settings(standing_check_share=0)
    async with Runtime(tmp_path / "store", aggregates=[Dice], partitions=1, settings=settings) as running:
        await running.execute(Dice, "b", Roll())
        assert (await running.status()).partitions[0].alarms_raised == 0
