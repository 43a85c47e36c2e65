"""What partitions keep for subscriptions of a name: places, grants, leases, beginnings, other numbers of members."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from rayfold import Damaged, InvalidMessage, StorageFailed, SubscriptionInUse, Unavailable
from rayfold.runtime.feed import committed_positions, group_coordinator
from rayfold.runtime.feed.committed_positions import CommittedPositions, Member
from rayfold.runtime.feed.group_coordinator import LEASE_S, coordinator_of, process_here, rows_up_to
from rayfold.runtime.feed.group_share import Divided
from rayfold.runtime.feed.named_subscriptions import forget_subscription, subscriptions_of
from rayfold.runtime.log import subscription_rows
from rayfold.runtime.log.memory import MemoryLog
from tests.runtime.log.appends import ALICE, deposits
from tests.support.log_calls import LogCalls

PARTITIONS = 4
EVENTS = 20

Opened = Callable[..., CommittedPositions]


@pytest.fixture
def calls() -> LogCalls:
    logs = {number: MemoryLog() for number in range(PARTITIONS)}
    for log in logs.values():
        log.append(log.activate(), [deposits(ALICE, *range(EVENTS))])
    return LogCalls(logs, leased=True)


@pytest.fixture
def opened(calls: LogCalls, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Opens a member, as another process of another machine would unless `here` is set."""
    with ExitStack() as opened:
        others = iter(range(1_000_000))

        def make(
            number: int = 0,
            of: int = 1,
            *,
            name: str = "mailer",
            divided: Divided = "by stream",
            start: Mapping[int, int] = dict.fromkeys(range(PARTITIONS), 0),
            here: bool = False,
            on: LogCalls = calls,
        ) -> CommittedPositions:
            other = next(others)
            who = ["this process", process_here()] if here else [f"the other {other}", f"elsewhere|{other}|1"]
            monkeypatch.setattr(committed_positions, "_holder", lambda: who)
            member = Member(name, number, of, divided)
            one = CommittedPositions(on, None, member, start, lambda _partition, _position: "", "x")
            opened.callback(one.close)
            return one

        yield make


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Some seconds have passed, for leases."""
    now_s = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now_s() + seconds)


def test_the_next_one_goes_on_where_the_last_one_has_acknowledged(opened: Opened) -> None:
    first = opened(start={0: 5, 1: 0, 2: 0, 3: 20})
    assert first.positions == {0: 5, 1: 0, 2: 0, 3: 20}
    first.save({0: 9, 1: 2, 2: 0, 3: 20}, wait=True)
    first.save({0: 7, 1: 3, 2: 0, 3: 20}, wait=True)
    first.close()
    assert opened(start=dict.fromkeys(range(PARTITIONS), 1)).positions == {0: 9, 1: 3, 2: 0, 3: 20}


def test_what_is_held_names_its_holder_until_it_is_closed_or_its_lease_has_run_out(
    opened: Opened, calls: LogCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    with pytest.raises(SubscriptionInUse, match="member 0 of 1 is in use by the other 0"):
        opened()
    opened(name="another")
    first.close()
    second = opened()
    later(monkeypatch, LEASE_S - 1)
    with pytest.raises(SubscriptionInUse):
        opened()
    calls.call(coordinator_of("mailer", PARTITIONS), "renew", "mailer", 0, second._grant, patience_s=0.0)
    later(monkeypatch, LEASE_S - 1)
    with pytest.raises(SubscriptionInUse):
        opened()
    later(monkeypatch, 2)
    opened()


def test_a_holder_whose_name_was_taken_saves_nothing_any_more_and_notices(
    opened: Opened, calls: LogCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = opened()
    later(monkeypatch, LEASE_S + 1)
    taker = opened()
    with pytest.raises(SubscriptionInUse, match="another process, which has opened it since"):
        late.save(dict.fromkeys(range(PARTITIONS), 20), wait=True)
    with pytest.raises(SubscriptionInUse):
        late.check_open()
    with pytest.raises(SubscriptionInUse):
        calls.call(coordinator_of("mailer", PARTITIONS), "renew", "mailer", 0, late._grant, patience_s=0.0)
    late.close(dict.fromkeys(range(PARTITIONS), 20))
    taker.save(dict.fromkeys(range(PARTITIONS), 3), wait=True)
    taker.close()
    assert opened().positions == dict.fromkeys(range(PARTITIONS), 3)


def test_a_late_claim_of_an_earlier_holder_takes_nothing_away(opened: Opened, calls: LogCalls) -> None:
    first = opened()
    first.close()
    second = opened()
    claim = ("mailer", 0, 1, "by stream", first._grant, first._grant, [0, ""])
    for partition in range(PARTITIONS):
        assert calls.call(partition, "claim", *claim, patience_s=0.0) == [0, second._grant]
    second.save(dict.fromkeys(range(PARTITIONS), 3), wait=True)


def test_a_lease_begins_anew_where_its_home_was_started_again(
    opened: Opened, calls: LogCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = opened()
    for partition in range(PARTITIONS):
        calls.restart(partition)
    with pytest.raises(SubscriptionInUse, match="is in use by the other 0"):
        opened()
    holder.save(dict.fromkeys(range(PARTITIONS), 2), wait=True)
    later(monkeypatch, LEASE_S + 1)
    assert opened().positions == dict.fromkeys(range(PARTITIONS), 2)


@pytest.mark.slow
def test_the_end_of_a_process_of_the_same_machine_frees_its_name_at_once(opened: Opened, calls: LogCalls) -> None:
    program = "from rayfold.runtime.feed.group_coordinator import process_here; print(process_here(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys; {program}; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        holder = ["the child", child.stdout.readline().strip()]
        join: tuple[Any, ...] = ("mailer", 0, 1, "by stream", [[0, ""]] * PARTITIONS, holder, [], 0)
        calls.call(coordinator_of("mailer", PARTITIONS), "join", *join, patience_s=0.0)
        with pytest.raises(SubscriptionInUse, match="is in use by the child"):
            opened()
        child.kill()
        child.wait()
        opened()


def test_a_process_that_could_not_close_its_name_opens_it_again(opened: Opened, calls: LogCalls) -> None:
    first = opened(here=True)
    with pytest.raises(SubscriptionInUse):
        opened(here=True)
    calls.silent.add(coordinator_of("mailer", PARTITIONS))
    first.close()
    calls.silent.clear()
    with pytest.raises(SubscriptionInUse):
        opened()
    opened(here=True)


def test_a_partition_that_is_away_holds_up_nothing_and_is_saved_to_later(opened: Opened, calls: LogCalls) -> None:
    one = opened()
    calls.silent.add(2)
    everywhere = dict.fromkeys(range(PARTITIONS), 4)
    one.save(everywhere)
    assert one.positions == {0: 4, 1: 4, 2: 0, 3: 4}
    calls.calls.clear()
    one.save(everywhere)
    assert calls.calls == [], "it is not asked again at once"
    with pytest.raises(Unavailable):
        one.save(everywhere, wait=True)
    calls.silent.clear()
    one.save(everywhere, wait=True)
    assert one.positions == everywhere


def test_another_number_of_members_begins_at_the_lowest_place_of_those_that_read_the_partition(opened: Opened) -> None:
    first, second = opened(0, 2), opened(1, 2)
    assert (list(first.positions), list(second.positions)) == ([0, 1], [2, 3])
    first.save({0: 7, 1: 3}, wait=True)
    second.save({2: 5, 3: 20}, wait=True)
    with pytest.raises(SubscriptionInUse, match="member 0 of 2 is in use by the other"):
        opened(0, 3)
    first.close()
    with pytest.raises(SubscriptionInUse, match="member 1 of 2 is in use by the other"):
        opened(0, 3)
    second.close()
    assert [opened(number, 3).positions for number in range(3)] == [{0: 7, 1: 3}, {1: 3, 2: 5}, {2: 5, 3: 20}]


def test_who_has_not_begun_counts_with_where_all_began(opened: Opened) -> None:
    start = dict.fromkeys(range(PARTITIONS), 1)
    ahead = opened(0, 8, start=start)
    ahead.save({0: 9}, wait=True)
    ahead.close()
    assert opened(0, 1).positions == start, "members 1 to 7 were never opened"


def test_sharing_by_key_and_by_stream_are_different_divisions(opened: Opened) -> None:
    with ExitStack() as by_key:
        for number in range(2):
            one = opened(number, 2, divided="by key")
            by_key.callback(one.close)
            one.save({0: 4 + number, 1: 6, 2: 0, 3: 0}, wait=True)
        with pytest.raises(SubscriptionInUse):
            opened(0, 2)
    assert opened(0, 2).positions == {0: 4, 1: 6}


def test_a_name_that_began_at_the_end_keeps_it_for_members_that_come_later(opened: Opened) -> None:
    opened(0, 2, start={0: 5, 1: 6, 2: 7, 3: 8})
    assert opened(1, 2, start=dict.fromkeys(range(PARTITIONS), 20)).positions == {2: 7, 3: 8}


def test_a_coordinator_of_an_older_backup_grants_more_than_what_the_other_logs_have_seen(
    opened: Opened, calls: LogCalls
) -> None:
    coordinator = coordinator_of("mailer", PARTITIONS)
    first = opened(0, 2)
    first.close()
    older = calls.logs[coordinator].subscription_rows()
    second = opened(0, 3)
    second.save({0: 4, 1: 4}, wait=True)
    second.close()
    heads = dict.fromkeys(range(PARTITIONS), EVENTS)
    log = calls.logs[coordinator]
    assert isinstance(log, MemoryLog)
    log._rows = rows_up_to(older, coordinator, heads)
    calls.restart(coordinator)
    positions = opened(0, 1).positions
    lowest = {0: 4, 1: 0, 2: 0, 3: 0}  # members 1 and 2 of 3 had begun nothing
    assert {one: at for one, at in positions.items() if one != coordinator} == {
        one: at for one, at in lowest.items() if one != coordinator
    }


def test_nothing_beyond_the_end_of_a_log_is_acknowledged(opened: Opened) -> None:
    with pytest.raises(InvalidMessage, match="position 21 cannot be acknowledged: partition 0 is at 20"):
        opened().save({0: EVENTS + 1}, wait=True)


def test_places_of_a_log_that_is_restored_up_to_a_position_are_not_beyond_it(opened: Opened, calls: LogCalls) -> None:
    one = opened(start=dict.fromkeys(range(PARTITIONS), 10))
    one.save(dict.fromkeys(range(PARTITIONS), 15), wait=True)
    heads = {0: 12, 1: 20, 2: 3, 3: 0}
    for partition, log in calls.logs.items():
        rows = rows_up_to(log.subscription_rows(), partition, heads)
        assert isinstance(log, MemoryLog)
        log._rows = rows
        calls.restart(partition)
    assert opened().positions == {0: 12, 1: 15, 2: 3, 3: 0}, "and it is not open any more"


def test_the_rows_of_a_log_are_bounded(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_rows, "ROWS_MAX", 12)
    full = "it keeps 12 rows of subscriptions, and no more; forget names"
    with pytest.raises(StorageFailed, match=full):
        _ = [opened(name=f"name{number}") for number in range(9)]


def test_subscriptions_are_listed_with_what_they_have_not_acknowledged(opened: Opened, calls: LogCalls) -> None:
    opened(name="alone").save({0: 20, 1: 19, 2: 18, 3: 0}, wait=True)
    opened(1, 2, name="half", start={0: 1, 1: 2, 2: 3, 3: 4})
    alone, half = subscriptions_of(calls, None, PARTITIONS)
    assert (alone.name, alone.members, alone.behind) == ("alone", 1, 1 + 2 + 20)
    assert alone.holders == {0: "the other 0"}
    assert (half.name, half.members, half.positions) == ("half", 2, {0: 1, 1: 2, 2: 3, 3: 4})
    assert list(half.holders) == [1]


def test_a_name_is_forgotten_once_it_is_closed_and_begins_anew(opened: Opened, calls: LogCalls) -> None:
    one = opened()
    one.save(dict.fromkeys(range(PARTITIONS), 9), wait=True)
    with pytest.raises(SubscriptionInUse, match="member 0 of 1 is in use by the other 0"):
        forget_subscription(calls, None, "mailer", PARTITIONS)
    one.close()
    assert forget_subscription(calls, None, "mailer", PARTITIONS)
    assert not forget_subscription(calls, None, "mailer", PARTITIONS)
    assert subscriptions_of(calls, None, PARTITIONS) == []
    assert opened().positions == dict.fromkeys(range(PARTITIONS), 0)


def test_a_holder_whose_name_was_forgotten_while_it_stood_still_is_not_referred_to_another_one(
    opened: Opened, calls: LogCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened()
    monkeypatch.setattr(group_coordinator, "LEASE_S", -1.0)
    assert forget_subscription(calls, None, "mailer", PARTITIONS)
    what = "subscription 'mailer' was forgotten while member 0 was open here; open it again"
    with pytest.raises(SubscriptionInUse, match=what):
        calls.call(coordinator_of("mailer", PARTITIONS), "renew", "mailer", 0, one._grant, patience_s=0)
    for _ in range(2):
        with pytest.raises(SubscriptionInUse, match=what):
            one.save(dict.fromkeys(range(PARTITIONS), 9), wait=True)
    with pytest.raises(SubscriptionInUse, match=what):
        one.check_open()
    opened()
    with pytest.raises(SubscriptionInUse, match="another process, which has opened it since"):
        calls.call(coordinator_of("mailer", PARTITIONS), "renew", "mailer", 0, one._grant, patience_s=0)


def test_a_row_that_is_not_what_was_written_is_damaged(opened: Opened, calls: LogCalls) -> None:
    opened().close()
    for log in calls.logs.values():
        log.change_rows(log.epoch(), lambda rows: rows.put("mailer/group", b"\xc1"))
    with pytest.raises(Damaged, match="subscription mailer"):
        opened()
