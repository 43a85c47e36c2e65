"""The order of a deployment, with every step failing, every process ending in between, and all pairs of these.

`World` is a system of two projections and three partitions, without Ray: it does what `control/rollout.py` does, and
may fail, or end, at the step of a chosen number. After every step it checks that no partition writes what a reader
lacks the code for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import product
from typing import Any, Final

import pytest

from rayfold.actors.projection.readiness import Looked, Probed, check_answers, check_projector
from rayfold.actors.rollout.plan import RolloutProgress, has_ended, prepare, replace_partitions
from rayfold.runtime.errors import CallerError, HandlerFailed, RayfoldError, Unavailable
from rayfold.runtime.read.stores.checkpoint import Quarantined

FAILS: Final = "fails"
FAILS_LATE: Final = "fails, though it was done"
ENDS: Final = "ends before it"
ENDS_LATE: Final = "ends after it"


class Ended(BaseException):
    """The supervisor's process has ended; nothing more happens in it."""


class World:
    """What lasts when a supervisor ends: the plan that is in charge, the deployment's entry, the actors."""

    def __init__(self, faults: dict[int, str]) -> None:
        self.faults = faults
        self.steps: list[str] = []
        self.plan, self.under_way, self.failed = 1, False, ""
        self.serving = {"Balances": 1, "Turnover": 1}
        self.beside: dict[str, int] = {}
        self.partitions = dict.fromkeys(range(3), 1)
        self.gone: set[int] = set()
        """Partitions without an actor that takes commands."""
        self.up = True

    def step(self, name: str, do: Callable[[], None]) -> None:
        """One step, with the fault that is planned for it."""
        if not self.up:
            raise Ended
        fault = self.faults.get(len(self.steps), "")
        self.steps.append(name)
        if fault == ENDS:
            self.up = False
            raise Ended
        if fault == FAILS:
            raise Unavailable(name, "it failed")
        do()
        assert min(self.serving.values()) >= max(self.partitions.values()), "readers have the code first"
        if fault == ENDS_LATE:
            self.up = False
            raise Ended
        if fault == FAILS_LATE:
            raise Unavailable(name, "it failed")

    # Building

    async def compare(self) -> None:
        self.step("compare", lambda: None)

    def projections(self) -> list[str]:
        return list(self.serving)

    async def build(self, projection: str) -> None:
        self.step(f"build {projection}", lambda: self.beside.update({projection: 2}))

    async def check(self) -> None:
        self.step("check", lambda: None)

    async def take_charge(self) -> None:
        assert self.beside == {"Balances": 2, "Turnover": 2}
        self.step("take charge", lambda: setattr(self, "plan", 2))

    async def is_in_charge(self) -> bool:
        return self.plan == 2

    async def take_back(self, error: RayfoldError) -> None:
        if not self.up:
            raise Ended
        assert self.plan == 1
        self.beside.clear()
        self.under_way, self.failed = False, str(error)

    # Replacing

    def outdated(self) -> list[int]:
        return [number for number, code in self.partitions.items() if code < 2]

    async def replace(self, partition: int) -> None:
        self.step(f"prepare {partition}", lambda: None)
        self.gone.add(partition)  # the present actor closes
        self.step(f"hand over {partition}", lambda: self.partitions.update({partition: 2}))
        self.gone.discard(partition)

    async def put_back(self, partition: int) -> None:
        if not self.up:
            raise Ended
        self.partitions[partition] = 1
        self.gone.discard(partition)

    async def note(self, error: RayfoldError) -> None:
        if not self.up:
            raise Ended
        self.under_way, self.failed = False, str(error)

    # A supervisor

    async def supervise(self) -> None:
        """From a start of the supervisor to the end of the deployment, or of the supervisor."""
        self.up = True
        if self.plan == 1:
            self.beside.clear()  # projectors of what is not in charge are ended at the start
            if self.under_way:
                with suppress(RayfoldError):
                    await prepare(self, lambda _: None)
        if self.plan == 2:
            self.serving = dict.fromkeys(self.serving, 2)
            self.beside.clear()
            self.gone -= set(self.partitions)  # Ray starts the actors again, and the supervisor opens them
            if not self.failed:
                with suppress(RayfoldError):
                    await replace_partitions(self, lambda _: None)
                self.under_way = self.up and bool(self.outdated()) and not self.failed

    def deploy(self) -> World:
        """A deployment; whenever the supervisor ends, another one starts."""
        self.under_way = True
        for _ in range(10):
            with suppress(Ended):
                asyncio.run(self.supervise())
            if self.up:
                return self
        raise AssertionError("it never comes to an end")


def steps() -> list[str]:
    return World({}).deploy().steps


def all_faults() -> Iterator[dict[int, str]]:
    """Each fault at each step, and all pairs. A later fault may meet steps that only an earlier one leads to."""
    kinds, places = (FAILS, FAILS_LATE, ENDS, ENDS_LATE), range(2 * len(steps()))
    single = [{place: kind} for place, kind in product(places, kinds)]
    yield from single
    for one, other in product(single, single):
        if max(one) < min(other):
            yield {**one, **other}


def check(world: World) -> None:
    """How every deployment has to end, whatever has happened."""
    assert not world.under_way
    assert world.beside == {}
    assert world.gone == set(), "every partition takes commands"
    if world.plan == 1:
        assert set(world.serving.values()) == {1}
        assert set(world.partitions.values()) == {1}
        assert world.failed
    else:
        assert set(world.serving.values()) == {2}
        assert bool(world.failed) == (set(world.partitions.values()) != {2}), "what is left undone is reported"


def test_read_models_are_ready_before_the_plan_is_in_charge_and_partitions_come_last() -> None:
    assert steps() == [
        "compare",
        "build Balances",
        "build Turnover",
        "check",
        "take charge",
        "prepare 0",
        "hand over 0",
        "prepare 1",
        "hand over 1",
        "prepare 2",
        "hand over 2",
    ]


@pytest.mark.slow
def test_every_fault_at_every_step_and_every_pair_leaves_the_old_code_whole_or_the_new_one_in_charge() -> None:
    tried, taken_back, stopped, whole = 0, 0, 0, 0
    for faults in all_faults():
        world = World(faults).deploy()
        check(world)
        tried += 1
        taken_back += world.plan == 1
        stopped += world.plan == 2 and bool(world.failed)
        whole += world.plan == 2 and not world.failed
    assert tried > 3000
    assert min(taken_back, stopped, whole) > 100, "the faults reach every way to end"


@pytest.mark.parametrize("place", range(4))
def test_a_step_that_fails_before_the_plan_is_in_charge_leaves_everything_as_it_was(place: int) -> None:
    world = World({place: FAILS}).deploy()
    assert world.plan == 1
    assert world.failed == f"{steps()[place]}: it failed"
    assert "take charge" not in world.steps


def test_a_plan_that_was_written_down_although_that_was_reported_to_fail_is_in_charge() -> None:
    world = World({4: FAILS_LATE}).deploy()
    assert (world.plan, world.failed) == (2, "")


@pytest.mark.parametrize("place", [5, 6])
def test_a_partition_that_fails_goes_on_with_its_code_and_those_that_follow_are_not_tried(place: int) -> None:
    world = World({place: FAILS}).deploy()
    assert world.partitions == {0: 1, 1: 1, 2: 1}
    assert world.steps[-1] == steps()[place]
    told = "partitions 0, 1, 2 go on with the code before, and every projection has the new"
    assert told in world.failed
    asyncio.run(world.supervise())
    assert world.steps[-1] == steps()[place], "what failed is not tried again by itself"


def called_off(at: str) -> World:
    """A deployment that is called off while it is at a step."""
    world = World({})
    world.under_way = True

    async def run() -> None:
        async def wait(name: str, do: Callable[[], Awaitable[Any]]) -> Any:
            if name == at:
                reached.set()
                await asyncio.sleep(0)
            return await do()

        reached = asyncio.Event()
        build, charge = world.build, world.take_charge
        world.build = lambda projection: wait("build", lambda: build(projection))  # type: ignore[method-assign]
        world.take_charge = lambda: wait("charge", charge)  # type: ignore[method-assign]
        task = asyncio.create_task(prepare(world, lambda _: None))
        await reached.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return world


def test_a_deployment_that_is_called_off_is_taken_back_unless_its_plan_is_being_written_down() -> None:
    world = called_off("build")
    assert (world.plan, world.beside, world.failed) == (1, {}, "the deployment: it was called off")
    assert called_off("charge").plan == 2


# Planted bugs: each of them has to be found


async def _writers_first(world: World) -> None:
    for partition in world.outdated():
        await world.replace(partition)


def test_the_world_finds_an_order_with_writers_first() -> None:
    with pytest.raises(AssertionError, match="readers have the code first"):
        asyncio.run(_writers_first(World({})))


class ForgetsToPutBack(World):
    async def put_back(self, partition: int) -> None:
        pass


class ForgetsToTakeBack(World):
    async def take_back(self, error: RayfoldError) -> None:
        self.under_way, self.failed = False, str(error)


class BelievesAnError(World):
    async def is_in_charge(self) -> bool:
        return False


class DoesNotWriteDown(World):
    async def note(self, error: RayfoldError) -> None:
        self.under_way = False


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ForgetsToPutBack, ForgetsToTakeBack, BelievesAnError, DoesNotWriteDown])
def test_faults_at_every_step_find_what_was_planted(kind: type[World]) -> None:
    found = 0
    for faults in all_faults():
        try:
            check(kind(faults).deploy())
        except AssertionError:
            found += 1
    assert found


# What a deployment returns and raises


@pytest.mark.parametrize(
    ("rolled", "ended"),
    [
        (RolloutProgress(1, 3, 3, "projection Balances", 2), False),
        (RolloutProgress(1, 3, 3, "", 2), False),
        (RolloutProgress(2, 1, 3, "partition 1"), False),
        (RolloutProgress(2, 3, 3, "the supervisor"), False),
        (RolloutProgress(2, 2, 3, ""), False),
        (RolloutProgress(2, 3, 3, ""), True),
    ],
)
def test_a_deployment_has_ended_when_everything_runs_its_code(rolled: RolloutProgress, ended: bool) -> None:
    assert has_ended(2, rolled, None) is ended


def test_a_deployment_that_was_taken_back_or_followed_by_another_one_raises_that() -> None:
    with pytest.raises(HandlerFailed, match="boom"):
        has_ended(2, RolloutProgress(1, 3, 3, ""), HandlerFailed("Balances", "Deposited", "boom"))
    with pytest.raises(CallerError, match="it was deployed again meanwhile: generation 3 runs"):
        has_ended(2, RolloutProgress(3, 1, 3, ""), None)


# Ready

ENTRY: Final = Quarantined(0, 7, "Account/a", 1, "Deposited", "ZeroDivisionError")
READY: Final = Looked(True, True, {0: 9, 1: 4}, {0: 9, 1: 3}, None, ())


def test_a_projector_that_has_caught_up_and_is_healthy_may_take_over() -> None:
    check_projector("p", READY, ())
    aside = READY._replace(quarantined=(ENTRY,))
    check_projector("p", aside, [aside._replace(quarantined=(ENTRY._replace(error="in other words"),))])


def test_a_projection_that_has_stopped_already_keeps_nothing_else_from_being_deployed() -> None:
    stopped = READY._replace(failed=HandlerFailed("Balances", "Deposited", "boom"))
    check_projector("p", stopped, [stopped, stopped])
    silent = stopped._replace(answered=False)
    for new, serving in ((stopped, [stopped, READY]), (silent, [stopped]), (stopped, [silent]), (stopped, [])):
        with pytest.raises(HandlerFailed):
            check_projector("p", new, serving)


def test_a_projector_that_lacks_what_was_read_before_is_refused_though_it_has_read_all_that_it_can() -> None:
    with pytest.raises(Unavailable, match="it is at event 0 of 57 of partition 2"):
        check_projector("p", READY, [READY._replace(positions={0: 9, 2: 57})])


@pytest.mark.parametrize(
    ("looked", "told"),
    [
        (READY._replace(failed=HandlerFailed("Balances", "Deposited", "boom")), "boom"),
        (READY._replace(answered=False, failed=Unavailable("projector p", "no answer")), "projector p: no answer"),
        (READY._replace(up_to_date=False), "projector p: it has not caught up since its process began"),
        (READY._replace(positions={0: 8, 1: 4}), "projector p: it is at event 8 of 9 of partition 0"),
        (READY._replace(positions={0: 9}), "projector p: it is at event 0 of 4 of partition 1"),
        (READY._replace(quarantined=(ENTRY,)), "Deposited at 7 of partition 0.*it was set aside: ZeroDivisionError"),
    ],
)
def test_a_projector_that_is_not_ready_is_refused_with_the_reason(looked: Looked, told: str) -> None:
    with pytest.raises(RayfoldError, match=told):
        check_projector("p", looked, [READY._replace(quarantined=(ENTRY._replace(position=6),))])


def test_a_query_that_is_answered_now_has_to_be_answered_by_the_new_build_too() -> None:
    fails, answered = Probed("BalanceOf", "KeyError: 'a'"), Probed("BalanceOf", "")
    check_answers("p", [answered], [answered])
    check_answers("p", [fails], [fails])
    check_answers("p", [], [fails])
    with pytest.raises(HandlerFailed, match="KeyError: 'a'"):
        check_answers("p", [answered], [fails])
