"""What waits in a projector: woken by its position, dropped at its deadline or with its connection, bounded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.actors.projection import waiting_queries
from rayfold.actors.projection.waiting_queries import WaitingQueries, WaitingQuery
from rayfold.runtime.errors import Overloaded

PLACES = st.dictionaries(st.integers(0, 2), st.integers(0, 6), max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("park"), st.integers(0, 2), PLACES, st.integers(1, 5)),
    st.tuples(st.just("advance"), st.integers(0, 2), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("pass"), st.integers(1, 2), st.just(0), st.just(0)),
    st.tuples(st.just("drop"), st.integers(0, 2), st.just(0), st.just(0)),
    st.tuples(st.just("end"), st.integers(0, 2), st.integers(0, 6), st.just(0)),
)


def entry(after: dict[int, int], connection: int = 0, payload: bytes = b"") -> WaitingQuery:
    return WaitingQuery(connection, 1, 0, ("Total", payload), after)


@given(st.lists(STEPS, max_size=30))
def test_each_query_leaves_once_and_for_the_reason_that_comes_first(steps: list[tuple[str, int, object, int]]) -> None:
    """Beside a model that checks all of them each time."""
    waiting, positions, now_s = WaitingQueries(), {0: 0, 1: 0, 2: 0}, 100.0
    parked: list[WaitingQuery] = []

    def left(found: list[WaitingQuery], expected: list[WaitingQuery]) -> None:
        assert sorted(map(id, found)) == sorted(map(id, expected))
        for one in expected:
            parked.remove(one)

    for what, number, amount, left_s in steps:
        if what == "park":
            assert isinstance(amount, dict)
            one = entry(amount, number)
            kept = any(positions[partition] < position for partition, position in amount.items())
            assert waiting.park(one, left_s, positions, now_s) == kept
            parked += [one] if kept else []
        elif what == "advance":
            assert isinstance(amount, int)
            positions[number] += amount
            there = [one for one in parked if all(positions[p] >= wanted for p, wanted in one.after.items())]
            left(waiting.wake(positions), there)
        elif what == "pass":
            now_s += number
            left(waiting.expire(now_s), [one for one in parked if one.deadline_s <= now_s])
        elif what == "drop":
            waiting.drop(number)
            parked = [one for one in parked if one.connection != number]
        else:
            assert isinstance(amount, int)
            end = max(amount, positions[number])
            gone = waiting.take_beyond({number: end}, now_s)
            assert all(one.after[number] > end and one.parked_s < now_s for one in gone)
            left(gone, gone)
            beyond = [one for one in parked if one.partition == number and one.after[number] > end]
            assert all(one.parked_s == now_s for one in beyond), "what came after the end was read stays"
        assert len(waiting) == len(parked)
        wanted = waiting.wanted()
        assert all(wanted[one.partition] <= one.after[one.partition] for one in parked)
        assert wanted.keys() == {one.partition for one in parked}
    left(waiting.take_all(), list(parked))
    assert (len(waiting), waiting._size_bytes, waiting.wanted(), waiting.next_deadline_s()) == (0, 0, {}, None)


def test_a_query_whose_deadline_is_no_number_is_in_no_table() -> None:
    waiting = WaitingQueries()
    with pytest.raises(OverflowError):
        waiting.park(entry({0: 5}), math.inf, {}, 0.0)
    waiting.drop(0)
    assert (len(waiting), waiting._size_bytes, waiting.connections(), waiting.next_deadline_s()) == (0, 0, [], None)


def test_nothing_is_kept_of_positions_that_were_once_waited_for() -> None:
    waiting = WaitingQueries()
    for position in range(10_000):
        waiting.park(entry({0: 1 << 40 | position}), 5.0, {}, 0.0)
        waiting.park(entry({0: 1}), 5.0, {}, 0.0)
        waiting.drop(0)
    assert waiting._by_position == {}
    keeper = entry({0: 1 << 50}, 1)
    waiting.park(keeper, 1000.0, {}, 0.0)
    for position in range(10_000):
        waiting.park(entry({0: 1 << 40 | position}), 5.0 + position, {}, 0.0)
        waiting.drop(0)
    assert len(waiting._by_position[0]._heap) < 1000
    assert len(waiting._by_deadline._heap) < 1000


def test_names_and_positions_count_among_the_bytes_of_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_queries, "WAITING_BYTES_MAX", 10_000)
    waiting = WaitingQueries()
    for large in (
        WaitingQuery(0, 1, 0, ("n" * 10_000, b""), {0: 5}),
        WaitingQuery(0, 1, 0, ("\u3042" * 2_500, b""), {0: 5}),
        WaitingQuery(0, 1, 0, ("Total", b""), dict.fromkeys(range(100), 5)),
    ):
        with pytest.raises(Overloaded):
            waiting.park(large, 5.0, {}, 0.0)


def test_the_one_that_has_waited_longest_is_known_whichever_have_left() -> None:
    waiting = WaitingQueries()
    for number in range(1, 100):
        waiting.park(entry({0: number}), 500.0, {}, float(number))
    for number in range(1, 99):
        assert waiting.oldest_s() == float(number)
        waiting.wake({0: number})
    assert waiting.oldest_s() == 99.0


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ("WAITING_MAX", "waiting queries"),
        ("WAITING_OF_ONE_MAX", "waiting queries of one client"),
        ("WAITING_BYTES_MAX", "bytes of waiting queries"),
    ],
)
def test_what_waits_is_bounded_in_all_for_one_client_and_in_bytes(
    bound: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_queries, bound, 10 if bound != "WAITING_BYTES_MAX" else 6_000)
    waiting = WaitingQueries()
    refused = ""
    while not refused:
        try:
            waiting.park(entry({0: 5}), 5.0, {}, 0.0)
        except Overloaded as error:
            refused = str(error)
    assert told in refused
    assert 1 <= len(waiting) <= 11
    waiting.wake({0: 5})
    waiting.park(entry({0: 6}), 5.0, {}, 0.0)
    assert len(waiting) == 1
