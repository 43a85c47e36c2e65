"""A batch queue by itself: who starts sending, beginning anew, and what is worth a batch. Order and bounds are tested
with the `Batcher` around it."""

from __future__ import annotations

import pytest

from rayfold.runtime.batch_queue import BatchQueue
from rayfold.runtime.errors import Overloaded


def batches(queue: BatchQueue[str]) -> list[list[str]]:
    """What leaves now."""
    return list(iter(queue.next_batch, []))


def test_one_is_told_to_start_sending_and_nobody_else_until_nothing_leaves_any_more() -> None:
    queue = BatchQueue[str]("the queue")
    assert queue.put("a", 1)
    assert not queue.put("b", 1)
    assert not queue.put_all([("c", 1), ("d", 1)])
    assert queue.next_batch() == ["a", "b", "c", "d"]
    assert not queue.put("e", 1)
    assert not queue.batch_done(), "the sender goes on"
    assert batches(queue) == [["e"]]
    assert not queue.put("f", 1), "one is in flight, and more may not leave"
    assert queue.batch_done()
    assert batches(queue) == [["f"]]


def test_nobody_is_told_to_start_where_nothing_waits() -> None:
    queue = BatchQueue[str]("the queue")
    assert queue.put("a", 1)
    assert batches(queue) == [["a"]]
    assert not queue.batch_done()
    assert not queue.restart([])


def test_what_is_worth_a_batch_can_change() -> None:
    queue = BatchQueue[str]("the queue", in_flight_max=2, pipelined_items_min=24)
    assert queue.put("a", 1)
    assert batches(queue) == [["a"]]
    queue.pipelined_items_min = 2
    assert not queue.put("b", 1)
    assert queue.put("c", 1)
    assert batches(queue) == [["b", "c"]]


def test_what_was_lost_leaves_again_before_what_waits() -> None:
    queue = BatchQueue[str]("the queue", in_flight_max=2, pipelined_items_min=2, waiting_bytes_max=100)
    assert queue.put("a", 20)
    assert batches(queue) == [["a"]]
    for item in "bcd":
        queue.put(item, 20)
    assert batches(queue) == [["b", "c", "d"]]
    assert queue.restart([("a", 20), ("b", 20), ("c", 20), ("d", 20)])
    assert batches(queue) == [["a", "b"], ["c", "d"]]
    queue.batch_done()
    queue.put("e", 100)
    assert queue.batch_done()
    assert batches(queue) == [["e"]], "two were in flight, not four"
    queue.put("f", 100)
    with pytest.raises(Overloaded):
        queue.put("g", 1)
    assert queue.batch_done()
    assert batches(queue) == [["f"]]


def test_what_was_sent_before_is_never_refused() -> None:
    queue = BatchQueue[str]("the queue", waiting_items_max=1, waiting_bytes_max=1)
    queue.put("a", 1)
    with pytest.raises(Overloaded):
        queue.put("b", 1)
    queue.put("b", 5, again=True)
    assert batches(queue) == [["a", "b"]]


def test_a_queue_that_begins_anew_with_nothing_is_ready() -> None:
    queue = BatchQueue[str]("the queue")
    queue.put("a", 1)
    assert batches(queue) == [["a"]]
    assert not queue.restart([])
    assert queue.put("b", 1)
    assert batches(queue) == [["b"]]


def test_whoever_cannot_send_gives_up_and_the_next_one_starts() -> None:
    queue = BatchQueue[str]("the queue")
    assert queue.put("a", 1)
    assert queue.next_batch() == ["a"]
    queue.give_up()
    assert queue.put("b", 1)
    assert batches(queue) == [["b"]]
