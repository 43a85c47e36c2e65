"""Residents: a bounded cache over the log, and the snapshots that make a load short."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.saved_state import state_fingerprint
from rayfold.runtime.errors import Damaged, HandlerFailed, UnknownEvent, UnknownName
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write import residents
from rayfold.runtime.write.write_loop import WriteLoop
from tests.bank import Account, Deposit, Deposited, Open, Pay, Store, Stored, Vault
from tests.support.arrivals import CATALOGUE, Grow, Risky, activated, alice, balance, facts, risky, to
from tests.support.faulty_log import FaultyLog
from tests.support.ledger import Till

OPEN = Open(owner="Ada")
TEN = Deposit(amount=10)
ALICE = StreamId("Account", "alice")


class Empty(Vault):
    """A vault that is false in a condition as long as nothing is in it."""

    def __len__(self) -> int:
        return len(self.things)


def test_memory_is_bounded_and_what_fell_out_is_read_again(log: FaultyLog) -> None:
    loop = activated(log, residents_max=2)
    names = [f"account-{number}" for number in range(20)]
    loop.execute([to(Account, name, OPEN) for name in names])
    assert len(loop.residents) == 2
    for round_ in range(1, 4):
        done = loop.execute([to(Account, name, TEN) for name in names])
        assert all(facts(outcome)[1] == 1 + round_ for outcome in done.outcomes)
        assert len(loop.residents) == 2
    assert [balance(loop, name) for name in names] == [30] * 20


def test_the_least_recently_used_resident_goes_first(log: FaultyLog) -> None:
    loop = activated(log, residents_max=2)
    for name in ("a", "b", "a", "c"):
        loop.execute([to(Vault, name, Store(thing=str(log.head())))])
    assert [stream.id for stream in loop.residents._cache] == ["a", "c"]


def test_an_aggregate_that_is_false_in_a_condition_stays_in_memory(log: FaultyLog) -> None:
    catalogue = Catalogue([type("Vault", (Empty,), {"__module__": __name__})])
    loop = activated(log, catalogue=catalogue)
    loop.execute([to(Vault, "v", Store(thing="x"))])
    resident = loop.residents.check_out(StreamId("Vault", "v"))
    resident.things.clear()  # type: ignore[attr-defined]
    loop.residents.put_back(resident, StreamId("Vault", "v"))
    assert loop.residents.check_out(StreamId("Vault", "v")) is resident


def test_a_snapshot_saves_reading_the_events_before_it(
    loop: WriteLoop, log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.execute([alice(OPEN), alice(TEN), alice(TEN), alice(Pay(to="bob", amount=1)), alice(TEN)])
    asked: list[int] = []
    read_stream = log.read_stream

    def noted(stream: StreamId, from_version: int = 1, *rest: Any) -> list[bytes]:
        asked.append(from_version)
        return read_stream(stream, from_version, *rest)

    monkeypatch.setattr(log, "read_stream", noted)
    loop.residents.forget_all()
    assert facts(loop.execute([alice(TEN)]).outcomes[0])[1] == 7
    assert asked == [7], "snapshot_every=3, and the command that made versions 4 and 5 was followed by version 6"
    assert balance(loop) == 10 + 10 - 2 + 10 + 10


def test_a_snapshot_is_taken_when_a_command_steps_over_its_version(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([risky(Grow(events=1, size=0)), risky(Grow(events=2, size=0))])
    snapshot = log.find_snapshot(StreamId("Risky", "r"), state_fingerprint(Risky))
    assert snapshot is not None
    assert snapshot.version == 3


class Forgetful(Vault, name="Vault", snapshot_every=0):
    """A vault that takes no snapshots."""


class Doubling(Account, name="Account", snapshot_every=3):
    """The account after a change of its code."""

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += 2 * event.amount


def test_a_snapshot_of_other_code_is_not_used(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN), alice(TEN), alice(TEN)])
    assert log.find_snapshot(ALICE, state_fingerprint(Till)) is not None
    assert balance(activated(log, catalogue=Catalogue([Doubling]))) == 40


def test_a_snapshot_that_cannot_be_read_is_passed_over(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN), alice(TEN)])
    event = NewEvent("Deposited", 2, b"\x82\xa6amount\x05\xa8currency\xa3EUR")
    nonsense, schema = b"\xc1 nonsense", state_fingerprint(Till)
    log.append(loop.epoch, [Append(ALICE, 2, (event,), bytes(16), bytes(16), b"", b"", nonsense, schema)])
    loop.residents.forget_all()
    assert log.find_snapshot(ALICE, schema) == (3, nonsense)
    assert balance(loop) == 15


def test_a_load_can_stop_at_a_version_before_or_after_a_snapshot(loop: WriteLoop) -> None:
    loop.execute([alice(OPEN), *(alice(TEN) for _ in range(4))])
    versions = {}
    for version in range(1, 8):
        account = loop.residents.load(ALICE, at_or_before=version)
        assert isinstance(account, Account)
        versions[account.version] = account.balance
    assert versions == {1: 0, 2: 10, 3: 20, 4: 30, 5: 40}


def test_a_long_history_is_read_page_by_page(log: FaultyLog) -> None:
    catalogue = Catalogue([Hoard])
    loop = activated(log, catalogue=catalogue)
    stream, event = StreamId("Hoard", "h"), NewEvent("Spoilt", 1, b"\x80")
    for number in range(5):
        log.append(loop.epoch, [Append(stream, 500 * number, (event,) * 500, bytes([number] * 16), bytes(16))])
    hoard = loop.residents.load(stream)
    assert isinstance(hoard, Hoard)
    assert (hoard.version, hoard.count) == (2_500, 2_500)


def test_what_cannot_be_loaded_is_said_and_costs_no_neighbour(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN)])
    bob, digest = StreamId("Account", "bob"), bytes(16)
    carol = StreamId("Account", "carol")
    log.append(loop.epoch, [Append(bob, 0, (NewEvent("Forgotten", 1, b"\x80"),), b"b" * 16, digest)])
    log.append(loop.epoch, [Append(carol, 0, (NewEvent("Bursting", 1, b"\x80"),), b"c" * 16, digest)])
    first, second, third, fourth = loop.execute(
        [to(Account, "bob", TEN), alice(TEN), to(Account, "carol", TEN), to(Account, "carol", TEN)]
    ).outcomes
    assert isinstance(first, UnknownEvent)
    assert str(first).startswith("stored event 'Forgotten' version 1 cannot be read: no registered class has that name")
    assert facts(second)[1] == 2
    assert isinstance(third, HandlerFailed)
    assert str(third) == str(fourth) == "Till.bursting failed on Account/carol: KeyError: 'burst'"


def test_an_event_of_another_aggregate_is_not_evolved(loop: WriteLoop, log: FaultyLog) -> None:
    log.append(loop.epoch, [Append(ALICE, 0, (NewEvent("Stored", 1, b"\x81\xa5thing\xa1x"),), b"a" * 16, bytes(16))])
    with pytest.raises(HandlerFailed) as raised:
        loop.residents.load(ALICE)
    assert str(raised.value) == (
        "evolve failed on Stored of Account/alice: Till has no @evolve handler for it; write one, which may do "
        "nothing, or retire the event"
    )


def test_a_damaged_record_is_damage_to_its_own_aggregate_only(
    loop: WriteLoop, log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.execute([alice(OPEN), to(Account, "bob", OPEN)])
    loop.residents.forget_all()
    read_stream = log.read_stream
    monkeypatch.setattr(
        log,
        "read_stream",
        lambda stream, *rest: [
            record[:-1] + b"?" if stream == ALICE else record for record in read_stream(stream, *rest)
        ],
    )
    damaged, fine = loop.execute([alice(TEN), to(Account, "bob", TEN)]).outcomes
    assert isinstance(damaged, Damaged)
    assert str(damaged) == "record is damaged: its checksum is wrong"
    assert facts(fine) == (3, 2, False)


def test_an_aggregate_type_that_nobody_registered_is_named(loop: WriteLoop) -> None:
    with pytest.raises(UnknownName, match="no aggregate is named 'Ghost'; known: Account, Risky, Vault"):
        loop.residents.check_out(StreamId("Ghost", "g"))


def test_what_does_not_exist_is_not_kept_in_memory(loop: WriteLoop) -> None:
    for number in range(50):
        loop.residents.put_back(
            loop.residents.check_out(StreamId("Vault", str(number))), StreamId("Vault", str(number))
        )
    assert len(loop.residents) == 0


class Spoil(Command):
    pass


class Spoilt(Event):
    pass


class Hoard(Aggregate, placement=Shared(), snapshot_every=0):
    """Counts, and takes no snapshots."""

    count: int = 0

    @evolve
    def spoilt(self, event: Spoilt) -> None:
        self.count += 1


class Unsavable(Aggregate, placement=Shared(), snapshot_every=1):
    """Its state becomes something that no bytes stand for."""

    amount: Any = 0

    @decide
    def spoil(self, command: Spoil) -> Spoilt:
        return Spoilt()

    @evolve
    def spoilt(self, event: Spoilt) -> None:
        self.amount = iter(())


def test_a_state_that_cannot_be_saved_costs_no_command(log: FaultyLog, caplog: pytest.LogCaptureFixture) -> None:
    loop = activated(log, catalogue=Catalogue([Unsavable]))
    with caplog.at_level(logging.WARNING):
        done = loop.execute([to(Unsavable, "u", Spoil()), to(Unsavable, "u", Spoil())])
    assert [facts(outcome) for outcome in done.outcomes] == [(1, 1, False), (2, 2, False)]
    assert len(caplog.messages) == 1, "one warning for each reason"
    assert "no snapshot of Unsavable/u: " in caplog.text
    assert "its field amount cannot be saved" in caplog.text


# --- from one actor of a partition to the next --------------------------------------------------------------------


def handed_over(
    loop: WriteLoop, log: FaultyLog, catalogue: Catalogue = CATALOGUE, residents_max: int = 100
) -> WriteLoop:
    """The loop of the partition's next actor, which gets what the present one has in memory."""
    saved = loop.residents.saved(0)
    loop.execute([alice(TEN)])  # which still takes commands meanwhile
    following = activated(log, residents_max, catalogue)
    following.residents.offer(saved)
    return following


def asked_versions(log: FaultyLog, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which versions on streams are read from now on."""
    asked: list[int] = []
    read_stream = log.read_stream

    def noted(stream: StreamId, from_version: int = 1, *rest: Any) -> list[bytes]:
        asked.append(from_version)
        return read_stream(stream, from_version, *rest)

    monkeypatch.setattr(log, "read_stream", noted)
    return asked


def test_the_next_actor_begins_with_what_this_one_has_in_memory(
    loop: WriteLoop, log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.execute([alice(OPEN), alice(TEN), to(Account, "bob", OPEN)])
    assert [(one.stream.id, one.version) for one in loop.residents.saved(0)] == [("bob", 1), ("alice", 2)]
    assert loop.residents.saved(1)[0].stream.id == "alice"
    assert loop.residents.saved(2) == []
    following = handed_over(loop, log)
    asked = asked_versions(log, monkeypatch)
    assert facts(following.execute([alice(TEN)]).outcomes[0])[1] == 4
    assert asked == [4], "the account had one event more than what was handed over, and a snapshot of that"
    assert balance(following) == 30


def test_what_was_handed_over_is_used_once_and_never_for_an_earlier_version(
    loop: WriteLoop, log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.execute([alice(OPEN), alice(TEN)])
    following = handed_over(loop, log)
    asked = asked_versions(log, monkeypatch)
    assert following.residents.load(ALICE, at_or_before=1).version == 1
    assert following.residents.load(ALICE).version == 3
    asked.clear()
    following.residents.load(ALICE)
    assert asked == [4], "from the snapshot of version 3"


def test_what_other_code_has_handed_over_is_not_used(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN), alice(TEN)])
    assert balance(handed_over(loop, log, Catalogue([Doubling]))) == 40


def test_a_later_snapshot_is_used_instead(loop: WriteLoop, log: FaultyLog, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.execute([alice(OPEN), alice(TEN)])
    saved = loop.residents.saved(0)
    loop.execute([alice(TEN), alice(TEN)])
    following = activated(log)
    following.residents.offer(saved)
    asked = asked_versions(log, monkeypatch)
    assert following.residents.load(ALICE).version == 4
    assert asked == [4], "there is a snapshot of version 3"


def test_what_cannot_be_saved_or_is_too_much_is_left_out(log: FaultyLog) -> None:
    loop = activated(log, catalogue=Catalogue([Till, Forgetful]))
    loop.execute([alice(OPEN), to(Account, "bob", OPEN), to(Vault, "v", Store(thing="x"))])
    assert [one.stream.id for one in loop.residents.saved(0)] == ["bob", "alice"], "a vault takes no snapshots"
    account = loop.residents.check_out(ALICE)
    account.balance = object()  # type: ignore[attr-defined]
    loop.residents.put_back(account, ALICE)
    assert [one.stream.id for one in loop.residents.saved(0)] == ["bob"]
    following = handed_over(loop, log, residents_max=1)
    assert len(following.residents._offered) == 1


class Heap(Aggregate, placement=Shared(), snapshot_every=0):
    """An aggregate whose state is as large as its events."""

    texts: list[str] = []

    @decide
    def put(self, command: Store) -> Stored:
        return Stored(thing=command.thing)

    @evolve
    def stored(self, event: Stored) -> None:
        self.texts = [*self.texts, event.thing]


def test_memory_is_bounded_in_bytes_too_and_what_fell_out_is_read_again(
    log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "RESIDENTS_BYTES_MAX", 100_000)
    loop = activated(log, residents_max=10_000, catalogue=Catalogue([Heap]))
    loop.residents._room_bytes = 100_000
    for number in range(100):
        loop.execute([to(Heap, f"h{number}", Store(thing="x" * 5_000))])
        held = sum(len(one) for heap in loop.residents._cache.values() for one in getattr(heap, "texts", []))
        assert held <= 110_000
    assert 1 < len(loop.residents) < 25
    assert facts(loop.execute([to(Heap, "h0", Store(thing="again"))]).outcomes[0])[1] == 2


def test_many_events_that_leave_states_small_push_nobody_out(log: FaultyLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents, "RESIDENTS_BYTES_MAX", 20_000)
    loop = activated(log)
    loop.residents._room_bytes = 20_000
    loop.execute([to(Account, f"a{number}", OPEN) for number in range(10)])
    for _ in range(30):
        loop.execute([to(Account, f"a{number}", TEN) for number in range(10)])
    assert len(loop.residents) == 10
