"""Turns are given in the order in which they were asked for, also when a thread asks again at once."""

from __future__ import annotations

import threading

from rayfold.actors.partition.fifo_lock import FifoLock

WAIT_S = 20.0


def waiting(turns: FifoLock, number: int) -> None:
    """Return once so many wait. Each has started a thread that does nothing else, so it takes no time."""
    pause = threading.Event()
    for _ in range(int(WAIT_S * 1000)):
        if len(turns._waiting) == number:
            return
        pause.wait(0.001)
    raise AssertionError(f"{len(turns._waiting)} wait, not {number}")


def test_those_who_wait_have_their_turn_in_the_order_in_which_they_came() -> None:
    turns, order = FifoLock(), list[int]()

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(10)]
    with turns:
        for number, thread in enumerate(threads, 1):
            thread.start()
            waiting(turns, number)
        assert order == []
    for thread in threads:
        thread.join(WAIT_S)
    assert order == list(range(10))


def test_who_asks_again_at_once_comes_after_those_who_wait_already() -> None:
    turns, order = FifoLock(), list[str]()

    def take() -> None:
        with turns:
            order.append("waited")

    thread = threading.Thread(target=take)
    with turns:
        thread.start()
        waiting(turns, 1)
    with turns:
        order.append("again")
    thread.join(WAIT_S)
    assert order == ["waited", "again"]


def test_only_one_at_a_time_has_its_turn_also_when_it_ends_with_an_error() -> None:
    turns, inside, seen = FifoLock(), [0], list[int]()

    def take() -> None:
        for number in range(500):
            try:
                with turns:
                    inside[0] += 1
                    seen.append(inside[0])
                    inside[0] -= 1
                    if number % 2:
                        raise ValueError
            except ValueError:
                continue

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert seen == [1] * 2000
    assert len(turns._waiting) == 0
