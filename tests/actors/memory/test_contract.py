"""What a program may rely on, of a system in memory as of a runtime: each of these runs on both, so that they cannot
drift apart. One runtime for all of them, and one system in memory; each test has accounts of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from rayfold import (
    NO_STREAM,
    BlockingOperations,
    BlockingRuntime,
    CallerError,
    CommandIdReused,
    Conflict,
    DefinitionError,
    Envelope,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    NotInHistory,
    NotYetVisible,
    Projection,
    Query,
    RebuildCancelled,
    Receipt,
    Rejected,
    StreamId,
    SubscriptionInUse,
    UnknownName,
    answer,
    derived_id,
    forget,
    project,
)
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.read.unreadable import UnreadableEvent
from rayfold.testing import system_blocking
from tests.bank import (
    Account,
    BalanceOf,
    Balances,
    Close,
    Deposit,
    Deposited,
    EventsSeen,
    Open,
    Opened,
    Pay,
    Retrieve,
    Richest,
    Store,
    Stored,
    Vault,
    Withdraw,
)
from tests.support.read_models import BalancesInMills, BrokenBalances, Poisoned, Stopping, TotalBalance

PATIENCE_S = 60


def _called(verb: Callable[[], object], *_: object) -> None:
    verb()


def _raised(error: BaseException, *_: object) -> None:
    raise error


class Whatever(Query[object]):
    """What there is."""

    mutate: bool = False
    error: bool = False


class Parted(Projection, parts=2):
    """The balances, in two parts."""

    balances: dict[str, int] = {}
    forgotten: int = 0

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.balances[recorded.aggregate_id] = self.balances.get(recorded.aggregate_id, 0) + event.amount

    @forget
    def forget(self, stream: StreamId) -> None:
        self.forgotten += self.balances.pop(stream.id, None) is not None

    @answer(key=lambda query: query.account)
    def balance(self, query: BalanceOf) -> int:
        return self.balances.get(query.account, 0)

    @answer(merge=sum)
    def total(self, query: TotalBalance) -> int:
        return sum(self.balances.values())

    @answer(merge=sum)
    def seen(self, query: EventsSeen) -> int:
        return self.forgotten


class Careless(Projection):
    """Gives away what cannot leave a process, and changes itself when it is asked."""

    opened_by: list[str] = []

    @project
    def opened(self, event: Opened) -> None:
        self.opened_by.append(event.owner)

    @answer
    def whatever(self, query: Whatever) -> object:
        if query.mutate:
            self.opened_by.append("nobody")
        if query.error:
            return Rejected("closed", owner="ada")
        return self.opened_by if query.mutate else (owner for owner in self.opened_by)

    @answer
    def owners(self, query: Richest) -> list[str]:
        return self.opened_by


PROJECTIONS = [Balances, Careless, Parted, Poisoned, Stopping]


@pytest.fixture(scope="module", params=["in memory", pytest.param("a runtime", marks=pytest.mark.slow)])
def bank(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingOperations]:
    if request.param == "in memory":
        with system_blocking(Account, Vault, *PROJECTIONS) as running:
            yield running
        return
    request.getfixturevalue("cluster")
    path = tmp_path_factory.mktemp("contract") / "bank-data"
    with BlockingRuntime(
        path, aggregates=[Account, Vault], projections=PROJECTIONS, timeout_s=PATIENCE_S, own_actors_max=0
    ) as runtime:
        yield runtime


def opened(bank: BlockingOperations, account: str, deposit: int = 0) -> Receipt:
    receipt = bank.execute(Account, account, Open(owner="x"))
    return bank.execute(Account, account, Deposit(amount=deposit)) if deposit else receipt


# --- commands -----------------------------------------------------------------------------------------------------


def test_a_command_is_stored_and_the_next_query_after_its_receipt_sees_it(bank: BlockingOperations) -> None:
    first = bank.execute(Account, "alice", Open(owner="x"), expected_version=NO_STREAM)
    second = bank.execute(Account, "alice", Deposit(amount=5), expected_version=first.version)
    assert bank.ask(Balances, BalanceOf(account="alice"), after=second) == 5
    assert (first.stream, first.version, second.version) == (StreamId("Account", "alice"), 1, 2)
    assert (second.partition, second.position > first.position, second.repeated) == (first.partition, True, False)
    assert bank.heads()[second.partition] == second.position


def test_an_id_takes_effect_once_and_is_refused_for_another_command(bank: BlockingOperations) -> None:
    opened(bank, "once")
    key = derived_id("payment", 1)
    first = bank.execute(Account, "once", Deposit(amount=5), command_id=key)
    assert bank.execute(Account, "once", Deposit(amount=5), command_id=key, expected_version=1) == first._replace(
        repeated=True
    )
    with pytest.raises(CommandIdReused, match="was already used for a different command"):
        bank.execute(Account, "once", Deposit(amount=6), command_id=key)
    assert bank.state_at(Account, "once").balance == 5


def test_what_is_refused_leaves_nothing_and_says_why(bank: BlockingOperations) -> None:
    with pytest.raises(Rejected, match=r"^Account/unopened refused Deposit: does_not_exist"):
        bank.execute(Account, "unopened", Deposit(amount=1))
    opened(bank, "poor")
    before = bank.heads()
    with pytest.raises(Rejected) as refused:
        bank.execute(Account, "poor", Withdraw(amount=5))
    assert (refused.value.reason, refused.value.facts) == ("insufficient_funds", {"balance": 0, "needed": 5})
    with pytest.raises(Conflict, match=r"^expected version 7 of Account/poor, but the stream is at 1"):
        bank.execute(Account, "poor", Deposit(amount=1), expected_version=7)
    assert bank.execute(Account, "poor", Close()).version == 2
    assert bank.execute(Account, "poor", Close()).version == 2, "it leaves no event"
    assert sum(bank.heads().values()) == sum(before.values()) + 1


def test_a_decisive_refusal_is_permanent(bank: BlockingOperations) -> None:
    opened(bank, "decided")
    key = uuid4()
    for _ in range(2):
        with pytest.raises(Rejected, match="insufficient_funds"):
            bank.execute(Account, "decided", Withdraw(amount=5), command_id=key, decisive=True)
        bank.execute(Account, "decided", Deposit(amount=10))


def test_the_mistakes_of_a_caller_are_found_before_anything_is_sent(bank: BlockingOperations) -> None:
    before = bank.heads()
    with pytest.raises(InvalidId, match="aggregate id '' is empty"):
        bank.execute(Account, "", Deposit(amount=1))
    with pytest.raises(UnknownName, match="no command of Account is named 'Store'"):
        bank.execute(Account, "alice", Store(thing="x"))
    with pytest.raises(UnknownName, match="no projection is named 'Elsewhere'"):
        bank.execute(Account, "alice", Deposit(amount=1), until=type("Elsewhere", (Projection,), {}))
    with pytest.raises(UnknownName, match="no query of Balances is named 'TotalBalance'"):
        bank.ask(Balances, TotalBalance())
    with pytest.raises(CallerError, match="timeout_s is 0"):
        bank.execute(Account, "alice", Deposit(amount=1), timeout_s=0)
    assert bank.heads() == before


def test_many_commands_come_back_in_order_each_with_its_own_outcome(bank: BlockingOperations) -> None:
    many = [Envelope(Account, f"many {number % 7}", Open(owner="x")) for number in range(14)]
    many += [Envelope(Account, f"many {number % 7}", Deposit(amount=1)) for number in range(700)]
    many.append(Envelope(Account, "", Deposit(amount=1)))
    outcomes = list(bank.execute_all(iter(many), in_flight=50))
    assert [envelope for envelope, _ in outcomes] == many
    assert [type(outcome) for _, outcome in outcomes] == [Receipt] * 7 + [Rejected] * 7 + [Receipt] * 700 + [InvalidId]
    bank.caught_up(Balances, timeout_s=PATIENCE_S)
    asked = [BalanceOf(account=f"many {number}") for number in range(7)] * 3
    assert list(bank.ask_all(Balances, asked)) == [(query, 100) for query in asked]


def test_a_receipt_leads_to_the_events_of_its_command(bank: BlockingOperations) -> None:
    opened(bank, "payer", 10)
    receipt = bank.execute(Account, "payer", Pay(to="payee", amount=3), events=True)
    assert [type(event).__name__ for event in receipt.events] == ["Paid", "FeeCharged"]
    assert bank.events_of(receipt) == list(receipt.events)


def test_an_aggregate_for_an_actor_of_its_own_is_decided_too(bank: BlockingOperations) -> None:
    bank.execute(Vault, "deep", Store(thing="ring"))
    with pytest.raises(Rejected, match="not_there"):
        bank.execute(Vault, "deep", Retrieve(thing="crown"))
    assert [event for event, _ in bank.history(Vault, "deep")] == [Stored(thing="ring")]


# --- queries ------------------------------------------------------------------------------------------------------


def test_a_query_waits_for_what_there_is_and_not_for_what_there_is_not(bank: BlockingOperations) -> None:
    receipt = opened(bank, "waits", 5)
    for after in (receipt, [receipt], {receipt.partition: receipt.position}, bank.heads()):
        assert bank.ask(Balances, BalanceOf(account="waits"), after=after) == 5
    head = bank.heads()[receipt.partition]
    with pytest.raises(NotYetVisible, match=rf"position {head + 7} of partition {receipt.partition} is not visible"):
        bank.ask(Balances, BalanceOf(account="waits"), after={receipt.partition: head + 7}, timeout_s=3_600)
    with pytest.raises(InvalidMessage, match="is not a position in this store; its partitions are 0 to 1"):
        bank.ask(Balances, BalanceOf(account="waits"), after={9: 1})
    with pytest.raises(InvalidMessage, match="the receipt is of the store"):
        bank.ask(Balances, BalanceOf(account="waits"), after=receipt._replace(store_id=str(uuid4())))


def test_a_command_until_projections_is_visible_in_them(bank: BlockingOperations) -> None:
    opened(bank, "until")
    for balance in range(1, 6):
        bank.execute(Account, "until", Deposit(amount=1), until=[Balances, Parted])
        assert bank.ask(Balances, BalanceOf(account="until")) == balance
        assert bank.ask(Parted, BalanceOf(account="until")) == balance


def test_each_part_is_asked_for_its_own_and_all_of_them_together(bank: BlockingOperations) -> None:
    before = bank.ask(Parted, TotalBalance(), after=bank.heads())
    receipts = [opened(bank, f"part {number}", 3) for number in range(5)]
    assert bank.ask(Parted, TotalBalance(), after=receipts) == before + 15
    assert [bank.ask(Parted, BalanceOf(account=f"part {number}")) for number in range(5)] == [3] * 5


def test_a_session_reads_its_writes_and_hands_them_on(bank: BlockingOperations) -> None:
    with bank.session() as me:
        me.execute(Account, "session", Open(owner="x"))
        receipt = me.execute(Account, "session", Deposit(amount=5))
        assert me.ask(Balances, BalanceOf(account="session")) == 5
        assert me.positions[receipt.partition] >= receipt.position
        token = me.token()
    with bank.session(token) as again:
        assert again.positions[receipt.partition] >= receipt.position
        assert again.ask(Parted, BalanceOf(account="session")) == 5
    seen = bank.execute(Account, "session", Deposit(amount=1), until=Balances)
    with bank.session() as reader:
        assert reader.ask(Balances, BalanceOf(account="session")) == 6
        assert reader.positions[seen.partition] >= seen.position, "what it has seen, it never unsees"
    with pytest.raises(InvalidMessage, match="the session token"):
        bank.session(token[:-2] + "AA")


def test_an_answer_is_the_callers_own_and_changes_nothing(bank: BlockingOperations) -> None:
    receipt = opened(bank, "careless")
    owners = bank.ask(Careless, Richest(), after=receipt)
    owners.append("somebody")
    assert bank.ask(Careless, Richest()) == owners[:-1]
    with pytest.raises(HandlerFailed, match=r"Careless\.whatever failed on a query: it changed the read model"):
        bank.ask(Careless, Whatever(mutate=True))
    assert bank.ask(Careless, Richest()) == owners[:-1]


def test_an_error_is_no_answer(bank: BlockingOperations) -> None:
    with pytest.raises(HandlerFailed, match=r"@answer failed on .*it returned a Rejected as its answer; raise it"):
        bank.ask(Careless, Whatever(error=True))


def test_an_answer_that_cannot_leave_a_process_is_an_error(bank: BlockingOperations) -> None:
    with pytest.raises(HandlerFailed, match=r"@answer failed on generator: TypeError: cannot pickle"):
        bank.ask(Careless, Whatever())


def test_a_replica_in_this_process_follows(bank: BlockingOperations) -> None:
    receipt = opened(bank, "replica", 5)
    with bank.replica(Balances) as replica:
        assert replica.ask(BalanceOf(account="replica"), after=receipt) == 5
        later = bank.execute(Account, "replica", Deposit(amount=1))
        assert replica.ask(BalanceOf(account="replica"), after=later) == 6


# --- the past -----------------------------------------------------------------------------------------------------


def test_histories_and_past_states_are_those_of_the_log(bank: BlockingOperations) -> None:
    receipts = [opened(bank, "past"), *(bank.execute(Account, "past", Deposit(amount=n)) for n in (1, 2, 3))]
    told = bank.history(Account, "past")
    assert [place.position for _, place in told] == [receipt.position for receipt in receipts]
    assert [event for event, _ in told][1:] == [Deposited(amount=n) for n in (1, 2, 3)]
    assert not any(isinstance(event, UnreadableEvent) for event, _ in told)
    assert [bank.state_at(Account, "past", version=n).balance for n in (1, 2, 3, 4)] == [0, 1, 3, 6]
    assert bank.state_at(Account, "past", at=told[-1][1].recorded_at).balance == 6
    with pytest.raises(NotInHistory, match=r"^Account/past has no version 5; it is at 4$"):
        bank.state_at(Account, "past", version=5)
    asked = BalanceOf(account="past")
    assert [bank.as_of(Balances, {one.partition: one.position}, asked) for one in receipts] == [0, 1, 3, 6]
    assert bank.as_of(Balances, receipts[1], asked) == 1
    assert bank.as_of(Parted, bank.heads(), asked) == 6
    with pytest.raises(NotInHistory, match=r"^partition 0 has no position 100000; it is at \d+$"):
        bank.as_of(Balances, {0: 100_000}, asked)


def test_all_of_it_serves_a_thread_that_has_an_event_loop_such_as_a_notebooks(bank: BlockingOperations) -> None:
    async def in_a_cell() -> None:
        receipt = opened(bank, "notebook", 5)
        of_it: dict[str, Any] = {"types": [Deposited], "streams": [StreamId("Account", "notebook")]}
        assert [event.amount for event, _ in bank.events(**of_it)] == [5]
        with bank.subscribe(**of_it) as subscription:
            assert next(iter(subscription))[0] == Deposited(amount=5)
        with bank.session() as me:
            me.join(receipt)
            assert me.ask(Balances, BalanceOf(account="notebook")) == 5
        with bank.replica(Balances) as replica:
            assert replica.ask(BalanceOf(account="notebook"), after=receipt) == 5
        ((_, outcome),) = bank.execute_all([Envelope(Account, "notebook", Deposit(amount=1))])
        assert isinstance(outcome, Receipt)
        assert len(bank.history(Account, "notebook")) == 3
        assert bank.health().ok

    asyncio.run(in_a_cell())


def test_a_progress_function_that_calls_its_own_runtime_is_refused_and_one_that_interrupts_fails_alone(
    bank: BlockingOperations,
) -> None:
    receipt = opened(bank, "watched", 5)
    asked, limit_s = BalanceOf(account="watched"), 20

    def as_of(progress: Callable[[int, int], object]) -> object:
        def called(done: int, total: int) -> None:
            progress(done, total)

        return bank.as_of(Balances, receipt, asked, timeout_s=limit_s, progress=called)

    for verb in (bank.heads, bank.stop, lambda: next(bank.ask_all(Balances, [asked])), lambda: bank.rebuild(Balances)):
        with pytest.raises(CallerError, match="^this runtime was called by code that it runs itself and waits for"):
            as_of(partial(_called, verb))
    for error in (KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError()):
        with pytest.raises(HandlerFailed, match=rf"^as_of\(progress=...\) failed on .*{type(error).__name__}"):
            as_of(partial(_raised, error))
    with pytest.raises(ZeroDivisionError):
        as_of(lambda done, total: done / 0)
    assert as_of(lambda done, total: None) == 5


def test_stored_events_are_read_in_bulk_up_to_now(bank: BlockingOperations) -> None:
    since = bank.heads()
    opened(bank, "bulk", 1)
    receipt = opened(bank, "bulk too", 2)
    assert [event for event, _ in bank.events(types=[Deposited], streams=["Account/bulk"])] == [Deposited(amount=1)]
    assert {event.amount for event, _ in bank.events(types=[Deposited], since=since)} == {1, 2}
    assert {place.aggregate_id for _, place in bank.events(since=since, until=bank.heads())} == {"bulk", "bulk too"}
    assert receipt.position in {place.position for _, place in bank.events(streams=[receipt.stream])}


# --- subscriptions ------------------------------------------------------------------------------------------------


def test_a_subscription_goes_on_where_it_was_acknowledged(bank: BlockingOperations) -> None:
    opened(bank, "fed", 1)
    bank.execute(Account, "fed", Deposit(amount=2))
    chosen = {"types": [Deposited], "streams": ["Account/fed"], "acknowledge": "by hand"}
    with bank.subscribe("mailer", **chosen) as events:  # type: ignore[call-overload]
        event, place = next(events)
        assert (event, place.stream, place.replayed) == (Deposited(amount=1), StreamId("Account", "fed"), True)
        events.acknowledge(place)
        assert events.acknowledged[place.partition] >= place.position
        with pytest.raises(SubscriptionInUse, match="subscription 'mailer': member 0 of 1 is in use by"):
            bank.subscribe("mailer")
    with bank.subscribe("mailer", **chosen) as events:  # type: ignore[call-overload]
        assert next(events)[0] == Deposited(amount=2)
        bank.execute(Account, "fed", Deposit(amount=3))
        assert next(events)[0] == Deposited(amount=3), "and live"
    with pytest.raises(InvalidId, match="is not a name of up to 64 ASCII letters"):
        bank.subscribe("no/name")


def test_a_group_is_divided_among_its_members_and_may_be_divided_anew(bank: BlockingOperations) -> None:
    since = bank.heads()
    accounts = [f"member {number}" for number in range(12)]
    for account in accounts:
        opened(bank, account)
    seen: list[str] = []
    for member in (0, 1):
        with bank.subscribe("group", from_=since, types=[Opened], member=member, of=2) as events:
            batch = next(events.batches())
            seen += [place.aggregate_id for _, place in batch]
            events.acknowledge()
    assert sorted(seen) == sorted(accounts)
    with bank.subscribe("group", types=[Opened]) as alone:
        assert all(alone.positions[partition] >= position for partition, position in since.items())


# --- what changes which read models serve ---------------------------------------------------------------------------


def test_replicas_are_added_and_ended(bank: BlockingOperations) -> None:
    receipt = opened(bank, "scaled", 5)
    bank.scale(Balances, replicas=2)
    assert {bank.ask(Balances, BalanceOf(account="scaled"), after=receipt) for _ in range(4)} == {5}
    assert [one.replica for one in bank.status().projectors if one.projection == "Balances"] == [0, 1]
    bank.scale(Balances, replicas=1)
    assert [one.replica for one in bank.status().projectors if one.projection == "Balances"] == [0]
    with pytest.raises(InvalidMessage, match="0 replicas of Balances; choose 1 to 64"):
        bank.scale(Balances, replicas=0)


def test_what_one_aggregate_has_contributed_is_rebuilt_alone(bank: BlockingOperations) -> None:
    receipt = opened(bank, "mended", 5)
    assert bank.ask(Parted, BalanceOf(account="mended"), after=receipt) == 5
    before = bank.ask(Parted, EventsSeen())
    bank.rebuild_stream(Parted, Account, "mended")
    assert bank.ask(Parted, EventsSeen()) == before + 1
    assert bank.ask(Parted, BalanceOf(account="mended")) == 5
    with pytest.raises(DefinitionError, match="it has no @forget method"):
        bank.rebuild_stream(Balances, Account, "mended")


def test_an_event_that_fails_is_set_aside_or_stops_its_projection(bank: BlockingOperations, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    before = bank.ask(Poisoned, EventsSeen(), after=bank.heads())
    receipt = bank.execute(Account, "poisoned", Open(owner=str(mended)))
    assert bank.ask(Poisoned, EventsSeen(), after=receipt) == before
    [aside] = next(one for one in bank.status().projectors if one.projection == "Poisoned").quarantined
    assert (aside.stream, aside.version, aside.event) == ("Account/poisoned", 1, "Opened")
    assert bank.retry_quarantined(Poisoned) == (aside,)
    mended.touch()
    assert bank.retry_quarantined(Poisoned) == ()
    assert bank.ask(Poisoned, EventsSeen()) == before + 1
    for after in (None, receipt):
        with pytest.raises(HandlerFailed, match=r"Stopping\.opened failed on .*FileNotFoundError"):
            bank.ask(Stopping, EventsSeen(), after=after)
    with pytest.raises(NotYetVisible, match="the command succeeded and its events are stored, but Stopping"):
        bank.execute(Account, "poisoned", Deposit(amount=1), until=Stopping)
    health = bank.health()
    assert (health.ok, health.projections["Balances"]) == (False, "")
    assert "Stopping.opened failed" in health.why
    assert next(one.state for one in bank.status().projectors if one.projection == "Stopping") == "stopped"


def cancelled(bank: BlockingOperations) -> bool:
    """Whether a rebuild was cancelled before it was over."""
    unwanted = bank.rebuild(BalancesInMills)
    unwanted.cancel()
    try:
        unwanted.wait()
    except RebuildCancelled as error:
        return "was cancelled" in str(error)
    return False


def test_a_new_version_of_a_read_model_takes_over_and_a_broken_one_does_not(bank: BlockingOperations) -> None:
    receipt = opened(bank, "rebuilt", 5)
    progress = bank.rebuild(BalancesInMills).wait()
    assert (progress.serving, progress.events) == (True, progress.total)
    assert bank.ask(BalancesInMills, BalanceOf(account="rebuilt"), after=receipt) == 50
    with pytest.raises(HandlerFailed, match=r"BrokenBalances\.deposited .*LookupError: a mistake"):
        bank.rebuild(BrokenBalances).wait()
    with pytest.raises(CallerError, match="Balances version 1 is older than version 2, which serves"):
        bank.rebuild(Balances)
    assert any(cancelled(bank) for _ in range(100)), "each rebuild was over before it was cancelled"
    later = bank.execute(Account, "rebuilt", Deposit(amount=1))
    assert bank.ask(BalancesInMills, BalanceOf(account="rebuilt"), after=later) == 60
    assert [one.build.partition(".")[0] for one in bank.status().projectors if one.projection == "Balances"] == ["v2"]


# --- the system itself --------------------------------------------------------------------------------------------


def test_what_runs_is_told_and_its_logs_are_sound(bank: BlockingOperations) -> None:
    before = sum(one.commands for one in bank.status().partitions)
    opened(bank, "told")
    bank.caught_up(Parted, timeout_s=PATIENCE_S)
    status = bank.status()
    assert sum(one.commands for one in status.partitions) == before + 1
    assert {one.partition: one.head for one in status.partitions} == bank.heads()
    assert all(one.alive and one.epoch == 1 for one in status.partitions)
    assert {(one.projection, one.part) for one in status.projectors if one.state == "live"} >= {
        ("Parted", 0),
        ("Parted", 1),
    }
    report = bank.verify()
    assert (report.ok, {one.partition: one.events for one in report.partitions}) == (True, bank.heads())
    assert bank.anchor().heads == bank.heads()


def test_what_needs_nodes_is_refused(bank: BlockingOperations) -> None:
    for refused in (lambda: bank.move(0, "node"), bank.rebalance, lambda: bank.drain("node")):
        with pytest.raises(CallerError, match="this system (runs on one machine|is in memory)"):
            refused()
