"""A refusal that uses up its command id: stored before it is answered, and the same for every repeat of the id."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import msgpack
import pytest

from rayfold.actors.api.store_subscription import subscribe
from rayfold.runtime.backup.restoring import restore_store
from rayfold.runtime.backup.taking import backup_store
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.projection import Projection, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import FINAL, Envelope, PackedCommand, pack, unpack_batch
from rayfold.runtime.encoding.error_codec import from_wire, to_wire
from rayfold.runtime.encoding.facts import as_answered
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import (
    CommandIdReused,
    Conflict,
    HandlerFailed,
    InvalidMessage,
    Rejected,
    StorageFailed,
    UnknownName,
)
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.format import decode_record, encode_record
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.time_travel import history, state_at
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.stream import ANY, REFUSALS, StreamId
from rayfold.runtime.write.refusals import first_outcome_in, kept_event
from rayfold.runtime.write.write_loop import WriteLoop
from tests.runtime.write.test_partition import RemoteLog
from tests.support.faulty_log import FaultyLog


class Reserve(Command):
    pieces: int
    fee: Decimal = Decimal(0)


class Restock(Command):
    pieces: int


class Look(Command):
    pass


class Changed(Event):
    by: int


class Stock(Aggregate, placement=Shared()):
    pieces: int = 0

    @decide
    def reserve(self, command: Reserve) -> Changed | Rejected:
        if command.pieces == 13:
            raise RuntimeError("thirteen")
        if command.pieces > self.pieces:
            return Rejected("too_few", pieces=self.pieces, fee=command.fee, parts=("a", 1))
        return Changed(by=-command.pieces)

    @decide
    def restock(self, command: Restock) -> Changed:
        return Changed(by=command.pieces)

    @decide
    def look(self, command: Look) -> None:
        if self.pieces > 99:
            raise RuntimeError("too many pieces")

    @evolve
    def changed(self, event: Changed) -> None:
        self.pieces += event.by


class Pieces(Projection):
    total: int = 0
    events: int = 0

    @project
    def changed(self, event: Changed) -> None:
        self.total += event.by
        self.events += 1


CATALOGUE = Catalogue([Stock], [Pieces])
NAILS = StreamId("Stock", "nails")


def sent(command: Command, number: int, *, decisive: bool = True, expected_version: int = ANY) -> PackedCommand:
    """The command to the nails, as it arrives."""
    envelope = Envelope(Stock, "nails", command, UUID(int=number), expected_version, decisive=decisive)
    (arrived,) = unpack_batch(pack(envelope)[1])
    return arrived


def opened(log: object) -> WriteLoop:
    loop = WriteLoop(0, log, CATALOGUE)  # type: ignore[arg-type]  # whichever log it is
    loop.activate()
    return loop


def told(loop: WriteLoop, *commands: PackedCommand) -> list[Outcome]:
    return loop.execute(commands).outcomes


def told_alone(loop: WriteLoop, command: PackedCommand) -> Outcome:
    (outcome,) = told(loop, command)
    return outcome


def is_refusal(outcome: Outcome) -> bool:
    """Whether it is that of the first test command, with facts of the right types."""
    assert isinstance(outcome, Rejected), outcome
    assert (outcome.reason, outcome.stream, outcome.command) == ("too_few", StreamId("Stock", "nails"), "Reserve")
    return bool(outcome.facts["pieces"] == 0)


def test_a_refusal_that_is_not_decisive_leaves_the_id_free(log: FaultyLog) -> None:
    loop = opened(log)
    assert is_refusal(told_alone(loop, sent(Reserve(pieces=5), 1, decisive=False)))
    assert log.head() == 0
    told(loop, sent(Restock(pieces=9), 2))
    assert isinstance(told_alone(loop, sent(Reserve(pieces=5), 1, decisive=False)), Receipt)


def test_every_repeat_of_a_decisive_refusal_is_the_same_refusal(log: FaultyLog) -> None:
    loop, first = opened(log), sent(Reserve(pieces=5), 1)
    refusals = [told_alone(loop, first)]
    told(loop, sent(Restock(pieces=9), 2))
    refusals += [
        told_alone(loop, first),
        told_alone(loop, first._replace(decisive=False)),
        told_alone(loop, first._replace(expected_version=77)),
    ]
    assert isinstance(told_alone(loop, sent(Reserve(pieces=5), 3)), Receipt), "another id is another command"
    refusals.append(told_alone(opened(log), first))
    assert all(map(is_refusal, refusals))
    assert {repr(refusal.facts) for refusal in refusals if isinstance(refusal, Rejected)} == {
        repr({"pieces": 0, "fee": Decimal(0), "parts": ("a", 1)})
    }


@pytest.mark.parametrize(
    "rejected",
    [
        Rejected("\ud800"),
        Rejected("caf\u00e9 " * 3_000),
        Rejected("text", half="\ud800", long="\u00e9" * 70_000),
        Rejected("many", **{f"fact_{number}": "b" * 600 for number in range(150)}),
        Rejected("one more", **{f"fact_{number}": "b" * 600 for number in range(101)}),
        Rejected("digits", one=Decimal("1" * 30_000), two=Decimal("2" * 30_000)),
        Rejected("number", large=10**30, at=datetime(2020, 1, 1, tzinfo=UTC), parts=(1, {2}, [b"3"])),
    ],
    ids=lambda rejected: rejected.reason[:8].encode("ascii", "replace").decode(),
)
def test_what_is_told_at_first_is_what_is_stored_and_told_again(rejected: Rejected) -> None:
    first = as_answered(rejected, "Stock/a", "Reserve")
    again = as_answered(
        Rejected.with_facts(first.reason, first.facts, str(first.stream), first.command), "Stock/a", "Reserve"
    )
    at = (1, bytes(32), REFUSALS, 1, 1, bytes(16), b"", b"")
    stored = first_outcome_in(encode_record(at, kept_event(first)), sent(Reserve(pieces=1), 1), 0)
    for told in (again, stored, from_wire(to_wire(first))):
        assert isinstance(told, Rejected)
        assert (told.reason, told.facts) == (first.reason, first.facts)
        assert [*map(type, told.facts.values())] == [*map(type, first.facts.values())]


def test_it_outlives_a_restart(log: FaultyLog, reopen: Callable[[], WriteLoop]) -> None:
    told_alone(opened(log), sent(Reserve(pieces=5), 1))
    reopen()
    loop = opened(log)
    told(loop, sent(Restock(pieces=9), 2))
    assert is_refusal(told_alone(loop, sent(Reserve(pieces=5), 1)))


def test_duplicates_in_one_batch_get_one_refusal_that_is_stored_once(log: FaultyLog) -> None:
    loop, first = opened(log), sent(Reserve(pieces=5), 1)
    outcomes = told(loop, first, sent(Restock(pieces=9), 2), first, sent(Reserve(pieces=5), 3), first)
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [False, True, False, True, False]
    assert all(is_refusal(outcome) for outcome in outcomes[::2])
    assert [decode_record(record).name for record in log.read(0, 9)] == ["rayfold.Refused", "Changed", "Changed"]


def test_other_content_under_the_id_is_another_command(log: FaultyLog) -> None:
    loop = opened(log)
    batch = told(loop, sent(Reserve(pieces=5), 1), sent(Reserve(pieces=6), 1))
    for outcome in (
        batch[1],
        told_alone(loop, sent(Reserve(pieces=6), 1)),
        told_alone(loop, sent(Restock(pieces=1), 1)),
    ):
        assert isinstance(outcome, CommandIdReused)
        assert outcome.receipt is None


def test_a_refused_command_changes_nothing_and_what_follows_it_is_decided_on_the_same_state(log: FaultyLog) -> None:
    loop = opened(log)
    outcomes = told(
        loop,
        sent(Restock(pieces=3), 1),
        sent(Reserve(pieces=5), 2),
        sent(Reserve(pieces=3), 3, expected_version=1),
        sent(Reserve(pieces=1), 4),
    )
    receipts = [(one.position, one.version) if isinstance(one, Receipt) else None for one in outcomes]
    assert receipts == [(1, 1), None, (3, 2), None]
    assert log.version(NAILS) == 2


def test_only_what_the_aggregate_refuses_uses_an_id_up(log: FaultyLog) -> None:
    loop = opened(log)
    assert isinstance(told_alone(loop, sent(Reserve(pieces=5), 1, expected_version=4)), Conflict)
    assert isinstance(told_alone(loop, sent(Reserve(pieces=13), 2)), HandlerFailed)
    assert log.head() == 0
    told(loop, sent(Restock(pieces=20), 3))
    assert isinstance(told_alone(loop, sent(Reserve(pieces=5), 1)), Receipt)


def final(command: Command, number: int) -> PackedCommand:
    """The command as a process sends it."""
    (arrived,) = unpack_batch(msgpack.packb(sent(command, number)._replace(decisive=FINAL)))
    return arrived


def test_every_outcome_of_a_final_command_is_permanent(log: FaultyLog, reopen: Callable[[], WriteLoop]) -> None:
    loop = opened(log)
    commands = [final(Reserve(pieces=5), 1), final(Reserve(pieces=13), 2), final(Look(), 3)]
    commands.append(final(Look(), 4)._replace(name="Unknown"))
    commands.append(final(Look(), 5)._replace(payload=b"\x81\xa1x\x01"))
    first = told(loop, *commands)
    assert [type(one) for one in first] == [Rejected, HandlerFailed, Receipt, UnknownName, InvalidMessage]
    names = [decode_record(record).name for record in log.read(0, 9)]
    assert names == ["rayfold.Refused", "rayfold.Failed", "rayfold.Unchanged", "rayfold.Failed", "rayfold.Failed"]
    told(loop, sent(Restock(pieces=100), 9))
    reopen()
    loop = opened(log)
    again = told(loop, *commands)
    receipts = [one for one in first if isinstance(one, Receipt)]
    assert again[2] == receipts[0]._replace(repeated=True)
    for before, after in zip(first, again, strict=True):
        assert isinstance(after, Receipt) or to_wire(after) == to_wire(before)  # type: ignore[arg-type]
    assert told(loop, commands[1]._replace(decisive=False))[0].args == again[1].args  # type: ignore[union-attr]
    assert log.head() == 6, "nothing was stored again"


def test_a_final_command_that_is_not_to_be_tried_again_has_failed_for_good(log: FaultyLog) -> None:
    loop, failed = opened(log), HandlerFailed("the code of Reserve", "Stock/nails", "its process ended")
    told(loop, sent(Restock(pieces=9), 9))
    outcomes = loop.execute([final(Reserve(pieces=1), 1), sent(Reserve(pieces=1), 2)], {UUID(int=1).bytes: failed})
    assert outcomes.outcomes[0] == failed
    assert isinstance(outcomes.outcomes[1], Receipt)
    again = told_alone(loop, final(Reserve(pieces=1), 1))
    assert isinstance(again, HandlerFailed)
    assert again.args == failed.args


def test_a_final_command_with_the_id_of_another_one_keeps_nothing(log: FaultyLog) -> None:
    loop = opened(log)
    told(loop, sent(Restock(pieces=1), 1))
    outcomes = told(loop, final(Look(), 1), final(Look(), 2), final(Reserve(pieces=13), 2), final(Look(), 2))
    assert [type(one) for one in outcomes] == [CommandIdReused, Receipt, CommandIdReused, Receipt]
    assert log.head() == 2


def test_a_refusal_that_cannot_be_stored_is_not_told(log: FaultyLog) -> None:
    loop = opened(log)
    log.fail_once("before the append", StorageFailed("disk", "full"))
    outcomes = told(loop, sent(Reserve(pieces=5), 1), sent(Reserve(pieces=5), 1))
    assert [type(outcome) for outcome in outcomes] == [StorageFailed] * 2
    told(loop, sent(Restock(pieces=9), 2))
    assert isinstance(told_alone(loop, sent(Reserve(pieces=5), 1)), Receipt), "it was never refused"


def test_a_repeat_gets_it_also_when_a_neighbour_cannot_be_stored(log: FaultyLog) -> None:
    loop = opened(log)
    told(loop, sent(Restock(pieces=5), 1))
    refused = told_alone(loop, sent(Reserve(pieces=7), 2))
    for error in (InvalidMessage("batch", "it is too large"), StorageFailed("log", "the disk is full")):
        log.fail_once("before the append", error)
        first, repeat = told(loop, sent(Restock(pieces=1), 3), sent(Reserve(pieces=7), 2))
        assert first is error
        assert isinstance(refused, Rejected)
        assert isinstance(repeat, Rejected)
        assert (repeat.reason, repeat.facts) == (refused.reason, refused.facts)


def test_an_answer_that_was_lost_after_the_commit_is_the_same_when_asked_again(log: FaultyLog) -> None:
    loop = opened(log)
    log.fail_once("after the commit", StorageFailed("disk", "gone"))
    told(loop, sent(Reserve(pieces=5), 1))
    loop = opened(log)
    told(loop, sent(Restock(pieces=9), 2))
    assert is_refusal(told_alone(loop, sent(Reserve(pieces=5), 1)))


def test_an_own_actor_gets_it_from_its_partition() -> None:
    loop, first = opened(RemoteLog(MemoryLog())), sent(Reserve(pieces=5), 1)
    assert is_refusal(told_alone(loop, first))
    told(loop, sent(Restock(pieces=9), 2))
    outcomes = told(loop, sent(Reserve(pieces=2), 3), first, sent(Reserve(pieces=6), 1), first)
    assert isinstance(outcomes[0], Receipt)
    assert all(is_refusal(outcome) for outcome in (outcomes[1], outcomes[3]))
    assert isinstance(outcomes[2], CommandIdReused)


def test_a_command_that_succeeded_stays_so_when_it_comes_again_as_a_decisive_one(log: FaultyLog) -> None:
    loop = opened(log)
    told(loop, sent(Restock(pieces=5), 1))
    first = told_alone(loop, sent(Reserve(pieces=5), 2))
    assert isinstance(first, Receipt)
    assert told_alone(loop, sent(Reserve(pieces=5), 2)) == first._replace(repeated=True)


def test_readers_pass_over_it(log: FaultyLog) -> None:
    loop = opened(log)
    told(loop, sent(Reserve(pieces=5), 1), sent(Restock(pieces=9), 2))
    (last,) = told(loop, sent(Reserve(pieces=50), 3))
    assert isinstance(last, Rejected)
    assert log.head() == 3
    model = ReadModel(Pieces, CATALOGUE, {0: log})
    model.catch_up(0, 3)
    assert (model.positions, model.failed) == ({0: 3}, None)
    assert [type(event).__name__ for event, _ in history(CATALOGUE, log, 0, NAILS)] == ["Changed"]
    assert state_at(CATALOGUE, log, Stock, NAILS, None, None).pieces == 9
    assert log.holdings().aggregates == {"Stock"}
    assert [name for name, _ in log.holdings().events] == ["Changed"]


def test_readers_pass_over_a_stream_of_a_later_release_whatever_its_events_are_called(log: FaultyLog) -> None:
    loop = opened(log)
    told(loop, sent(Restock(pieces=9), 1))
    later = StreamId("rayfold.Copies", "nails"), ANY, (NewEvent("Changed", 1, encode_message(Changed(by=100))),)
    log.append(log.activate(), [Append(*later, bytes(16), bytes(20))])
    model = ReadModel(Pieces, CATALOGUE, {0: log})
    model.catch_up(0, 2)
    assert (model.positions, model.failed) == ({0: 2}, None)
    assert [at.position for _, at in history(CATALOGUE, log, 0, NAILS)] == [1]
    kept = model._kept.model
    assert isinstance(kept, Pieces)
    assert (kept.total, kept.events) == (9, 1)


def test_it_is_verified_backed_up_and_restored(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 1)
    log = store.open_log(0)
    loop, first = opened(log), sent(Reserve(pieces=5), 1)
    told(loop, first, sent(Restock(pieces=9), 2))
    told(loop, sent(Reserve(pieces=50), 3))
    log.close()
    assert verify_store(store.path).partitions[0].problems == verify_store(store.path).partitions[0].warnings == []
    backup_store(store.path, tmp_path / "backup")
    restored = restore_store(tmp_path / "backup", tmp_path / "restored")
    assert verify_store(restored.path).partitions[0].warnings == []
    assert verify_store(restored.path).ok
    with subscribe(restored.path, aggregates=[Stock]) as events:
        assert [(type(event).__name__, at.position) for event, at in [next(events)]] == [("Changed", 2)]
    log = open_store(restored.path).open_log(0)
    loop = opened(log)
    assert is_refusal(told_alone(loop, first))
    again = told_alone(loop, sent(Restock(pieces=9), 2))
    assert isinstance(again, Receipt)
    assert again.repeated, "the secret of the digests is restored too"
    assert isinstance(told_alone(loop, sent(Restock(pieces=8), 2)), CommandIdReused)
    log.close()
