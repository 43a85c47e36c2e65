"""Subscriptions over a store that another process writes: places, filters, acknowledgements, members, damage."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rayfold import (
    BlockingSubscription,
    CallerError,
    Damaged,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    NotInHistory,
    NotPrivate,
    Receipt,
    StoreMismatch,
    StreamId,
    SubscriptionInUse,
    UnknownEvent,
    UnknownName,
    subscribe,
)
from rayfold.runtime.durable_files import checksum_of
from rayfold.runtime.feed.committed_positions import CommittedPositions, Member
from rayfold.runtime.feed.direct_calls import DirectCalls
from rayfold.runtime.feed.group_coordinator import coordinator_of, link_at
from rayfold.runtime.feed.log_follower import LogFollower
from rayfold.runtime.feed.member_locks import FolderLocks
from rayfold.runtime.feed.named_subscriptions import forget_subscription, subscriptions_of
from rayfold.runtime.log.format import META
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.store.store_lock import StoreLock
from tests.bank import Account, Deposited, Opened, Vault, Withdrawn
from tests.other_user import NOBODY, needs_root
from tests.runtime.log.appends import ALICE
from tests.runtime.log.appends import deposits as deposits_of
from tests.support.log_calls import LogCalls
from tests.support.other_writer import ROOT, OtherWriter, deposits

pytestmark = pytest.mark.slow

NAMES = [f"account {number}" for number in range(12)]


@pytest.fixture(scope="module")
def writer() -> Iterator[OtherWriter]:
    writing = OtherWriter()
    yield writing
    writing.stop()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_or_open_store(tmp_path / "bank-data", 2)


Open = Callable[..., BlockingSubscription]


@pytest.fixture
def opened(store: Store) -> Iterator[Open]:
    """Subscribes to the store; closed with the test."""
    made: list[BlockingSubscription] = []

    def make(*arguments: Any, **options: Any) -> BlockingSubscription:
        made.append(subscribe(store.path, *arguments, aggregates=[Account, Vault], **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def amounts(subscription: BlockingSubscription, count: int) -> list[int]:
    """Of the next events, which have to be deposits."""
    found = [event for event, _ in islice(subscription, count)]
    return [event.amount for event in found if isinstance(event, Deposited)]


def test_a_subscription_from_the_beginning_has_what_was_and_then_what_comes_in_one_sequence(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    writer.write(store, *deposits(1, 2))
    subscription = opened()
    writer.write(store, *deposits(3))
    assert amounts(subscription, 3) == [1, 2, 3]
    writer.write(store, *deposits(4))
    [(event, recorded)] = islice(subscription, 1)
    assert event == Deposited(amount=4)
    assert (recorded.stream, recorded.version, recorded.replayed) == (StreamId("Account", "alice"), 4, False)


@pytest.mark.parametrize("before", [[], [1, 2]])
def test_a_subscription_from_the_end_has_only_what_comes(
    writer: OtherWriter, store: Store, opened: Open, before: list[int]
) -> None:
    writer.write(store, *deposits(*before))
    subscription = opened(from_="end")
    writer.write(store, *deposits(7))
    assert amounts(subscription, 1) == [7]


def test_a_subscription_from_a_position_has_what_is_after_it(writer: OtherWriter, store: Store, opened: Open) -> None:
    [(partition, position), _] = writer.write(store, *deposits(1, 2))
    assert amounts(opened(from_={partition: position}), 1) == [2]
    receipt = Receipt(StreamId("Account", "alice"), partition, position, 1, bytes(16))
    assert amounts(opened(from_=receipt), 1) == [2]
    with pytest.raises(InvalidMessage, match="the receipt is of the store another, and this is the store"):
        opened(from_=receipt._replace(store_id="another"))
    with pytest.raises(NotInHistory, match=f"partition {partition} has no position 3; it is at 2"):
        opened(from_={partition: 3})


def test_each_event_comes_once_and_in_order_in_its_partition_over_many_pages(
    writer: OtherWriter, store: Store, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LogFollower.read
    monkeypatch.setattr(LogFollower, "read", lambda self: read(self, 4))
    written = writer.write(store, *[(name, Opened(owner="Ada")) for name in NAMES * 3])
    places = [(place.partition, place.position) for _, place in islice(opened(), len(written))]
    assert len(set(places)) == len(written)
    for partition in range(2):
        assert [place for place in places if place[0] == partition] == [p for p in written if p[0] == partition]


def test_types_and_streams_choose_and_what_is_filtered_out_still_advances_it(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    writer.write(store, ("alice", Opened(owner="Ada")), ("bob", Opened(owner="Bob")), *deposits(5))
    writer.write(store, ("bob", Deposited(amount=6)), ("bob", Withdrawn(amount=1)))
    assert amounts(opened(types=[Deposited], streams=["Account/bob"]), 1) == [6]
    assert amounts(opened(types=["Deposited"], streams=[StreamId("Account", "alice")]), 1) == [5]
    assert amounts(opened(types=[Deposited], streams=lambda stream: stream.id == "bob"), 1) == [6]
    assert len([*islice(opened(streams=Account), 5)]) == 5
    nothing = opened("rare", types=[Deposited], streams=[Vault])
    reading = threading.Thread(target=lambda: next(nothing, None))
    reading.start()
    while sum(nothing.acknowledged.values()) < 5:
        assert reading.is_alive()
    nothing.close()
    reading.join()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"types": ["Depositted"]}, UnknownName, "no event is named 'Depositted'; known: "),
        ({"types": [Account]}, UnknownName, "no event is named 'Account'"),
        ({"streams": ["Acount/alice"]}, UnknownName, "no aggregate is named 'Acount'; known: Account, Vault"),
        ({"streams": ["alice"]}, InvalidId, "stream 'alice' is none"),
        ({"streams": [Deposited]}, UnknownName, "no aggregate is named 'Deposited'"),
        ({"from_": "start"}, InvalidMessage, "from_ is 'start'; choose 'beginning', 'end', positions"),
        ({"member": 0, "of": 2}, InvalidMessage, "a member of a group needs the group's name"),
        ({"name": "mailer", "member": 2, "of": 2}, InvalidMessage, "it has no member 2 of 2; choose 0 to 1"),
        ({"name": "../mailer"}, InvalidId, "subscription '../mailer' is not a name of up to 64 ASCII letters"),
        ({"name": ".."}, InvalidId, "subscription '..' is not a name"),
        ({"name": ""}, InvalidId, "subscription '' is not a name"),
        ({"name": "rayfold.x"}, InvalidId, "subscription 'rayfold.x' begins with 'rayfold.', which is for Rayfold"),
        ({"name": "mailer", "acknowledge": "never"}, InvalidMessage, "acknowledge is 'never'"),
        ({"name": "mailer", "key": lambda *_: "x"}, InvalidMessage, "a key without a group has no meaning"),
    ],
)
def test_what_can_match_nothing_is_refused_at_once(
    opened: Open, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told.replace("(", r"\(")):
        opened(**options)


def test_old_events_are_upcast(writer: OtherWriter, store: Store, opened: Open) -> None:
    old = msgpack.packb({"amount": 3}).hex()
    writer.write_packed(store, ("Account", "alice", "Deposited", 1, old))
    assert [event for event, _ in islice(opened(), 1)] == [Deposited(amount=3, currency="EUR")]


def test_an_event_that_nobody_knows_is_an_error_at_its_place_unless_it_is_filtered_out(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    writer.write(store, *deposits(1))
    writer.write_packed(store, ("Account", "alice", "Vanished", 1, msgpack.packb({}).hex()))
    writer.write(store, *deposits(2))
    subscription = opened()
    assert amounts(subscription, 1) == [1]
    for _ in range(2):
        with pytest.raises(UnknownEvent, match="stored event 'Vanished' version 1 cannot be read"):
            next(subscription)
    assert amounts(opened(types=[Deposited]), 2) == [1, 2]


def test_a_function_that_fails_is_named_with_the_event(writer: OtherWriter, store: Store, opened: Open) -> None:
    writer.write(store, *deposits(1))
    with pytest.raises(HandlerFailed, match="streams= of the subscription failed on event 1 of partition . .*KeyError"):
        next(opened(streams=lambda stream: {}[stream]))


def test_a_damaged_record_is_an_error_and_never_data(writer: OtherWriter, store: Store, opened: Open) -> None:
    [(partition, _), _] = writer.write(store, *deposits(1, 2))
    path = store.partition_path(partition) / "data.mdb"
    content = path.read_bytes()
    payload = msgpack.packb({"amount": 2, "currency": "EUR"})
    assert payload in content
    path.write_bytes(content.replace(payload, msgpack.packb({"amount": 9, "currency": "EUR"})))
    subscription = opened()
    assert amounts(subscription, 1) == [1]
    with pytest.raises(Damaged, match="event 2 is damaged: its checksum is wrong"):
        next(subscription)


def test_batches_have_what_there_is(writer: OtherWriter, store: Store, opened: Open) -> None:
    writer.write(store, *deposits(*range(5)))
    subscription = opened("mailer")
    sizes = [len(batch) for batch in islice(subscription.batches(max_items=2), 3)]
    assert sizes == [2, 2, 1]
    assert sum(subscription.acknowledged.values()) <= 4, "the last batch has not been asked past"
    with pytest.raises(InvalidMessage, match="max_items is 0; choose 1 to 512"):
        next(subscription.batches(max_items=0))


def test_a_restart_resumes_after_the_last_acknowledged_event(writer: OtherWriter, store: Store, opened: Open) -> None:
    writer.write(store, *deposits(1, 2, 3, 4))
    subscription = opened("mailer", acknowledge="by hand")
    assert amounts(subscription, 2) == [1, 2]
    subscription.acknowledge()
    _, third = next(subscription)
    _, fourth = next(subscription)
    subscription.acknowledge(third)
    subscription.close()
    again = opened("mailer", acknowledge="by hand")
    assert amounts(again, 1) == [4]
    with pytest.raises(CallerError, match="position 5 of partition . has not been yielded"):
        again.acknowledge(fourth._replace(position=fourth.position + 1))
    again.acknowledge(third)
    assert sum(again.acknowledged.values()) == 3, "it does not go back"


def test_on_next_an_event_is_acknowledged_when_the_next_is_asked_for(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    writer.write(store, *deposits(1, 2, 3))
    for expected in ([1, 2], [2, 3]):  # the one that was in work comes again
        subscription = opened("mailer")
        assert amounts(subscription, 2) == expected
        subscription.close()


def test_acknowledged_by_hand_what_is_filtered_out_advances_it_unless_an_event_before_it_is_open(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    written = writer.write(store, *[(name, Opened(owner="Ada")) for name in NAMES], ("alice", Deposited(amount=1)))
    writer.write(store, ("alice", Opened(owner="Ada")))
    subscription = opened("mailer", types=[Deposited], acknowledge="by hand")
    _, recorded = next(subscription)
    waiting = threading.Thread(target=lambda: next(subscription, None))
    waiting.start()
    elsewhere = max(position for partition, position in written if partition != recorded.partition)
    while subscription.acknowledged[1 - recorded.partition] < elsewhere:
        assert waiting.is_alive()
    assert subscription.acknowledged[recorded.partition] < recorded.position
    subscription.acknowledge(recorded)
    assert subscription.acknowledged[recorded.partition] == recorded.position + 1
    subscription.close()
    waiting.join()


def test_the_end_that_a_name_began_at_is_kept(writer: OtherWriter, store: Store, opened: Open) -> None:
    writer.write(store, *deposits(1))
    opened("mailer", from_="end").close()
    writer.write(store, *deposits(2))
    assert amounts(opened("mailer", from_="end"), 1) == [2]


def test_without_a_name_there_is_nothing_to_acknowledge(opened: Open) -> None:
    with pytest.raises(CallerError, match="without a name has nothing to acknowledge"):
        opened().acknowledge()


def test_a_name_is_open_once_and_free_when_its_holder_lets_go(writer: OtherWriter, store: Store, opened: Open) -> None:
    writer.write(store, *deposits(1, 2))
    first = opened("mailer")
    with pytest.raises(
        SubscriptionInUse, match="subscription 'mailer': member 0 of 1 is in use by subscription mailer"
    ):
        opened("mailer")
    opened("another")
    first.close()
    opened("mailer").close()
    for _ in subscribe(store.path, "mailer", aggregates=[Account]):
        break  # the iterator is not held any more
    opened("mailer")


HOLDS = """
import sys
from rayfold import subscribe
from tests.bank import Account
with subscribe(sys.argv[1], "mailer", aggregates=[Account]) as subscription:
    print(next(subscription)[0].amount, flush=True)
    sys.stdin.read()  # at work on the first, for good
"""


def test_a_killed_process_lets_go_of_its_name_and_what_it_was_working_on_comes_again(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    writer.write(store, *deposits(1, 2))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(store.path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        with pytest.raises(SubscriptionInUse, match=f"process {child.pid} on"):
            opened("mailer")
        child.kill()
    assert amounts(opened("mailer"), 2) == [1, 2]


FORKS = """
import os, sys
from rayfold import subscribe
from tests.bank import Account
subscription = subscribe(sys.argv[1], "mailer", aggregates=[Account])
print(next(subscription)[0].amount, next(subscription)[0].amount, next(subscription)[0].amount)
sys.stdout.flush()
go_on, parent_is_done = os.pipe()
if os.fork() == 0:
    os.read(go_on, 1)
    CHILD
    sys.exit(0)
print(next(subscription)[0].amount)
subscription.acknowledge()
os.write(parent_is_done, b"x")
os.wait()
print(next(subscription)[0].amount, flush=True)
os._exit(0)  # as killed: nothing is saved any more
"""


@pytest.mark.parametrize("child", ["pass", "subscription.close()", "del subscription"])
def test_the_end_of_a_forked_child_acknowledges_nothing(
    writer: OtherWriter, store: Store, opened: Open, child: str
) -> None:
    writer.write(store, *deposits(1, 2, 3, 4, 5, 6))
    program = FORKS.replace("CHILD", child)
    told = subprocess.run(
        [sys.executable, "-c", program, str(store.path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (told.stdout.split(), told.stderr) == (["1", "2", "3", "4", "5"], "")
    assert amounts(opened("mailer"), 2) == [5, 6]


def test_a_forked_child_that_acknowledges_is_told_to_open_it_again(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    writer.write(store, *deposits(1, 2, 3, 4, 5))
    acknowledges = """
    try:
        subscription.acknowledge()
    except Exception as error:
        print(str(error).partition(": ")[2], flush=True)
"""
    program = FORKS.replace("    CHILD", acknowledges)
    told = subprocess.run(
        [sys.executable, "-c", program, str(store.path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "open it again after a fork" in told.stdout


@pytest.mark.parametrize("file", ["group.json", "member-00000/positions.json"])
@pytest.mark.parametrize("change", [lambda text: text.replace("1", "2"), lambda text: text[:20], lambda _: "[]"])
def test_a_place_of_an_earlier_release_that_decayed_is_an_error_and_not_a_new_beginning(
    writer: OtherWriter, store: Store, opened: Open, file: str, change: Callable[[str], str]
) -> None:
    writer.write(store, *deposits(1, 2))
    keep_in_files(store, "mailer", [{0: 1, 1: 0}])
    path = store.path / "subscriptions/mailer" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(Damaged, match=f"{path.name} is damaged"):
        opened("mailer")


@pytest.mark.parametrize("kind", ["from", "place/00000"])
def test_an_acknowledgement_that_decayed_is_an_error_and_not_a_new_beginning(
    writer: OtherWriter, store: Store, opened: Open, kind: str
) -> None:
    writer.write(store, *deposits(1, 2))
    subscription = opened("mailer")
    assert amounts(subscription, 1) == [1]
    subscription.acknowledge()
    subscription.close()
    spoil_row(store, f"mailer/{kind}")
    with pytest.raises(Damaged, match=f"meta 'subscription/mailer/{kind}' is damaged"):
        opened("mailer")


def spoil_row(store: Store, key: str) -> None:
    """Change a byte of a row in each log."""
    for partition in range(store.partitions):
        log = store.open_log(partition)
        full = b"subscription/" + key.encode()

        def spoil(transaction: Any, log: Any = log, full: bytes = full) -> None:
            meta = log.environment.database(META)
            stored = transaction.get(full, db=meta)
            transaction.put(full, stored[:-1] + bytes([stored[-1] ^ 1]), db=meta)

        log.environment.write(spoil)
        log.close()


def shared_out(members: Sequence[BlockingSubscription], count: int) -> list[list[tuple[int, int]]]:
    """The places that each member has seen once all together have seen so many."""
    seen: list[list[tuple[int, int]]] = [[] for _ in members]

    def consume(subscription: BlockingSubscription, places: list[tuple[int, int]]) -> None:
        for _, place in subscription:
            places.append((place.partition, place.position))

    threads = [threading.Thread(target=consume, args=one) for one in zip(members, seen, strict=True)]
    for thread in threads:
        thread.start()
    while sum(map(len, seen)) < count:
        assert all(thread.is_alive() for thread in threads)
    for member, thread in zip(members, threads, strict=True):
        member.close()
        thread.join()
    return seen


@pytest.mark.parametrize("key", [None, lambda event, place: f"{place.partition} {place.position}"])
def test_the_members_of_a_group_are_disjoint_and_together_complete(
    writer: OtherWriter, store: Store, opened: Open, key: Any
) -> None:
    written = writer.write(store, *[(name, Opened(owner=name)) for name in NAMES * 3])
    members = [opened("mailer", member=member, of=3, key=key) for member in range(3)]
    seen = shared_out(members, len(written))
    assert all(seen), "each has some"
    assert sorted(place for places in seen for place in places) == sorted(written)


@pytest.mark.parametrize("key", [None, ["ada"], 7])
def test_a_key_that_is_no_text_is_named(store: Store, opened: Open, key: Any) -> None:
    append_deposit(store, 1)
    what = f"key= of .* failed on event 1 of partition 0.*: TypeError: key= returned {re.escape(str(key))}, give text"
    with pytest.raises(HandlerFailed, match=what):
        next(opened("mailer", member=0, of=2, key=lambda *_: key))


def test_another_number_of_members_begins_at_the_lowest_that_was_acknowledged(
    writer: OtherWriter, store: Store, opened: Open
) -> None:
    written = writer.write(store, *[(name, Opened(owner=name)) for name in NAMES])
    ahead, behind = (opened("mailer", member=member, of=2, acknowledge="by hand") for member in range(2))
    done = [place for _, place in islice(ahead, 3)]
    ahead.acknowledge()
    first = next(behind)[1]
    with pytest.raises(SubscriptionInUse, match="member 0 of 2 is in use"):
        opened("mailer", member=2, of=3)
    behind.acknowledge(first)
    lowest = ahead.acknowledged | behind.acknowledged
    assert (list(ahead.acknowledged), list(behind.acknowledged)) == ([0], [1]), "each reads a partition of its own"
    ahead.close()
    behind.close()
    members = [opened("mailer", member=member, of=3) for member in range(3)]
    read = [[0], [0, 1], [1]]
    assert [one.acknowledged for one in members] == [{number: lowest[number] for number in here} for here in read]
    expected = {place for place in written if place[1] > lowest[place[0]]}
    again = {place for places in shared_out(members, len(expected)) for place in places}
    assert again == expected
    untouched = set(written) - {(place.partition, place.position) for place in [*done, first]}
    assert untouched <= again, "nothing is left out"


def test_files_of_another_store_are_refused(store: Store, opened: Open) -> None:
    other = create_or_open_store(store.path.parent / "another", 2)
    keep_in_files(other, "mailer", [{0: 0, 1: 0}])
    (other.path / "subscriptions").rename(store.path / "subscriptions")
    with pytest.raises(StoreMismatch, match=f"this is a subscription to the store {other.store_id}, not to"):
        opened("mailer")


def exchanged(store: Store, kept: Path) -> None:
    """Put older logs back in the place of those that are there."""
    for partition in range(store.partitions):
        shutil.rmtree(store.partition_path(partition))
        shutil.copytree(kept / store.partition_path(partition).name, store.partition_path(partition))


def test_a_log_that_was_put_back_has_the_places_of_its_time(store: Store, opened: Open, tmp_path: Path) -> None:
    for number in range(5):
        append_deposit(store, number)
    with opened("mailer", acknowledge="by hand") as subscription:
        amounts(subscription, 3)
        subscription.acknowledge()
    shutil.copytree(store.path, tmp_path / "kept")
    for number in range(5, 10):
        append_deposit(store, number)
    with opened("mailer", acknowledge="by hand") as subscription:
        assert amounts(subscription, 7) == [*range(3, 10)]
        subscription.acknowledge()
    exchanged(store, tmp_path / "kept")
    append_deposit(store, 100)
    assert amounts(opened("mailer"), 3) == [3, 4, 100]


@pytest.mark.parametrize("kept", ["in files", "as the beginning of a name"])
def test_what_was_noted_of_another_history_is_refused_and_nothing_left_out_in_silence(
    store: Store, opened: Open, tmp_path: Path, kept: str
) -> None:
    name = next(one for one in ("mailer", "others", "third") if coordinator_of(one, 2) == 1)
    for number in range(5):
        append_deposit(store, number)
    shutil.copytree(store.partition_path(0), tmp_path / "kept")
    for number in range(5, 10):
        append_deposit(store, number)
    if kept == "in files":
        keep_in_files(store, name, [{0: 10, 1: 0}])
    else:
        opened(name, from_="end", member=1, of=2).close()  # a member that does not read partition 0
    shutil.rmtree(store.partition_path(0))
    shutil.copytree(tmp_path / "kept", store.partition_path(0))
    with pytest.raises(NotInHistory, match="has no position 10; it is at 5"):
        opened(name)
    for number in range(100, 108):
        append_deposit(store, number)
    with pytest.raises(StoreMismatch, match="event 10 of partition 0 is not the one that was acknowledged"):
        opened(name)


def append_deposit(store: Store, amount: int) -> None:
    log = store.open_log(0)
    log.append(log.activate(), [deposits_of(ALICE, amount)])
    log.close()


@pytest.mark.parametrize("links", [True, False], ids=["with links", "as the first releases"])
def test_places_that_an_earlier_release_kept_in_files_are_taken_over(store: Store, opened: Open, links: bool) -> None:
    for number in range(4):
        append_deposit(store, number)
    keep_in_files(store, "mailer", [{0: 2, 1: 0}], links=links)
    with opened("mailer", from_="end") as subscription:
        assert amounts(subscription, 1) == [2]
        subscription.acknowledge()
    keep_in_files(store, "mailer", [{0: 0, 1: 0}])
    assert amounts(opened("mailer"), 1) == [3], "they are taken over once"


def test_of_members_in_files_the_lowest_place_is_taken_over_whatever_their_number_now(
    store: Store, opened: Open
) -> None:
    for number in range(4):
        append_deposit(store, number)
    keep_in_files(store, "mailer", [{0: 3, 1: 0}, {0: 1, 1: 0}, {0: 2, 1: 0}])
    members = [opened("mailer", member=number, of=3) for number in range(3)]
    assert [one.acknowledged for one in members] == [{0: 1}, {0: 1, 1: 0}, {1: 0}]


def test_a_member_that_an_earlier_release_has_open_is_in_use(store: Store, opened: Open) -> None:
    keep_in_files(store, "mailer", [{0: 0, 1: 0}])
    folder = store.path / "subscriptions/mailer/member-00000"
    in_use = pytest.raises(SubscriptionInUse, match="member 0 of 1 is in use by subscription mailer")
    with StoreLock(folder, "subscription mailer"), in_use:
        opened("mailer")
    (folder.parent / "member-00001").mkdir(mode=0o700)
    in_use = pytest.raises(SubscriptionInUse, match="member 1 of 2 is in use by subscription mailer")
    with StoreLock(folder.parent / "member-00001", "subscription mailer"), in_use:
        opened("mailer")
    opened("mailer")


def test_an_activation_takes_over_all_names_before_the_log_may_move_away(store: Store) -> None:
    for number in range(4):
        append_deposit(store, number)
    keep_in_files(store, "mailer", [{0: 2, 1: 0}])
    keep_in_files(store, "damaged", [{0: 2, 1: 0}])
    path = store.path / "subscriptions/damaged/group.json"
    path.write_text(path.read_text().replace("1", "2"))
    log = store.open_log(0)
    files = store.path / "subscriptions"
    LogCalls({0: log, 1: MemoryLog()}, leased=True, store_id=store.store_id, files=files).coordinators[
        0
    ].take_over_files()
    elsewhere = LogCalls({0: log, 1: MemoryLog()}, leased=True, store_id=store.store_id)
    for name in ("mailer", "damaged"):
        arguments = (elsewhere, None, Member(name, 0, 1, "by stream"), {0: 0, 1: 0}, lambda *_: "", store.store_id)
        if name == "mailer":
            with closing(CommittedPositions(*arguments)) as committed:
                assert committed.positions == {0: 2, 1: 0}
        else:
            with pytest.raises(Damaged, match="its checksum is wrong"):
                CommittedPositions(*arguments)
    log.close()


def test_of_a_damaged_file_of_an_earlier_release_the_remedy_that_is_named_helps(store: Store, opened: Open) -> None:
    for number in range(4):
        append_deposit(store, number)
    for name in ("mailer", "others"):
        keep_in_files(store, name, [{0: 2, 1: 0}])
    folder = store.path / "subscriptions"
    shutil.copytree(folder, store.path / "copy")
    for path in folder.glob("*/group.json"):
        path.write_text(path.read_text().replace("1", "2"))
    remedy = "its checksum is wrong; put its folder back from a copy, or forget it: rayfold subscriptions ... --forget "
    log = store.open_log(0)
    logs: dict[int, Any] = {0: log, 1: MemoryLog()}
    LogCalls(logs, leased=True, store_id=store.store_id, files=folder).coordinators[0].take_over_files()
    log.close()
    for _ in range(2):
        for name in ("mailer", "others"):
            with pytest.raises(Damaged, match=re.escape(remedy + name) + "$"):
                opened(name)
        shutil.rmtree(folder, ignore_errors=True)  # which helps no more
    shutil.copytree(store.path / "copy", folder)
    assert amounts(opened("mailer"), 1) == [2]
    shutil.rmtree(folder / "others")
    assert forget_subscription(DirectCalls(store), FolderLocks(folder), "others", 2)
    assert amounts(opened("others"), 1) == [0]


@pytest.mark.parametrize("started", [False, True], ids=["at rest", "taken over by one partition"])
def test_names_of_an_earlier_release_are_listed_and_forgotten_before_they_are_taken_over(
    store: Store, started: bool
) -> None:
    for number in range(4):
        append_deposit(store, number)
    names = ("damaged", "gone", "mailer", "others")
    for name in names:
        keep_in_files(store, name, [{0: 3, 1: 0}, {0: 1, 1: 0}])
    folder = store.path / "subscriptions"
    path = folder / "damaged/group.json"
    path.write_text(path.read_text().replace("1", "2"))
    if started:
        log = store.open_log(0)
        logs: dict[int, Any] = {0: log, 1: MemoryLog()}
        LogCalls(logs, leased=True, store_id=store.store_id, files=folder).coordinators[0].take_over_files()
        log.close()
    calls, locks = DirectCalls(store), FolderLocks(folder)
    found = {one.name: one for one in subscriptions_of(calls, locks, 2)}
    assert tuple(found) == names
    assert "group.json is damaged: its checksum is wrong; put its folder back" in found.pop("damaged").problem
    assert {(one.behind, one.positions[0], one.problem) for one in found.values()} == {(3, 1, "")}
    for name in ("damaged", "gone"):
        assert forget_subscription(calls, locks, name, 2)
        assert not forget_subscription(calls, locks, name, 2)
    assert [one.name for one in subscriptions_of(calls, locks, 2)] == ["mailer", "others"]


def test_what_cannot_be_acknowledged_by_hand_is_a_fault_of_the_caller(store: Store, opened: Open) -> None:
    append_deposit(store, 1)
    with pytest.raises(InvalidMessage, match="without a name there is nothing to acknowledge by hand"):
        opened(acknowledge="by hand")
    with opened("mailer", acknowledge="by hand") as subscription:
        _, recorded = next(subscription)
    for arguments in ((), (recorded,)):
        with pytest.raises(CallerError, match="the subscription was closed; what is not acknowledged comes again"):
            subscription.acknowledge(*arguments)
    assert amounts(opened("mailer"), 1) == [1]


def keep_in_files(store: Store, name: str, members: Sequence[dict[int, int]], *, links: bool = True) -> None:
    """Positions by partition of each member, as an earlier release has written them."""

    def write(path: Path, facts: dict[str, Any]) -> None:
        facts = {"format": 1, "store_id": store.store_id, **facts}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(json.dumps({**facts, "checksum": checksum_of(facts)}) + "\n")
        path.chmod(0o600)

    def with_links(what: str, positions: dict[int, int]) -> dict[str, Any]:
        at = [positions[partition] for partition in range(store.partitions)]
        if not links:
            return {what: at}
        found = []
        for partition, position in enumerate(at):
            with closing(store.open_reader(partition)) as reader:
                found.append(link_at(reader, position))
        return {what: at, "links": found}

    folder = store.path / "subscriptions" / name
    began = dict.fromkeys(range(store.partitions), 0)
    write(folder / "group.json", {"generation": 1, "members": len(members), **with_links("start", began)})
    for member, positions in enumerate(members):
        path = folder / f"member-{member:05d}" / "positions.json"
        write(path, {"generation": 1, **with_links("positions", positions)})


@needs_root
@pytest.mark.parametrize("folder", ["subscriptions", "subscriptions/mailer", "subscriptions/mailer/group.json"])
def test_a_place_that_another_user_has_put_there_is_refused(store: Store, opened: Open, folder: str) -> None:
    keep_in_files(store, "mailer", [{0: 0, 1: 0}])
    os.chown(store.path / folder, NOBODY, NOBODY)
    with pytest.raises(NotPrivate, match=r"belongs to user nobody \(65534\), not to"):
        opened("mailer")


def test_a_slow_consumer_holds_one_page(
    writer: OtherWriter, store: Store, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(store, *deposits(*range(30)))
    follower_read = LogFollower.read
    monkeypatch.setattr(LogFollower, "read", lambda self: follower_read(self, 4))
    subscription = opened()
    for taken in range(1, 31):
        next(subscription)
        assert sum(subscription._feed.follower.positions.values()) - taken < 4
