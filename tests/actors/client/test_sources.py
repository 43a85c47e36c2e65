"""Sources of `execute_all`: outcomes are given as they become known, whatever the source does."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import pytest

from rayfold.actors.client.sources import outcomes_of


def at_once(taken: Sequence[tuple[int, int]]) -> list[asyncio.Future[Any]]:
    futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in taken]
    for future, (_, item) in zip(futures, taken, strict=True):
        future.set_result(item * 10)
    return futures


def soon(taken: Sequence[tuple[int, int]]) -> list[asyncio.Future[Any]]:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in taken]
    for future, (_, item) in zip(futures, taken, strict=True):
        loop.call_later(0.001, future.set_result, item * 10)
    return futures


async def all_of(source: Any, in_flight: int = 4, send: Any = soon) -> list[tuple[int, int]]:
    async with asyncio.timeout(20):
        return [one async for page in outcomes_of(source, in_flight, send) for one in page]


def generated(count: int) -> Iterator[int]:
    yield from range(count)


async def awaited(count: int) -> AsyncIterator[int]:
    for number in range(count):
        if number % 3 == 0:
            await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize("send", [at_once, soon])
@pytest.mark.parametrize("in_flight", [1, 2, 1024])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
async def test_every_source_gives_every_item_with_its_outcome_in_order(send: Any, in_flight: int, count: int) -> None:
    expected = [(number, number * 10) for number in range(count)]
    sources = [list(range(count)), tuple(range(count)), generated(count), awaited(count), range(count)]
    for source in sources:
        assert await all_of(source, in_flight, send) == expected


async def test_a_source_that_waits_for_an_outcome_gets_it() -> None:
    for_the_source: queue.SimpleQueue[int] = queue.SimpleQueue()

    def fed_back() -> Iterator[int]:
        yield 0
        while (last := for_the_source.get(timeout=20)) < 50:
            yield last // 10 + 1

    told = []
    async with asyncio.timeout(20):
        async for page in outcomes_of(fed_back(), 1024, soon):
            for _, outcome in page:
                told.append(outcome)
                for_the_source.put(outcome)
    assert told == [0, 10, 20, 30, 40, 50]


async def test_an_asynchronous_source_that_waits_for_an_outcome_gets_it() -> None:
    for_the_source: asyncio.Queue[int] = asyncio.Queue()

    async def fed_back() -> AsyncIterator[int]:
        yield 0
        while (last := await for_the_source.get()) < 50:
            yield last // 10 + 1

    told = []
    async with asyncio.timeout(20):
        async for page in outcomes_of(fed_back(), 1024, soon):
            for _, outcome in page:
                told.append(outcome)
                for_the_source.put_nowait(outcome)
    assert told == [0, 10, 20, 30, 40, 50]


async def test_a_source_that_blocks_holds_nobody_but_itself() -> None:
    go_on = threading.Event()

    def blocked() -> Iterator[int]:
        yield 1
        go_on.wait(20)
        yield 2

    pages = outcomes_of(blocked(), 10, soon)
    async with asyncio.timeout(20):
        assert await anext(pages) == [(1, 10)]
        later = asyncio.ensure_future(anext(pages))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not later.done()
        go_on.set()
        assert await later == [(2, 20)]


@pytest.mark.parametrize("at_a_time", [1, 5, 12])
async def test_what_a_source_gives_before_it_blocks_is_sent_before_it_goes_on(at_a_time: int) -> None:
    """However much that is: less than there is room for, or just as much, or more."""
    go_on: queue.SimpleQueue[int] = queue.SimpleQueue()

    def in_bursts() -> Iterator[int]:
        for burst in range(4):
            yield from range(burst * at_a_time, (burst + 1) * at_a_time)
            assert go_on.get(timeout=20) == (burst + 1) * at_a_time, "all before have their outcomes by now"

    told = 0
    async with asyncio.timeout(20):
        async for page in outcomes_of(in_bursts(), 5, soon):
            told += len(page)
            if told % at_a_time == 0:
                go_on.put(told)
    assert told == 4 * at_a_time


class Listed(list[int]):
    """A list, as far as its type shows."""

    def __init__(self, failing: Iterator[int]) -> None:
        super().__init__()
        self._failing = failing

    def __iter__(self) -> Iterator[int]:
        return self._failing


RAISED = [ValueError("no more"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("kind", ["on a thread", "awaited", "listed"])
@pytest.mark.parametrize("error", RAISED, ids=repr)
async def test_a_source_that_raises_is_heard_after_all_outcomes_before_it(error: BaseException, kind: str) -> None:
    def failing() -> Iterator[int]:
        yield from range(5)
        raise error

    async def failing_later() -> AsyncIterator[int]:
        for number in range(5):
            yield number
        raise error

    source: Any = {"on a thread": failing, "awaited": failing_later, "listed": lambda: Listed(failing())}[kind]
    told: list[tuple[int, int]] = []

    async def read() -> None:
        async with asyncio.timeout(20):
            async for page in outcomes_of(source(), 2, soon):
                told.extend(page)

    with pytest.raises((ValueError, RuntimeError), match=r"no more|the source raised"):
        await read()
    assert told == [(number, number * 10) for number in range(5)]


async def test_no_more_is_taken_from_a_source_than_there_is_room_in_flight() -> None:
    taken = 0

    def counted() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    async def counted_too() -> AsyncIterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for source in (counted(), counted_too()):
        taken, told = 0, 0
        async for page in outcomes_of(source, 7, soon):
            told += len(page)
            assert taken <= told + 7
        assert (taken, told) == (100, 100)


async def test_a_reader_that_leaves_ends_the_source() -> None:
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            ended.set()

    source: Iterable[int] = endless()
    pages: Any = outcomes_of(source, 5, soon)
    await anext(pages)
    await pages.aclose()
    assert await asyncio.to_thread(ended.wait, 20)


@pytest.mark.parametrize("in_flight", [1, 3, 64])
async def test_with_each_item_comes_how_many_outcomes_were_read_when_it_was_asked_for(in_flight: int) -> None:
    read_at: list[tuple[int, int]] = []
    read = 0

    def send(taken: Sequence[tuple[int, int]]) -> list[asyncio.Future[Any]]:
        read_at.extend((item, known) for known, item in taken)
        return soon(taken)

    def looking() -> Iterator[int]:
        for _ in range(100):
            yield read

    async with asyncio.timeout(20):
        async for page in outcomes_of(looking(), in_flight, send):
            read += len(page)
    assert len(read_at) == 100
    assert all(known <= saw for saw, known in read_at), "what the source saw when it made the item is no less"
