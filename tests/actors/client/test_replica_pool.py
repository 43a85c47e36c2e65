"""The caller's half of a query, over replicas that are pretended: beliefs, waiting, deadlines, deaths, odd answers."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from rayfold.actors.client.replica_pool import ReplicaPool
from rayfold.actors.settings import Settings
from rayfold.actors.sockets.query_frames import Answered, AnsweredAfter
from rayfold.runtime.encoding.query_batch import PackedQuery, split_queries
from rayfold.runtime.errors import HandlerFailed, NotYetVisible, Overloaded, RayfoldError, Unavailable

TOTAL = PackedQuery("Total", b"")


class ActorUnavailableError(Exception):
    """As Ray's is called."""


class ActorDiedError(Exception):
    """As Ray's is called."""


class Method:
    def __init__(self, do: Callable[..., Any]) -> None:
        self._do = do

    def remote(self, *arguments: Any) -> Method:
        self.told: Future[Any] = Future()
        try:
            answer = self._do(*arguments)
        except Exception as error:
            self.told.set_exception(error)
        else:
            if not isinstance(answer, Future):
                self.told.set_result(answer)
            else:
                self.told = answer
        return self

    def future(self) -> Future[Any]:
        return self.told


class Fake:
    """A replica whose processes answer, end and come again as the test needs."""

    def __init__(self, position: int = 0, answer: Callable[[str], Any] = lambda name: f"answer to {name}") -> None:
        self.position, self.head, self.answering = position, position, answer
        self.process = 1
        self.calls: list[list[str]] = []
        self.waits = 0
        self.silent = False

    def __getattr__(self, name: str) -> Method:
        if name.startswith(("_", "do_")):
            raise AttributeError(name)
        return Method(getattr(self, f"do_{name}"))

    def restart(self, position: int) -> None:
        self.process, self.position = self.process + 1, position

    def do_incarnation(self) -> bytes:
        return b"%08d" % self.process

    def do_ask(self, batch: bytes, needs: Mapping[int, int], alone: bool, apart: bool) -> Any:
        if self.silent:
            return Future()
        names = [name for name, _ in split_queries(batch)]
        self.calls.append(names)
        if any(self.position < position for position in needs.values()):
            return Answered(b"", {0: self.position}, self.do_incarnation())
        return Answered(self._answers(names, apart), {0: self.position}, self.do_incarnation())

    def _answers(self, names: Sequence[str], apart: bool) -> bytes:
        if "Kill" in names:
            self.restart(self.position)
            raise ActorUnavailableError
        answers = [self.answering(name) for name in names]
        return pickle.dumps([pickle.dumps(answer) for answer in answers] if apart else answers)

    def do_ask_after(self, batch: bytes, afters: Sequence[Mapping[int, int]], wait_s: float, look: bool) -> Any:
        self.waits += 1
        if self.silent:
            return Future()
        names = [name for name, _ in split_queries(batch)]
        ready = [index for index, after in enumerate(afters) if all(self.position >= one for one in after.values())]
        answers = {index: pickle.dumps(self.answering(names[index])) if names[index] else None for index in ready}
        return AnsweredAfter(pickle.dumps(answers), {0: self.position}, self.do_incarnation(), {0: self.head})


class Odd:
    def __reduce__(self) -> Any:
        return int, ("no number",)


class Leaving:
    def __reduce__(self) -> Any:
        return SystemExit(3).__reduce__()


def replicas_of(*fakes: Fake, **settings: Any) -> ReplicaPool:
    settings.setdefault("attempt_timeout_s", 0.2)
    return ReplicaPool("Totals", fakes, Settings(**settings))


def in_one_batch() -> None:
    """Have what is asked next travel together, as where several tasks ask in the same turn of the loop."""
    asyncio.get_running_loop().call_soon(lambda: None)


async def told(waiting: asyncio.Future[Any]) -> Any:
    async with asyncio.timeout(10):
        return await waiting


async def test_an_answer_that_cannot_be_decoded_costs_its_own_query_and_nobody_elses() -> None:
    fake = Fake(answer=lambda name: Odd() if name == "Odd" else name)
    replicas = replicas_of(fake)
    for _ in range(5):
        in_one_batch()
        odd = replicas.ask(PackedQuery("Odd", b""), {}, 5.0)
        good = [replicas.ask(PackedQuery(f"Good{number}", b""), {}, 5.0) for number in range(10)]
        assert [await told(one) for one in good] == [f"Good{number}" for number in range(10)]
        failed = await told(odd)
        assert isinstance(failed, HandlerFailed)
        assert str(failed).startswith("Totals @answer failed on Odd: its answer cannot be decoded here: ValueError")
    waited = await told(replicas.ask(PackedQuery("Odd", b""), {0: 0}, 5.0))
    assert isinstance(waited, HandlerFailed)


async def test_a_query_is_sent_at_once_where_no_other_can_join_it_and_with_all_that_can() -> None:
    fake = Fake()
    replicas = replicas_of(fake)
    await asyncio.sleep(0.01)  # it looks for a socket first
    alone = replicas.ask(TOTAL, {}, 5.0)
    assert fake.calls == [["Total"]]
    await told(alone)

    async def ask() -> Any:
        return await replicas.ask(TOTAL, {}, 5.0)

    await asyncio.gather(*(ask() for _ in range(20)))
    assert fake.calls == [["Total"], ["Total"] * 20]


class Abandoned(BaseException): ...


class Raising:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


def _raise(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, SystemExit, Abandoned])
async def test_whatever_an_answer_raises_while_it_is_decoded_costs_its_own_query_alone(
    error: type[BaseException],
) -> None:
    replicas = replicas_of(Fake(answer=lambda name: Raising(error) if name == "Odd" else name))
    for after in ({}, {0: 0}):
        in_one_batch()
        odd = replicas.ask(PackedQuery("Odd", b""), after, 5.0)
        good = replicas.ask(PackedQuery("Good", b""), after, 5.0)
        assert await told(good) == "Good"
        assert error.__name__ in str(await told(odd))


@pytest.mark.parametrize(("in_flight_max", "refused"), [(10_000, 0), (700, 300)])
async def test_many_queries_at_once_are_told_like_many_single_ones(in_flight_max: int, refused: int) -> None:
    """Over several replicas, each gets its share; beyond the bound they are refused, each as a value."""
    fakes = [Fake(answer=lambda name: name), Fake(answer=lambda name: name)]
    replicas = replicas_of(*fakes, in_flight_max=in_flight_max)
    names = [f"Query{number}" for number in range(1_000)]
    for after in ({}, {0: 0}):
        answers = [await told(one) for one in replicas.ask_many([PackedQuery(name, b"") for name in names], after, 5.0)]
        assert answers[: 1_000 - refused] == names[: 1_000 - refused]
        assert [type(answer) for answer in answers[1_000 - refused :]] == [Overloaded] * refused
        await asyncio.sleep(0)
    assert all(sum(map(len, fake.calls)) >= 256 for fake in fakes)


async def test_many_queries_at_once_are_told_at_their_deadline() -> None:
    fake = Fake()
    fake.silent = True
    replicas = replicas_of(fake, attempt_timeout_s=5.0)
    for timeout_s in (0.1, 1.0):
        begun_s = time.monotonic()
        answers = [await told(one) for one in replicas.ask_many([TOTAL] * 300, {}, timeout_s)]
        assert {type(answer) for answer in answers} == {Unavailable}
        assert time.monotonic() - begun_s >= timeout_s


async def test_a_callback_that_raises_holds_no_place() -> None:
    replicas = replicas_of(Fake())

    def saw(_positions: dict[int, int]) -> None:
        raise ValueError("no thanks")

    for _ in range(10):
        failed = await told(replicas.ask(TOTAL, {}, 5.0, saw))
        assert isinstance(failed, HandlerFailed)
    assert await told(replicas.ask(TOTAL, {}, 5.0)) == "answer to Total"


async def test_what_is_believed_of_a_process_is_not_believed_of_the_next_one() -> None:
    fake = Fake(position=7)
    replicas = replicas_of(fake)
    assert await told(replicas.ask(TOTAL, {0: 7}, 5.0)) == "answer to Total"
    fake.restart(position=5)
    fake.head = 7
    later = replicas.ask(TOTAL, {0: 7}, 5.0)
    await asyncio.sleep(0.05)
    assert not later.done()
    fake.position = 7
    assert await told(later) == "answer to Total"
    fake.restart(position=5)
    late = await told(replicas.ask(TOTAL, {0: 7}, 0.1))
    assert isinstance(late, NotYetVisible)


async def test_any_number_of_queries_wait_with_three_calls_at_a_time_and_others_pass_them() -> None:
    fake = Fake(position=1)
    fake.head = 9
    in_the_replica: list[Future[Any]] = []

    def waits(*_: Any) -> Any:
        in_the_replica.append(Future())
        return in_the_replica[-1]

    vars(fake)["do_ask_after"] = waits
    replicas = replicas_of(fake, attempt_timeout_s=5.0)
    waiting = [replicas.ask(TOTAL, {0: 9}, 5.0) for _ in range(1000)]
    await asyncio.sleep(0.05)
    waiting += [replicas.ask(TOTAL, {0: 9}, 5.0) for _ in range(1000)]
    await asyncio.sleep(0.05)
    assert 1 <= len(in_the_replica) <= 3
    assert await told(replicas.ask(TOTAL, {}, 5.0)) == "answer to Total"
    for one in waiting:
        one.cancel()


async def test_what_lies_beyond_the_end_of_the_log_is_refused_at_once() -> None:
    replicas = replicas_of(Fake(position=3))
    began_s = time.monotonic()
    refused = await told(replicas.ask(TOTAL, {0: 1 << 62}, 60.0))
    assert isinstance(refused, NotYetVisible)
    assert (refused.asked, refused.reached) == (1 << 62, 3)
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("after", [{}, {0: 9}])
async def test_a_limit_is_kept_whatever_the_replica_does(after: dict[int, int]) -> None:
    fake = Fake(position=3)
    fake.silent = True
    replicas = replicas_of(fake, attempt_timeout_s=5.0)
    began_s = time.monotonic()
    late = await told(replicas.ask(TOTAL, after, 0.1))
    assert type(late) is Unavailable, "how far a replica is that has not answered is not known"
    with pytest.raises(NotYetVisible):
        await replicas.everywhere({0: 9}, time.monotonic() + 0.1)
    assert time.monotonic() - began_s < 1.0


async def test_a_query_that_ends_its_process_is_asked_twice_of_one_replica_and_then_refused_by_name() -> None:
    fakes = Fake(), Fake()
    replicas = replicas_of(*fakes)
    killing = PackedQuery("Kill", b"")
    in_one_batch()
    others = [replicas.ask(PackedQuery(f"Good{number}", b""), {}, 5.0) for number in range(20)]
    failed = await told(replicas.ask(killing, {}, 5.0))
    assert isinstance(failed, HandlerFailed)
    assert str(failed).startswith("Totals @answer failed on Kill: the process that answered it ended, more than once")
    assert sorted(fake.process for fake in fakes) == [1, 3]
    assert [await told(one) for one in others] == [f"answer to Good{number}" for number in range(20)]
    calls = sum(len(fake.calls) for fake in fakes)
    assert isinstance(await told(replicas.ask(killing, {}, 5.0)), HandlerFailed)
    assert sum(len(fake.calls) for fake in fakes) == calls


async def test_everybody_who_asks_the_same_at_once_shares_its_two_deaths() -> None:
    fake = Fake()
    replicas = replicas_of(fake)
    in_one_batch()
    asked = [replicas.ask(PackedQuery("Kill", b""), {}, 5.0) for _ in range(10)]
    asked += [replicas.ask(TOTAL, {}, 5.0)]
    *failed, good = [await told(one) for one in asked]
    assert {type(one) for one in failed} == {HandlerFailed}
    assert good == "answer to Total"
    assert fake.process == 3


async def test_a_wait_for_every_replica_ends_when_all_are_there_or_gone() -> None:
    here, behind = Fake(position=5), Fake(position=4)
    behind.head = 5
    replicas = replicas_of(here, behind)
    waiting = asyncio.ensure_future(replicas.everywhere({0: 5}, time.monotonic() + 10))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    behind.position = 5
    await told(waiting)

    def gone(*_: Any) -> Any:
        raise ActorDiedError

    vars(behind)["do_ask_after"] = gone
    await replicas.everywhere({0: 5}, time.monotonic() + 10)
    vars(here)["do_ask_after"] = gone
    with pytest.raises(Unavailable, match="none of its projectors is alive any more"):
        await replicas.everywhere({0: 5}, time.monotonic() + 10)


async def test_errors_are_answers_and_seen_positions_are_told_with_answers_only() -> None:
    seen: list[dict[int, int]] = []
    failed = HandlerFailed("a", "b", "c")
    replicas = replicas_of(Fake(position=2, answer=lambda name: failed if name == "Bad" else name))
    assert isinstance(await told(replicas.ask(PackedQuery("Bad", b""), {}, 5.0, seen.append)), RayfoldError)
    assert seen == []
    assert await told(replicas.ask(TOTAL, {}, 5.0, seen.append)) == "Total"
    assert seen == [{0: 2}]
