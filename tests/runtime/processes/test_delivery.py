"""What couriers send: the same command each time, and an input once, also after a restore."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgpack
import pytest

from examples.opt_in import Confirm, Deliver, Mailbox, OptIn, Request
from examples.shop import Charge, Charged, Fulfilment, Order, Place, Placed, Wallet
from rayfold import (
    Aggregate,
    Command,
    End,
    Ended,
    Envelope,
    Event,
    Process,
    Receipt,
    Rejected,
    Retry,
    Send,
    Shared,
    Skip,
    StreamId,
    Wake,
    decide,
    evolve,
    react,
    scheduled,
    woken,
)
from rayfold.runtime.checks.standing import folded as folded_of
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import PackedCommand, pack, unpack_batch
from rayfold.runtime.encoding.saved_state import decode_state, state_fingerprint
from rayfold.runtime.errors import CommandIdReused, HandlerFailed, RayfoldError
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.log.format import HEADER_OUTPUTS, decode_record
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.processes.delivery import (
    EVENT_BYTES_MAX,
    Reactions,
    begin_inputs,
    outcome_input,
    parked_input,
    resume_input,
    send_command,
    woken_input,
)
from rayfold.runtime.processes.step import UNROUTED
from rayfold.runtime.processes.stored_step import StoredStep, step_in
from rayfold.runtime.write.write_loop import WriteLoop

AT_US = 1_704_067_200_000_000
ADA: dict[str, Any] = {"by": "ada", "reason": "ticket 7"}


class World:
    """A log, its write loop, and what is read of it."""

    def __init__(self, *aggregates: type[Aggregate], process: type[Process] = Fulfilment) -> None:
        self.catalogue = Catalogue(aggregates or [Order, Wallet], processes=[process])
        self.reactions = Reactions(self.catalogue)
        self.log = MemoryLog(lambda: AT_US)
        self.loop = WriteLoop(0, self.log, self.catalogue)
        self.loop.activate()

    def give(self, *commands: PackedCommand) -> list[Receipt | RayfoldError]:
        return self.loop.execute(commands).outcomes

    def execute(self, aggregate: type[Aggregate], id: str, command: Command) -> Receipt | RayfoldError:
        return self.give(pack(Envelope(aggregate, id, command))[0])[0]

    def events(self, stream: StreamId) -> list[StoredEvent]:
        return [decode_record(record) for record in self.log.read_stream(stream)]

    def inputs(self, stream: StreamId, *, again: bool = False) -> list[PackedCommand]:
        return [one for event in self.events(stream) for one in self.reactions.inputs(0, event, again)]

    def steps(self, stream: StreamId) -> list[StoredStep]:
        return [step for event in self.events(stream) if (step := step_in(event)) is not None]


ORDER, INSTANCE = StreamId("Order", "1"), StreamId("Fulfilment", "1")
PLACE = Place(wallet="ada", item="pen", total=5)


def taken(outcomes: list[Receipt | RayfoldError]) -> list[tuple[int, bool]]:
    return [(one.event_count, one.repeated) for one in outcomes if isinstance(one, Receipt)]


def test_an_event_is_an_input_once_however_often_it_is_given() -> None:
    world = World()
    world.execute(Order, "1", PLACE)
    assert taken(world.give(*world.inputs(ORDER))) == [(2, False)]
    assert taken(world.give(*world.inputs(ORDER, again=True))) == [(2, True)]


def test_an_event_that_is_decided_again_after_a_restore_is_a_repeat() -> None:
    """The order's log is restored to before the order, and the process's is not: the order comes under another id."""
    world, restored = World(), World()
    world.execute(Order, "1", PLACE)
    world.give(*world.inputs(ORDER))
    restored.execute(Wallet, "bob", Charge(order="0", amount=1))
    restored.execute(Order, "1", PLACE)
    assert taken(world.give(*restored.inputs(ORDER))) == [(2, True)]
    restored.execute(Order, "2", PLACE)
    assert taken(world.give(*restored.inputs(StreamId("Order", "2")))) == [(2, False)]


def test_an_event_that_is_decided_otherwise_after_a_restore_is_no_input_again() -> None:
    world, restored = World(), World()
    world.execute(Order, "1", PLACE)
    world.give(*world.inputs(ORDER))
    restored.execute(Order, "1", Place(wallet="ada", item="pen", total=6))
    [outcome] = world.give(*restored.inputs(ORDER))
    assert isinstance(outcome, CommandIdReused)


def test_what_was_sent_has_the_same_id_after_the_instance_has_lost_its_step() -> None:
    world, restored = World(), World()
    for one in (world, restored):
        one.execute(Order, "1", PLACE)
        one.give(*one.inputs(ORDER))
    [step], [again] = world.steps(INSTANCE), restored.steps(INSTANCE)
    first, second = send_command(step, step.sends[0]), send_command(again, again.sends[0])
    assert first._replace(correlation_id=b"") == second._replace(correlation_id=b"")  # of another command to the order


class Twice(Process):
    @react(starts=True)
    def placed(self, event: Placed) -> Iterator[Wake | Send]:
        if event.total > 5:  # as a later release may
            yield Wake("late", after=timedelta(minutes=1))
            yield Send(Wallet, "bob", Charge(order="1", amount=1))
        yield Send(Wallet, "ada", Charge(order="1", amount=1))
        yield Send(Wallet, "ada", Charge(order="1", amount=1))

    @woken("late")
    def late(self) -> None: ...


def test_what_else_a_step_yields_does_not_change_the_ids_of_what_it_sends() -> None:
    sent = []
    for total in (5, 6):
        world = World(process=Twice)
        world.execute(Order, "1", Place(wallet="ada", item="pen", total=total))
        world.give(*world.inputs(ORDER))
        [step] = world.steps(StreamId("Twice", "1"))
        sent.append([one.send_id for one in step.sends if one.stream.id == "ada"])
    assert sent[0] == sent[1]
    assert len({*sent[0]}) == 2


def test_an_outcome_is_taken_in_once_and_what_it_led_to_stands() -> None:
    world = World()
    world.execute(Order, "1", PLACE)
    world.give(*world.inputs(ORDER))
    [step] = world.steps(INSTANCE)
    [outcome] = world.give(send_command(step, step.sends[0]))
    assert isinstance(outcome, RayfoldError)  # the wallet is empty
    told = outcome_input(step, step.sends[0], outcome)
    assert taken(world.give(told, told)) == [(1, False), (1, True)]
    assert world.steps(INSTANCE)[-1].answered == 0
    other = outcome_input(step, step.sends[0]._replace(send_id=bytes(16)), outcome)
    assert taken(world.give(other)) == [(0, False)]


def test_an_event_from_before_the_start_that_is_given_again_is_ignored() -> None:
    class Late(Process):
        seen: int = 0

        @react
        def placed(self, event: Placed) -> Ended:
            return Ended("wrong order")

        @react(starts=True, one=lambda event: event.order)
        def charged(self, event: Charged) -> None: ...

    world = World(process=Late)
    world.execute(Order, "1", PLACE)
    early = world.inputs(ORDER)
    assert taken(world.give(*early)) == [(0, False)]
    started = StoredEvent(9, StreamId("Wallet", "a"), 1, "Charged", 1, b"\x82\xa5order\xa11\xa6amount\x01", AT_US, *IDS)
    assert taken(world.give(*world.reactions.inputs(0, started, False))) == [(1, False)]
    assert taken(world.give(*world.inputs(ORDER, again=True))) == [(0, False)]
    [later] = (event._replace(recorded_at_us=AT_US + 1) for event in world.events(ORDER))
    assert taken(world.give(*world.reactions.inputs(0, later, True))) == [(1, False)]  # of a log that was restored


IDS = bytes(16), b"", b""


def test_a_timer_of_an_earlier_arming_is_not_fired() -> None:
    world = World()
    world.execute(Order, "1", PLACE)
    world.give(*world.inputs(ORDER))
    [step] = world.steps(INSTANCE)
    [armed] = step.timers
    assert (armed.name, armed.due_us, step.version) == ("too_late", AT_US + 15 * 60 * 1_000_000, 1)
    due = armed.due_us, step.input_id, step.correlation_id
    stale = woken_input(INSTANCE, "too_late", 7, *due, is_process=True)
    assert taken(world.give(stale)) == [(0, False)]
    fired = woken_input(INSTANCE, "too_late", 1, *due, is_process=True)
    assert taken(world.give(fired)) == [(1, False)]
    assert world.steps(INSTANCE)[-1].fired == ("too_late", 1)


class Careful(Process):
    """Whose routing fails for some."""

    @react(starts=True, one=lambda event: event.wallet if event.total < 9 else str(1 // 0))
    def placed(self, event: Placed) -> Ended:
        return Ended(event.wallet)


def test_an_event_that_cannot_be_routed_waits_alone_and_is_sent_on_by_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    world, unrouted = World(process=Careful), StreamId("Careful", UNROUTED)
    world.execute(Order, "1", Place(wallet="ada", item="pen", total=9))
    world.execute(Order, "2", Place(wallet="bob", item="pen", total=1))
    for id in ("1", "2"):
        assert taken(world.give(*world.inputs(StreamId("Order", id)))) == [(1, False)]
    assert world.steps(StreamId("Careful", "bob"))[-1].ended
    assert (
        world.steps(unrouted)[-1].parked
        == "one= of Careful.placed: ZeroDivisionError: integer division or modulo by zero"
    )
    mended = Careful.reactions["Placed"]._replace(one=lambda event: event.wallet)
    monkeypatch.setitem(Careful.reactions, "Placed", mended)
    assert taken([world.execute(Careful, UNROUTED, Retry(**ADA))]) == [(1, False)]
    step = world.steps(unrouted)[-1]
    assert taken(world.give(send_command(step, step.sends[0]))) == [(1, False)]
    assert world.steps(StreamId("Careful", "ada"))[-1].ended


@pytest.mark.parametrize("ident", [UNROUTED, "schedule:close"])
def test_an_event_of_an_aggregate_with_the_id_of_an_instance_of_rayfolds_own_waits_alone(ident: str) -> None:
    class Both(Process):
        @react(starts=True)
        def placed(self, event: Placed) -> Ended:
            return Ended("placed")

        @scheduled(every="1h")
        def close(self) -> None: ...

    world, unrouted = World(process=Both), StreamId("Both", UNROUTED)
    world.execute(Order, ident, PLACE)
    assert taken(world.give(*world.inputs(StreamId("Order", ident)))) == [(1, False)]
    assert not world.steps(StreamId("Both", "schedule:close"))
    [step] = world.steps(unrouted)
    assert step.parked == f"{ident} is an instance of Rayfold's own, and Placed is for it"
    assert taken([world.execute(Both, UNROUTED, Retry(**ADA))]) == [(1, False)]
    assert world.steps(unrouted)[-1].parked == f"Placed is for {ident} now; Skip it"
    assert not world.steps(unrouted)[-1].sends
    assert taken([world.execute(Both, UNROUTED, Skip(**ADA))]) == [(1, False)]
    assert not world.steps(unrouted)[-1].parked


def test_events_that_cannot_be_routed_wait_also_where_an_operator_has_ended_the_earlier_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, unrouted = World(process=Careful), StreamId("Careful", UNROUTED)
    for id in ("1", "2"):
        world.execute(Order, id, Place(wallet="ada", item="pen", total=9))
        assert taken(world.give(*world.inputs(StreamId("Order", id)))) == [(1, False)]
        assert taken([world.execute(Careful, UNROUTED, End(**ADA))]) == [(1, False)]
    world.execute(Order, "3", Place(wallet="ada", item="pen", total=9))
    assert taken(world.give(*world.inputs(StreamId("Order", "3")))) == [(1, False)]
    mended = Careful.reactions["Placed"]._replace(one=lambda event: event.wallet)
    monkeypatch.setitem(Careful.reactions, "Placed", mended)
    assert taken([world.execute(Careful, UNROUTED, Retry(**ADA))]) == [(1, False)]
    step = world.steps(unrouted)[-1]
    assert taken(world.give(send_command(step, step.sends[0]))) == [(1, False)]
    assert world.steps(StreamId("Careful", "ada"))[-1].ended


def test_an_event_is_sent_on_to_no_instance_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    world, unrouted = World(process=Careful), StreamId("Careful", UNROUTED)
    world.execute(Order, "1", Place(wallet="ada", item="pen", total=9))
    assert taken(world.give(*world.inputs(StreamId("Order", "1")))) == [(1, False)]
    mended = Careful.reactions["Placed"]._replace(one=lambda event: "")
    monkeypatch.setitem(Careful.reactions, "Placed", mended)
    assert taken([world.execute(Careful, UNROUTED, Retry(**ADA))]) == [(1, False)]
    assert world.steps(unrouted)[-1].parked == "Careful.placed: InvalidId: aggregate id '' is empty"
    assert not world.steps(unrouted)[-1].sends


def test_an_event_that_cannot_be_read_waits_alone() -> None:
    world = World()
    broken = StoredEvent(1, ORDER, 1, "Placed", 7, b"\x80", AT_US, *IDS)
    [waits] = world.reactions.inputs(0, broken, False)
    assert waits.stream == StreamId("Fulfilment", UNROUTED)
    assert taken(world.give(waits)) == [(1, False)]
    assert "Placed" in world.steps(waits.stream)[-1].parked


class Bulky(Event):
    data: bytes


class Store(Command):
    size_bytes: int


class Attic(Aggregate, placement=Shared()):
    @decide
    def store(self, command: Store) -> Bulky:
        return Bulky(data=bytes(command.size_bytes))

    @evolve
    def stored(self, event: Bulky) -> None: ...


class Heavy(Process):
    @react(starts=True)
    def stored(self, event: Bulky) -> Ended:
        raise ValueError(len(event.data))


def test_an_event_of_any_size_is_an_input_that_can_wait_or_is_left_aside_by_name() -> None:
    world = World(Attic, process=Heavy)
    for id, size_bytes in (("1", EVENT_BYTES_MAX - 20), ("2", EVENT_BYTES_MAX + 1)):
        assert isinstance(world.execute(Attic, id, Store(size_bytes=size_bytes)), Receipt)
        [packed] = world.inputs(StreamId("Attic", id))
        [through] = unpack_batch(msgpack.packb(packed))
        assert taken(world.give(through)) == [(1, False)]
    assert world.steps(StreamId("Heavy", "1"))[-1].parked.startswith("Heavy.stored: ValueError")
    assert "its event has 1,040," in world.steps(StreamId("Heavy", UNROUTED))[-1].parked


def test_an_input_can_be_parked_without_being_run_and_what_waits_is_run_one_by_one() -> None:
    world = World()
    for id in ("1", "2"):
        world.execute(Order, id, PLACE)
    first, second = (*world.inputs(ORDER), *world.inputs(StreamId("Order", "2")))
    assert taken(world.give(parked_input(first, "it ended its process"), second._replace(stream=INSTANCE))) == [
        (1, False),
        (1, False),
    ]
    assert [step.parked for step in world.steps(INSTANCE)] == ["it ended its process"] * 2
    world.execute(Fulfilment, "1", Skip(**ADA))
    step = world.steps(INSTANCE)[-1]
    assert step.resume
    assert taken(world.give(resume_input(step))) == [(2, False)]
    assert taken(world.give(resume_input(step))) == [(2, True)]
    assert not world.steps(INSTANCE)[-1].resume


class Nightly(Process):
    @scheduled(every="1h")
    def close(self) -> Send:
        return Send(Mailbox, "ada", Deliver(text="closed"))


def test_a_schedule_is_armed_once_and_again_whenever_it_was_due() -> None:
    world, stream = World(Mailbox, process=Nightly), StreamId("Nightly", "schedule:close")
    assert taken(world.give(*begin_inputs(world.catalogue), *begin_inputs(world.catalogue))) == [(1, False), (0, False)]
    [step] = world.steps(stream)
    [armed] = step.timers
    assert (armed.due_us - AT_US) // 1_000_000 == 3600
    fired = woken_input(stream, "close", 1, armed.due_us, step.input_id, b"", is_process=True)
    assert taken(world.give(fired)) == [(1, False)]
    last = world.steps(stream)[-1]
    assert [one.due_us for one in last.timers] == [armed.due_us + 3600 * 1_000_000]  # the clock stands before it
    assert [one.name for one in last.sends] == ["Deliver"]


def test_a_schedule_goes_on_where_one_of_its_times_was_left_out() -> None:
    class Broken(Process):
        @scheduled(every="1h")
        def close(self) -> None:
            raise ValueError("closed")

    world, stream = World(process=Broken), StreamId("Broken", "schedule:close")
    world.give(*begin_inputs(world.catalogue))
    [step] = world.steps(stream)
    [armed] = step.timers
    fired = woken_input(stream, "close", 1, armed.due_us, step.input_id, b"", is_process=True)
    assert taken(world.give(fired)) == [(1, False)]
    assert world.steps(stream)[-1].parked == "Broken.close: ValueError: closed"
    assert taken([world.execute(Broken, stream.id, Skip(**ADA))]) == [(1, False)]
    assert [one.due_us for one in world.steps(stream)[-1].timers] == [armed.due_us + 3600 * 1_000_000]


def test_a_schedule_that_was_ended_stays_so_until_it_is_retried() -> None:
    world, stream = World(Mailbox, process=Nightly), StreamId("Nightly", "schedule:close")
    world.give(*begin_inputs(world.catalogue))
    assert taken([world.execute(Nightly, stream.id, End(**ADA))]) == [(1, False)]
    assert world.steps(stream)[-1].forgotten == ("close",)
    assert taken(world.give(*begin_inputs(world.catalogue))) == [(0, False)]
    assert taken([world.execute(Nightly, stream.id, Retry(**ADA))]) == [(1, False)]
    [armed] = world.steps(stream)[-1].timers
    assert (armed.due_us - AT_US) // 1_000_000 == 3600
    assert taken(world.give(*begin_inputs(world.catalogue))) == [(0, False)]
    version = world.steps(stream)[-1].version
    fired = woken_input(stream, "close", version, armed.due_us, bytes(16), b"", is_process=True)
    assert taken(world.give(fired)) == [(1, False)]
    assert world.steps(stream)[-1].timers
    assert isinstance(world.execute(Nightly, stream.id, Retry(**ADA)), Rejected)


# Ordinary aggregates -------------------------------------------------------------------------------------------------


class Two(Command):
    pass


class Did(Event):
    pass


class Sender(Aggregate, placement=Shared()):
    @decide
    def two(self, command: Two) -> Iterator[Did | Send]:
        yield Did()
        yield Send(Mailbox, "ada", Deliver(text="closed"))
        yield Did()

    @evolve
    def did(self, event: Did) -> None: ...


def test_what_an_aggregate_sends_is_in_its_last_record_and_has_one_id() -> None:
    world = World(Sender, Mailbox)
    command, _ = pack(Envelope(Sender, "1", Two()))
    world.give(command, command)
    first, last = world.events(StreamId("Sender", "1"))
    assert not first.headers
    assert set(last.headers) == {HEADER_OUTPUTS}
    step = step_in(last)
    assert step is not None
    assert not step.is_process
    sent = send_command(step, step.sends[0])
    assert taken(world.give(sent, sent)) == [(1, False), (1, True)]


def test_the_timer_of_an_aggregate_is_fired_at_the_version_that_it_is_known_to_be_armed_at() -> None:
    world, stream = World(OptIn, Mailbox), StreamId("OptIn", "ada")
    world.execute(OptIn, "ada", Request(token="7"))
    [step] = world.steps(stream)
    due = step.timers[0].due_us, step.input_id, step.correlation_id
    fired = woken_input(stream, "expired", step.version, *due, is_process=False, expected_version=step.version)
    world.execute(OptIn, "ada", Confirm(token="7"))
    [outcome] = world.give(fired)
    assert type(outcome).__name__ == "Conflict"
    assert world.steps(stream)[-1].forgotten == ("expired",)


def test_an_aggregate_that_sends_too_much_is_refused_by_name() -> None:
    class Loud(Aggregate, placement=Shared()):
        @decide
        def two(self, command: Two) -> Iterator[Did | Send]:
            yield Did()
            for _ in range(2):
                yield Send(Mailbox, "ada", Deliver(text="x" * 40_000))

        @evolve
        def did(self, event: Did) -> None: ...

    outcome = World(Loud, Mailbox).execute(Loud, "1", Two())
    assert isinstance(outcome, HandlerFailed)
    assert "its outputs have 80," in str(outcome)


def test_outputs_without_an_event_or_without_an_annotation_are_refused_by_name() -> None:
    class Quiet(Aggregate, placement=Shared()):
        @decide
        def two(self, command: Two) -> Iterator[Did | Send]:
            yield Send(Mailbox, "ada", Deliver(text="closed"))

        @evolve
        def did(self, event: Did) -> None: ...

    class Secret(Quiet):
        @decide
        def two(self, command: Two) -> Iterator[Did]:
            yield Did()
            yield Send(Mailbox, "ada", Deliver(text="closed"))  # type: ignore[misc]  # what is tested

    assert "it returned outputs without an event" in str(World(Quiet, Mailbox).execute(Quiet, "1", Two()))
    assert "outputs that no return annotation names" in str(World(Secret, Mailbox).execute(Secret, "1", Two()))


class Snapped(Fulfilment, snapshot_every=1):
    pass


def test_an_instance_is_restored_from_a_snapshot_as_it_is_folded_from_its_stream() -> None:
    world, stream = World(process=Snapped), StreamId("Snapped", "1")
    world.execute(Order, "1", PLACE)
    world.give(*world.inputs(ORDER))
    for _ in range(2):
        world.give(parked_input(world.inputs(ORDER)[0]._replace(command_id=bytes(16)), "why"))
    snapshot = world.log.find_snapshot(stream, state_fingerprint(Snapped))
    assert snapshot is not None
    assert snapshot.version == 3
    restored = decode_state(Snapped, snapshot.state, "1", snapshot.version)
    folded = folded_of(world.catalogue, world.log, stream, snapshot.version)
    assert restored.progress == folded.progress  # type: ignore[attr-defined]
    assert restored.progress.parked == "why"
    assert set(restored.progress.timers) == {"too_late"}
