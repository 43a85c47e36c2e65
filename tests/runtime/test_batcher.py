"""The batcher: what arrives while a batch is in flight leaves as the next batch, in order, within bounds."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.batch_queue import (
    BATCH_BYTES_MAX,
    BATCH_ITEMS_MAX,
    WAITING_BYTES_MAX,
    WAITING_ITEMS_MAX,
    commands_worth,
)
from rayfold.runtime.batcher import Batcher
from rayfold.runtime.errors import Overloaded


def batcher_and_sent(**bounds: Any) -> tuple[Batcher[str], list[list[str]]]:
    sent: list[list[str]] = []
    return Batcher("the queue", sent.append, **bounds), sent


# Order and company ---------------------------------------------------------------------------------------------


def test_a_lone_item_leaves_at_once_and_alone() -> None:
    batcher, sent = batcher_and_sent()
    batcher.put("a", 1)
    assert sent == [["a"]]
    assert len(batcher) == 0


def test_what_arrives_while_a_batch_is_in_flight_leaves_as_the_next_one() -> None:
    batcher, sent = batcher_and_sent()
    for item in "abcd":
        batcher.put(item, 1)
    assert sent == [["a"]]
    assert len(batcher) == 3
    batcher.batch_done()
    assert sent == [["a"], ["b", "c", "d"]]
    batcher.batch_done()
    assert len(sent) == 2
    batcher.put("e", 1)
    assert sent[2:] == [["e"]]


def test_what_is_put_together_leaves_as_if_it_were_put_one_by_one() -> None:
    together, sent = batcher_and_sent(batch_items_max=3)
    one_by_one, expected = batcher_and_sent(batch_items_max=3)
    items = [(item, 1) for item in "abcdefgh"]
    together.put("0", 1)
    together.put_all(items)
    for item, size_bytes in [("0", 1), *items]:
        one_by_one.put(item, size_bytes)
    for _ in range(4):
        together.batch_done()
        one_by_one.batch_done()
    assert sent == expected == [["0"], ["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]
    alone, leaves = batcher_and_sent()
    alone.put_all(items)
    assert leaves == [list("abcdefgh")]


@pytest.mark.parametrize("bounds", [{"waiting_items_max": 4}, {"waiting_bytes_max": 4}])
def test_what_is_put_together_is_refused_together(bounds: dict[str, int]) -> None:
    batcher, sent = batcher_and_sent(**bounds)
    batcher.put("0", 1)
    batcher.put_all([("a", 1), ("b", 1)])
    with pytest.raises(Overloaded):
        batcher.put_all([("c", 1), ("d", 1), ("e", 1)])
    assert len(batcher) == 2
    batcher.put_all([("f", 1), ("g", 1)])
    batcher.batch_done()
    assert sent == [["0"], ["a", "b", "f", "g"]]


def test_a_batch_is_bounded_in_items() -> None:
    batcher, sent = batcher_and_sent(batch_items_max=3)
    for item in "abcdefgh":
        batcher.put(item, 1)
    for _ in range(3):
        batcher.batch_done()
    assert sent == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]


def test_a_batch_is_bounded_in_bytes() -> None:
    batcher, sent = batcher_and_sent(batch_bytes_max=10)
    for item, size_bytes in [("a", 1), ("b", 5), ("c", 5), ("d", 1), ("e", 10)]:
        batcher.put(item, size_bytes)
    for _ in range(3):
        batcher.batch_done()
    assert sent == [["a"], ["b", "c"], ["d"], ["e"]]


def test_one_item_larger_than_a_batch_travels_alone() -> None:
    batcher, sent = batcher_and_sent(batch_bytes_max=10)
    for item, size_bytes in [("a", 1), ("b", 1), ("large", 99), ("c", 1), ("d", 1)]:
        batcher.put(item, size_bytes)
    for _ in range(3):
        batcher.batch_done()
    assert sent == [["a"], ["b"], ["large"], ["c", "d"]]


@given(
    sizes=st.lists(st.integers(0, 30), max_size=40),
    batch_items=st.integers(1, 5),
    batch_bytes=st.integers(1, 20),
    in_flight=st.integers(1, 3),
    worth=st.integers(1, 6),
    back=st.lists(st.booleans(), max_size=40),
)
def test_nothing_is_lost_repeated_or_overtaken(
    sizes: list[int], batch_items: int, batch_bytes: int, in_flight: int, worth: int, back: list[bool]
) -> None:
    sent: list[list[tuple[int, int]]] = []
    batcher = Batcher[tuple[int, int]](
        "the queue",
        sent.append,
        in_flight_max=in_flight,
        pipelined_items_min=worth,
        batch_items_max=batch_items,
        batch_bytes_max=batch_bytes,
    )
    returned = 0
    for item in enumerate(sizes):
        batcher.put(item, item[1])
        assert 0 < len(sent) - returned <= in_flight
        if item[0] < len(back) and back[item[0]]:
            batcher.batch_done()
            returned += 1
    while returned < len(sent):
        batcher.batch_done()
        returned += 1
    assert [item for batch in sent for item in batch] == list(enumerate(sizes))
    for batch in sent:
        assert 1 <= len(batch) <= batch_items
        assert len(batch) == 1 or sum(size for _, size in batch) <= batch_bytes
    assert len(batcher) == 0


# Several in flight ---------------------------------------------------------------------------------------------


def waiting_batcher(in_flight: int, worth: int, **bounds: Any) -> tuple[Batcher[str], list[int], Callable[[], None]]:
    """A batcher whose start is deferred, the sizes of the batches that it has sent, and what starts it."""
    sizes: list[int] = []
    started: list[Callable[[], None]] = []
    batcher = Batcher[str](
        "the queue",
        lambda batch: sizes.append(len(batch)),
        defer=started.append,
        in_flight_max=in_flight,
        pipelined_items_min=worth,
        **bounds,
    )
    return batcher, sizes, lambda: started.pop()()


def put(batcher: Batcher[str], items: int, size_bytes: int = 1) -> None:
    for _ in range(items):
        batcher.put("a", size_bytes)


@pytest.mark.parametrize(
    ("items", "sizes"), [(1, [1]), (47, [47]), (48, [24, 24]), (49, [25, 24]), (64, [32, 32]), (700, [350, 350])]
)
def test_what_is_worth_two_batches_leaves_in_halves(items: int, sizes: list[int]) -> None:
    batcher, sent, start = waiting_batcher(2, 24)
    put(batcher, items)
    start()
    assert sent == sizes
    assert len(batcher) == 0


def test_beside_a_batch_in_flight_leaves_only_what_is_worth_one() -> None:
    batcher, sent, start = waiting_batcher(2, 24)
    put(batcher, 1)
    start()
    put(batcher, 23)
    assert sent == [1]
    put(batcher, 1)
    start()
    assert sent == [1, 24]
    put(batcher, 30)
    batcher.batch_done()
    assert sent == [1, 24, 30]
    put(batcher, 5)
    batcher.batch_done()
    assert sent == [1, 24, 30], "there is one in flight, and 5 are not worth another"
    batcher.batch_done()
    assert sent == [1, 24, 30, 5]


def test_a_full_batch_is_worth_it_however_few_items_it_has() -> None:
    batcher, sent, start = waiting_batcher(2, 24, batch_bytes_max=100)
    put(batcher, 3, size_bytes=90)
    start()
    assert sent == [1, 1]
    assert len(batcher) == 1


def test_halves_that_do_not_fit_into_batches_leave_as_full_ones() -> None:
    batcher, sent, start = waiting_batcher(2, 24, batch_items_max=100)
    put(batcher, 500)
    start()
    assert sent == [100, 100]
    assert len(batcher) == 300


@pytest.mark.parametrize(("batch_cost_s", "commands"), [(0.0, 1), (0.0005, 25), (0.0025, 125), (1.0, BATCH_ITEMS_MAX)])
def test_the_more_a_batch_costs_the_more_commands_are_worth_one(batch_cost_s: float, commands: int) -> None:
    assert commands_worth(batch_cost_s) == commands


# Bounds of what waits ------------------------------------------------------------------------------------------


def test_too_many_waiting_items_are_refused_and_not_kept() -> None:
    batcher, sent = batcher_and_sent(waiting_items_max=2)
    for item in "abc":
        batcher.put(item, 1)
    with pytest.raises(Overloaded) as raised:
        batcher.put("d", 1)
    assert str(raised.value) == "the queue: limit of 2 items reached; this one was not sent, try again later"
    batcher.batch_done()
    batcher.put("e", 1)
    batcher.batch_done()
    assert sent == [["a"], ["b", "c"], ["e"]]


def test_too_many_waiting_bytes_are_refused_and_not_kept() -> None:
    batcher, sent = batcher_and_sent(waiting_bytes_max=1_000)
    batcher.put("a", 5_000)
    batcher.put("b", 600)
    batcher.put("c", 400)
    with pytest.raises(Overloaded) as raised:
        batcher.put("d", 1)
    assert str(raised.value) == "the queue: limit of 1,000 bytes reached; this one was not sent, try again later"
    batcher.batch_done()
    batcher.put("e", 1_000)
    batcher.batch_done()
    assert sent == [["a"], ["b", "c"], ["e"]]


def test_one_item_larger_than_the_bound_may_wait_alone() -> None:
    batcher, sent = batcher_and_sent(waiting_bytes_max=1_000)
    batcher.put("a", 1)
    batcher.put("large", 5_000)
    with pytest.raises(Overloaded):
        batcher.put("b", 1)
    batcher.batch_done()
    assert sent == [["a"], ["large"]]


def test_the_bounds_fit_one_another() -> None:
    assert BATCH_ITEMS_MAX <= WAITING_ITEMS_MAX
    assert BATCH_BYTES_MAX < 100 * 1024 <= WAITING_BYTES_MAX


# Taking out ----------------------------------------------------------------------------------------------------


def test_waiting_items_can_be_taken_out_in_order_and_make_room() -> None:
    batcher, sent = batcher_and_sent(waiting_bytes_max=10)
    for item, size_bytes in [("a1", 1), ("b1", 2), ("a2", 3), ("b2", 5)]:
        batcher.put(item, size_bytes)
    assert batcher.take_waiting(lambda item: item.startswith("b")) == [("b1", 2), ("b2", 5)]
    assert batcher.take_waiting(lambda item: item.startswith("b")) == []
    batcher.put("c", 7)
    with pytest.raises(Overloaded):
        batcher.put("d", 1)
    batcher.batch_done()
    assert sent == [["a1"], ["a2", "c"]]


# Coming back early, late, deferred, or not at all -------------------------------------------------------------


def test_items_of_one_moment_leave_together_when_the_start_is_deferred() -> None:
    sent: list[list[str]] = []
    deferred: list[Callable[[], None]] = []
    batcher = Batcher[str]("the queue", sent.append, defer=deferred.append)
    for item in "abc":
        batcher.put(item, 1)
    assert sent == []
    (start,) = deferred
    start()
    assert sent == [["a", "b", "c"]]
    batcher.put("d", 1)
    assert len(deferred) == 1, "only a start from idle is deferred"
    batcher.batch_done()
    assert sent == [["a", "b", "c"], ["d"]]


def test_what_was_taken_out_before_a_deferred_start_leaves_the_lane_idle() -> None:
    sent: list[list[str]] = []
    deferred: deque[Callable[[], None]] = deque()
    batcher = Batcher[str]("the queue", sent.append, defer=deferred.append)
    batcher.put("a", 1)
    batcher.take_waiting(lambda _: True)
    deferred.popleft()()
    batcher.put("b", 1)
    deferred.popleft()()
    assert sent == [["b"]]


def test_a_thousand_batches_that_come_back_while_they_are_sent_are_no_recursion() -> None:
    sent: list[int] = []
    in_flight = [0]

    def send(batch: list[int]) -> None:
        assert in_flight == [0]
        in_flight[0] += 1
        sent.extend(batch)
        if sent[0] == 0 and len(sent) == 1:
            for number in range(1, 3_000):
                batcher.put(number, 1)
        in_flight[0] -= 1
        batcher.batch_done()

    batcher = Batcher[int]("the queue", send, batch_items_max=1)
    batcher.put(0, 1)
    assert sent == list(range(3_000))


def test_a_send_that_raises_loses_its_batch_and_not_the_batcher() -> None:
    sent: list[list[str]] = []

    def send(batch: list[str]) -> None:
        if batch == ["bad"]:
            raise OSError("the socket is closed")
        sent.append(batch)

    batcher = Batcher[str]("the queue", send)
    with pytest.raises(OSError, match="the socket is closed"):
        batcher.put("bad", 1)
    batcher.put("a", 1)
    batcher.put("bad", 1)
    with pytest.raises(OSError, match="the socket is closed"):
        batcher.batch_done()
    batcher.put("b", 1)
    assert sent == [["a"], ["b"]]


# More than one in flight ---------------------------------------------------------------------------------------


def test_as_many_batches_as_allowed_are_in_flight() -> None:
    batcher, sent = batcher_and_sent(in_flight_max=2, pipelined_items_min=1, batch_items_max=2)
    for item in "abcdefg":
        batcher.put(item, 1)
    assert sent == [["a"], ["b"]]
    batcher.batch_done()
    assert sent == [["a"], ["b"], ["c", "d"]]
    batcher.batch_done()
    batcher.batch_done()
    assert sent == [["a"], ["b"], ["c", "d"], ["e", "f"], ["g"]]
    batcher.batch_done()
    batcher.batch_done()
    batcher.put("h", 1)
    batcher.put("i", 1)
    batcher.put("j", 1)
    assert sent[5:] == [["h"], ["i"]]


# Threads -------------------------------------------------------------------------------------------------------


def test_an_idle_lane_needs_no_thread() -> None:
    before = threading.active_count()
    batchers = [batcher_and_sent()[0] for _ in range(100)]
    for batcher in batchers:
        batcher.put("a", 1)
        batcher.batch_done()
    assert threading.active_count() == before


def test_from_many_threads_each_ones_order_is_kept_and_one_batch_is_in_flight() -> None:
    arrived: list[tuple[int, int]] = []
    in_flight, most_in_flight = [0], [0]
    roads: deque[list[tuple[int, int]]] = deque()
    work = threading.Semaphore(0)
    ended = threading.Event()

    def send(batch: list[tuple[int, int]]) -> None:
        in_flight[0] += 1
        most_in_flight[0] = max(most_in_flight[0], in_flight[0])
        roads.append(batch)
        work.release()

    def carry() -> None:
        while True:
            work.acquire()
            if not roads:
                return
            arrived.extend(roads.popleft())
            if len(arrived) == 4 * 2_000:
                ended.set()
            in_flight[0] -= 1
            batcher.batch_done()

    def put(sender: int) -> None:
        for number in range(2_000):
            batcher.put((sender, number), random.randrange(200))

    batcher = Batcher[tuple[int, int]]("the queue", send, batch_items_max=50, batch_bytes_max=4_000)
    carriers = [threading.Thread(target=carry) for _ in range(3)]
    senders = [threading.Thread(target=put, args=(sender,)) for sender in range(4)]
    for thread in carriers + senders:
        thread.start()
    assert ended.wait(60)
    for _ in carriers:
        work.release()
    for thread in carriers + senders:
        thread.join(60)
    for sender in range(4):
        assert [number for who, number in arrived if who == sender] == list(range(2_000))
    assert len(arrived) == 4 * 2_000
    assert most_in_flight == [1]
    assert len(batcher) == 0
