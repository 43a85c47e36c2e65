"""The follower: pages of several logs in order, commits of another process, and damage at its place."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from rayfold import Damaged, InvalidMessage, NotInHistory
from rayfold.runtime.feed.log_follower import PAUSE_MAX_S, PAUSE_MIN_S, LogFollower, PollInterval
from rayfold.runtime.log.memory import MemoryLog
from tests.runtime.log.appends import ALICE, amounts_of, deposits


def log_of(*amounts: int) -> MemoryLog:
    """A log of deposits, one command each."""
    log = MemoryLog()
    log.activate()
    for amount in amounts:
        log.append(1, [deposits(ALICE, amount)])
    return log


def read_all(follower: LogFollower, limit: int) -> dict[int, list[int]]:
    read: dict[int, list[int]] = {}
    while page := follower.read(limit):
        assert sum(len(records) for _, records in page) <= limit
        for partition, records in page:
            read.setdefault(partition, []).extend(amounts_of(records))
    return read


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_every_record_is_read_once_and_in_order_in_each_log(limit: int) -> None:
    follower = LogFollower({0: log_of(*range(7)), 1: log_of(*range(10, 13)), 2: log_of()})
    assert read_all(follower, limit) == {0: [*range(7)], 1: [10, 11, 12]}
    assert follower.positions == follower.heads() == {0: 7, 1: 3, 2: 0}


def test_a_follower_begins_after_the_positions_it_is_given() -> None:
    follower = LogFollower({0: log_of(1, 2, 3), 1: log_of(4, 5)}, {0: 2})
    assert read_all(follower, 100) == {0: [3], 1: [4, 5]}


@pytest.mark.parametrize("after", [{2: 0}, {0: -1}, {0: True}, {0: "3"}])
def test_what_is_no_position_is_refused(after: dict[int, int]) -> None:
    with pytest.raises(InvalidMessage, match="is not a position in this store; its partitions are 0 to 1"):
        LogFollower({0: log_of(), 1: log_of()}, after)


def test_a_position_beyond_the_end_of_a_log_is_refused() -> None:
    with pytest.raises(NotInHistory, match="partition 0 has no position 4; it is at 3"):
        LogFollower({0: log_of(1, 2, 3)}, {0: 4})


def test_a_busy_log_keeps_no_other_waiting() -> None:
    follower = LogFollower({0: log_of(*range(100)), 1: log_of(7)})
    first = {partition for page in (follower.read(3), follower.read(3)) for partition, _ in page}
    assert first == {0, 1}


def test_a_page_ends_with_the_record_that_reaches_its_bytes() -> None:
    follower = LogFollower({0: log_of(1, 2, 3)})
    assert [len(records) for _, records in follower.read(bytes_max=1)] == [1]


def test_what_is_given_back_is_read_again() -> None:
    follower = LogFollower({0: log_of(1, 2, 3)})
    follower.read()
    follower.go_back(0, 1)
    assert read_all(follower, 100) == {0: [2, 3]}


class DamagedAt(MemoryLog):
    """A log in which the record at one position cannot be read."""

    position = 3

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        records = super().read(after, limit, bytes_max)
        if after < self.position <= after + len(records):
            raise Damaged("event 3", "its checksum is wrong")
        return records


def damaged(amounts: Sequence[int]) -> MemoryLog:
    log = DamagedAt()
    log.activate()
    for amount in amounts:
        log.append(1, [deposits(ALICE, amount)])
    return log


def test_what_is_intact_before_a_damaged_record_comes_first_and_then_the_damage_each_time() -> None:
    follower = LogFollower({0: damaged([1, 2, 3, 4])})
    read = [amounts_of(records) for _ in range(2) for _, records in follower.read()]
    assert read == [[1], [2]]
    for _ in range(2):
        with pytest.raises(Damaged):
            follower.read()
    assert follower.positions == {0: 2}
    assert follower.has_new_records()


def test_waiting_ends_with_news_and_says_when_there_is_none() -> None:
    log = log_of()
    follower = LogFollower({0: log})
    assert follower.wait(0) is False
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(follower.wait()))
    waiting.start()
    log.append(1, [deposits(ALICE, 5)])
    waiting.join()
    assert told == [True]


def test_waiting_is_ended_by_a_close_in_another_thread() -> None:
    follower = LogFollower({0: log_of()})
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(follower.wait()))
    waiting.start()
    follower.close()
    waiting.join()
    assert told == [False]
    assert follower.closed


def test_the_pauses_grow_to_their_bound_and_begin_anew_with_news() -> None:
    pace = PollInterval()
    pauses = [pace.next_pause_s() for _ in range(30)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (PAUSE_MIN_S, PAUSE_MAX_S)
    pace.news()
    assert pace.next_pause_s() == PAUSE_MIN_S
