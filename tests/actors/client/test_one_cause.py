"""One cause, one victim: handlers that end their process or never come back, on real actors."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from rayfold import (
    BlockingRuntime,
    Command,
    Envelope,
    Event,
    HandlerFailed,
    OwnActor,
    Query,
    Receipt,
    Runtime,
    Shared,
    Unavailable,
    answer,
    decide,
    evolve,
    project,
)
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.projection import fleet
from rayfold.actors.settings import Settings
from tests.support.tally import Add, Added, Tally, Total, Totals

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


class Exit(Command):
    """Ends the process that decides it, at once or by closing what it needs."""

    closes: bool = False


class Loop(Command):
    """Is never decided."""


class Backtrack(Command):
    """Is never decided, and holds the interpreter."""


class Nap(Command):
    """Takes its time."""

    seconds: float
    began: str
    """A file that is there from when it does."""


class Nothing(Command):
    """Leaves no event."""


class Fork(Command):
    """Forks a child, which leaves the handler one way or another."""

    how: str


class Poison(Event):
    """Ends the process of a projection that takes it in, as `Exit` does."""

    closes: bool = False


class Poisoned(Command):
    """Stores `Poison`."""

    closes: bool = False


def exit_process(closes: bool) -> None:
    if not closes:
        os._exit(1)
    os.closerange(0, 4096)


def fork(how: str) -> None:
    """The child comes back before its parent does."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    elif how == "exits":
        sys.exit(0)
    elif how == "raises":
        raise ValueError("in the child")


def loop() -> None:
    while True:
        pass


def backtrack() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


class Failing(Tally):
    """A tally that also takes commands which end its process, fork it, or do not end."""

    @decide
    def exit(self, command: Exit) -> Added:
        exit_process(command.closes)
        return Added(amount=0)

    @decide
    def fork(self, command: Fork) -> Added:
        fork(command.how)
        return Added(amount=1)

    @decide
    def loop(self, command: Loop) -> Added:
        loop()
        return Added(amount=0)


class Counter(Failing, placement=Shared()):
    """Runs with its neighbours."""

    @decide
    def nothing(self, command: Nothing) -> Added | None:
        return None

    @decide
    def poisoned(self, command: Poisoned) -> Poison:
        return Poison(closes=command.closes)

    @evolve
    def poison(self, event: Poison) -> None:
        pass


class Loner(Failing, placement=OwnActor()):
    """Runs alone."""

    @decide
    def backtrack(self, command: Backtrack) -> Added:
        backtrack()
        return Added(amount=0)

    @decide
    def nap(self, command: Nap) -> Added:
        Path(command.began).touch()
        threading.Event().wait(command.seconds)
        return Added(amount=1)


class AskExit(Query[int]):
    """Ends the process that answers it, as `Exit` does."""

    closes: bool = False


class AskLoop(Query[int]):
    """Is never answered."""


class Answers(Totals):
    """Of all counters."""

    @answer
    def asked_to_exit(self, query: AskExit) -> int:
        exit_process(query.closes)
        return 0

    @answer
    def asked_to_loop(self, query: AskLoop) -> int:
        loop()
        return 0


class Careless(Totals, on_failure="quarantine"):
    """Does not survive `Poison`."""

    @project
    def poison(self, event: Poison) -> None:
        exit_process(event.closes)


class Seen(Query[int]):
    """How many `Poison`."""


class Slow(Totals):
    """Takes its time with each `Poison`."""

    seen: int = 0

    @project
    def poison(self, event: Poison) -> None:
        threading.Event().wait(0.5)
        self.seen += 1

    @answer
    def asked_for_more(self, query: Seen) -> int:
        return self.seen


SETTINGS = Settings(decide_max_s=1.5, answer_max_s=1.5, timeout_s=60.0)


def made(store: Path) -> Runtime:
    parts = {"aggregates": [Counter, Loner], "projections": [Answers], "settings": SETTINGS}
    return Runtime(store, partitions=1, replicas=2, **parts)  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="class", loop_scope="module")
async def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    """Whose partition and projectors stay, for tests with aggregates of their own: no more of those that run alone than
    there are places for."""
    async with made(tmp_path_factory.mktemp("lasting") / "store") as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ended(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    """Whose partition and projectors are ended again and again, and come back."""
    async with made(tmp_path_factory.mktemp("ended") / "store") as system:
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Runtime]:
    async with made(tmp_path / "store") as system:
        yield system


async def both_replicas(running: Runtime) -> set[int]:
    """Their processes, once both are there."""
    while len(pids := {one.pid for one in (await running.status()).projectors if one.alive}) < 2:
        await asyncio.sleep(0.05)
    return pids


@asynccontextmanager
async def neighbours_served(running: Runtime) -> AsyncIterator[None]:
    """Commands to another aggregate of the same partition go on meanwhile, whose process stays the same."""
    before = (await running.status()).partitions[0]
    served, stop = 0, asyncio.Event()

    async def neighbour() -> None:
        nonlocal served
        while not stop.is_set():
            assert isinstance(await running.execute(Counter, "neighbour", Add()), Receipt)
            served += 1
            await asyncio.sleep(0.05)

    going = asyncio.create_task(neighbour())
    yield
    stop.set()
    await going
    after = (await running.status()).partitions[0]
    assert (after.pid, after.epoch) == (before.pid, before.epoch)
    assert served


class TestInAnOwnActor:
    @pytest.mark.parametrize(
        ("command", "told"),
        [
            (Exit(), "its process ended while it was being decided, more than once"),
            (Loop(), "it ran longer than decide_max_s"),
            (Backtrack(), "it ran longer than decide_max_s"),
        ],
    )
    async def test_what_ends_or_holds_an_own_actor_is_refused_by_name_and_its_partition_goes_on(
        self, running: Runtime, command: Command, told: str
    ) -> None:
        cold = f"cold {type(command).__name__}"
        async with neighbours_served(running):
            with pytest.raises(HandlerFailed, match=told):
                await running.execute(Loner, cold, command)
            with pytest.raises(HandlerFailed, match=told):
                await running.execute(Loner, cold, command)
            assert (await running.execute(Loner, cold, Add())).version == 1

    @pytest.mark.parametrize("how", ["exits", "raises", "returns"])
    async def test_a_child_that_a_handler_has_forked_answers_nobody(self, running: Runtime, how: str) -> None:
        async with neighbours_served(running):
            for aggregate in (Counter, Loner):
                before = (await running.execute(aggregate, "forked", Add())).version
                receipt = await running.execute(aggregate, "forked", Fork(how=how))
                assert (receipt.version, receipt.repeated) == (before + 1, False)
                assert (await running.execute(aggregate, "forked", Add())).version == before + 2
                assert len(await running.history(aggregate, "forked")) == before + 2


async def test_a_slow_first_command_holds_its_own_actor_only(ended: Runtime, tmp_path: Path) -> None:
    async with neighbours_served(ended):
        for number in range(20):  # on a busy machine the other command may take longer than a nap by itself
            began = tmp_path / f"nap {number}"
            slow = asyncio.create_task(ended.execute(Loner, began.name, Nap(seconds=1.0, began=str(began))))
            while not began.exists():
                await asyncio.sleep(0.01)
            await ended.execute(Counter, "other", Add())
            is_held = slow.done()
            assert (await slow).version == 1
            if not is_held:
                return
        raise AssertionError("each time the other command was answered after the slow one")


@pytest.mark.parametrize(
    ("bad", "command", "told"),
    [
        ("exits", Exit(), "its process ended while it was being decided, more than once"),
        ("closes", Exit(closes=True), "its process ended while it was being decided, more than once"),
        ("loops", Loop(), "it ran longer than decide_max_s"),
    ],
)
async def test_what_ends_or_holds_a_partition_is_refused_by_name_and_the_partition_comes_back(
    ended: Runtime, bad: str, command: Command, told: str
) -> None:
    with pytest.raises(HandlerFailed, match=told):
        await ended.execute(Counter, bad, command)
    with pytest.raises(HandlerFailed, match=told):
        await ended.execute(Counter, bad, command)
    assert (await ended.execute(Counter, bad, Add())).version == 1


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (AskExit(), "ended, more than once"),
        (AskExit(closes=True), "ended, more than once"),
        (AskLoop(), "took too long|ended"),
    ],
)
async def test_what_ends_or_holds_a_projector_is_refused_by_name_and_the_other_replica_is_left_alone(
    ended: Runtime, query: Query[int], told: str
) -> None:
    before = await both_replicas(ended)
    added = await ended.execute(Counter, "a", Add(), until=Answers)
    total = await ended.ask(Answers, Total(), after=added)
    bad = asyncio.create_task(ended.ask(Answers, query))
    while not bad.done():
        assert await ended.ask(Answers, Total(), after=added) == total
        await asyncio.sleep(0.05)
    with pytest.raises(HandlerFailed, match=told):
        await bad
    assert before & {one.pid for one in (await ended.status()).projectors}
    with pytest.raises(HandlerFailed, match=told):
        await ended.ask(Answers, query)


@pytest.mark.parametrize("closes", [False, True])
async def test_an_event_that_ends_the_process_of_a_projection_is_set_aside(
    cluster: Cluster, tmp_path: Path, closes: bool
) -> None:
    options = {"aggregates": [Counter], "projections": [Careless], "partitions": 1, "settings": SETTINGS}
    async with Runtime(tmp_path / "store", **options) as running:  # type: ignore[arg-type]
        await running.execute(Counter, "a", Add())
        await running.execute(Counter, "a", Poisoned(closes=closes))
        last = await running.execute(Counter, "a", Add())
        assert await running.ask(Careless, Total(), after=last) == 2
        (one,) = (await running.status()).projectors
        (entry,) = one.quarantined
        assert entry.event == "Poison"
        assert "the process ended twice" in entry.error


async def test_a_projector_whose_process_keeps_ending_while_it_catches_up_does_not_hold_the_start(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"aggregates": [Counter], "partitions": 1, "settings": SETTINGS}
    async with Runtime(tmp_path / "store", projections=[], **options) as running:  # type: ignore[arg-type]
        await running.execute(Counter, "a", Add())
        await running.execute(Counter, "a", Poisoned())
    monkeypatch.setattr(fleet, "_FAILURES_MAX", 1)  # what ends it is found at its second end
    async with Runtime(tmp_path / "store", projections=[Answers, Careless], **options) as running:  # type: ignore[arg-type]
        last = await running.execute(Counter, "a", Add())
        assert await running.ask(Answers, Total(), after=last) == 2
        assert await running.ask(Careless, Total(), after=last) == 2
        assert [len(one.quarantined) for one in (await running.status()).projectors] == [0, 1]


async def test_a_command_without_events_waits_for_nothing_that_others_wrote(cluster: Cluster, tmp_path: Path) -> None:
    options = {"aggregates": [Counter], "projections": [Slow], "partitions": 1, "settings": SETTINGS}
    async with Runtime(tmp_path / "store", **options) as running:  # type: ignore[arg-type]
        added = await running.execute(Counter, "a", Add(), until=Slow)
        for _ in range(40):
            await running.execute(Counter, "b", Poisoned())
        receipt = await running.execute(Counter, "a", Nothing(), until=Slow)
        assert (receipt.position, receipt.version) == (added.position, added.version)
        assert await running.ask(Slow, Total(), after=receipt) == 1
        session = running.session()
        await session.execute(Counter, "a", Nothing())
        assert await session.ask(Slow, Total()) == 1
        unknown = await running.execute(Counter, "new", Nothing())
        assert (unknown.position, unknown.version) == (0, 0)
        assert await running.ask(Slow, Seen(), after=unknown) < 40


async def test_what_a_source_of_commands_does_holds_nobody(cluster: Cluster, tmp_path: Path) -> None:
    def calling(bank: BlockingRuntime) -> Iterator[Envelope]:
        for number in range(3):
            bank.execute(Counter, "asked", Add())
            yield Envelope(Counter, "sent", Add(amount=number))

    def used() -> list[object]:
        store = tmp_path / "store"
        with BlockingRuntime(store, aggregates=[Counter], partitions=1, settings=SETTINGS) as bank:
            return [outcome for _, outcome in bank.execute_all(calling(bank))]

    assert [getattr(one, "version", one) for one in await asyncio.to_thread(used)] == [1, 2, 3]


async def test_a_limit_is_kept_whatever_a_handler_does(fresh: Runtime, tmp_path: Path) -> None:
    receipt = await fresh.execute(Counter, "a", Add(), until=Answers)
    stuck = asyncio.create_task(fresh.ask(Answers, AskLoop()))
    loop_now = asyncio.get_running_loop().time
    for waiting in (
        lambda: fresh.ask(Answers, AskLoop(), timeout_s=0.1),
        lambda: fresh.ask(Answers, AskLoop(), after=receipt, timeout_s=0.1),
        lambda: fresh.execute(Loner, "nap", Nap(seconds=0.8, began=str(tmp_path / "nap")), timeout_s=0.1),
    ):
        began_s = loop_now()
        with pytest.raises((Unavailable, HandlerFailed)):
            await waiting()
        assert loop_now() - began_s < 0.6
    stuck.cancel()
