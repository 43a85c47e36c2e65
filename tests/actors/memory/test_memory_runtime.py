"""What is a system in memory's own: its clock, projections that are held back, starting again, and what it refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import rayfold.testing
from rayfold import (
    Aggregate,
    Application,
    BlockingGateway,
    BlockingOperations,
    BlockingRuntime,
    CallerError,
    Command,
    DefinitionError,
    Envelope,
    Event,
    Gateway,
    HandlerFailed,
    InvalidMessage,
    LocalCluster,
    NotYetVisible,
    Operations,
    Overloaded,
    Projection,
    Query,
    RayfoldError,
    Receipt,
    Rejected,
    Runtime,
    Settings,
    Unavailable,
    UnknownName,
    answer,
    connect_blocking,
    decide,
    evolve,
    project,
    read_events,
    stored,
)
from rayfold.testing import (
    BlockingMemoryRuntime,
    Clock,
    MemoryRuntime,
    fixture,
    fixture_blocking,
    system,
    system_blocking,
)
from tests.bank import (
    Account,
    BalanceOf,
    Balances,
    Deposit,
    Deposited,
    EventsSeen,
    Open,
    Turnover,
    TurnoverOn,
    Vault,
    Withdraw,
)

ROOT = Path(__file__).resolve().parents[3]
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)

bank = fixture(Account, Balances, Turnover)
till = fixture_blocking(Turnover, Account, Balances, partitions=1)


async def pay_in(gateway: Gateway, account: str, amount: int) -> Receipt:
    return await gateway.execute(Account, account, Deposit(amount=amount))


async def balance_in(operations: Operations, account: str) -> int:
    return (await operations.state_at(Account, account)).balance


def pay_in_now(gateway: BlockingGateway, account: str, amount: int) -> Receipt:
    return gateway.execute(Account, account, Deposit(amount=amount))


def balance_now(operations: BlockingOperations, account: str) -> int:
    return operations.state_at(Account, account).balance


# --- what it is used as -------------------------------------------------------------------------------------------


async def test_it_is_whatever_takes_commands_and_queries(bank: MemoryRuntime) -> None:
    await bank.execute(Account, "alice", Open(owner="x"))
    await pay_in(bank, "alice", 5)
    async with bank.session() as me:
        await pay_in(me, "alice", 5)
    assert await balance_in(bank, "alice") == 10
    assert [event async for event in bank.ask_all(Balances, [BalanceOf(account="alice")])] == [
        (BalanceOf(account="alice"), 10)
    ]


def test_without_await_it_is_that_too(till: BlockingMemoryRuntime) -> None:
    till.execute(Account, "alice", Open(owner="x"))
    assert pay_in_now(till, "alice", 5).partition == 0
    assert balance_now(till, "alice") == 5


async def test_each_test_has_a_system_of_its_own(bank: MemoryRuntime) -> None:
    assert await bank.heads() == {0: 0, 1: 0}


async def test_what_was_executed_is_seen_without_waiting_for_it(bank: MemoryRuntime) -> None:
    await bank.execute(Account, "alice", Open(owner="x"))
    for balance in range(1, 20):
        await bank.execute(Account, "alice", Deposit(amount=1))
        assert await bank.ask(Balances, BalanceOf(account="alice")) == balance


async def test_streams_are_in_the_same_places_in_every_run() -> None:
    async def positions() -> list[tuple[int, int]]:
        async with system(Account, partitions=3) as one:
            receipts = [await one.execute(Account, f"account {n}", Open(owner="x")) for n in range(9)]
        return [(receipt.partition, receipt.position) for receipt in receipts]

    assert await positions() == await positions()
    assert {partition for partition, _ in await positions()} == {0, 1, 2}


async def test_the_parts_of_an_application_are_those_of_the_application() -> None:
    application = Application("bank", aggregates=[Account], projections=[Balances], partitions=5, replicas=2)
    async with system(application) as one:
        assert len(await one.heads()) == 5
        assert [status.replica for status in (await one.status()).projectors] == [0, 1]


async def test_it_keeps_what_it_has_when_it_is_started_again_and_folds_it_anew(bank: MemoryRuntime) -> None:
    await bank.execute(Account, "alice", Open(owner="x"))
    first = await bank.execute(Account, "alice", Deposit(amount=5))
    async with bank.subscribe("mailer", types=[Deposited], acknowledge="by hand") as events:
        assert (await anext(events))[0] == Deposited(amount=5)
        await events.acknowledge()
    await bank.stop()
    with pytest.raises(CallerError, match=r"the system in memory is not running; use `async with`, or start\(\) it"):
        await bank.execute(Account, "alice", Deposit(amount=5))
    await bank.start()
    with pytest.raises(CallerError, match="the system in memory is started already"):
        await bank.start()
    assert await bank.ask(Balances, BalanceOf(account="alice"), after=first) == 5
    receipt = await bank.execute(Account, "alice", Deposit(amount=1))
    assert receipt.version == 3
    assert {status.epoch for status in (await bank.status()).partitions} == {2}
    async with bank.subscribe("mailer", types=[Deposited]) as events:
        assert (await anext(events))[0] == Deposited(amount=1)


def test_a_fixture_is_left_to_another_plugin_where_there_is_no_pytest_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest_asyncio", None)
    assert type(fixture(Account)) is type(pytest.fixture(lambda: None))


# --- the clock ----------------------------------------------------------------------------------------------------


async def test_the_clock_stands_still_until_it_is_moved_and_what_is_recorded_follows_it(bank: MemoryRuntime) -> None:
    assert (bank.clock.now, repr(bank.clock)) == (NEW_YEAR, "Clock(2024-01-01T00:00:00+00:00)")
    await bank.execute(Account, "alice", Open(owner="x"))
    await bank.execute(Account, "alice", Deposit(amount=1))
    bank.clock.advance(timedelta(days=31, microseconds=1))
    await bank.execute(Account, "alice", Deposit(amount=2))
    bank.clock.set(datetime(2023, 6, 1, 12, tzinfo=UTC))
    await bank.execute(Account, "alice", Deposit(amount=4))
    times = [recorded.recorded_at for _, recorded in await bank.history(Account, "alice")]
    assert times == [
        NEW_YEAR,
        NEW_YEAR,
        NEW_YEAR + timedelta(days=31, microseconds=1),
        datetime(2023, 6, 1, 12, tzinfo=UTC),
    ]
    assert await bank.ask(Turnover, TurnoverOn(day=NEW_YEAR.date())) == 1


async def test_the_past_is_found_by_the_times_of_the_clock(bank: MemoryRuntime) -> None:
    await bank.execute(Account, "alice", Open(owner="x"))
    for amount in (1, 2, 4):
        await bank.execute(Account, "alice", Deposit(amount=amount))
        bank.clock.advance(timedelta(days=1))
    for days, balance in ((0, 1), (1, 3), (1.5, 3), (2, 7), (900, 7)):
        at = NEW_YEAR + timedelta(days=days)
        assert (await bank.state_at(Account, "alice", at=at)).balance == balance
        assert await bank.as_of(Balances, at, BalanceOf(account="alice")) == balance
    assert await bank.as_of(Balances, NEW_YEAR - timedelta(days=1), BalanceOf(account="alice")) == 0


async def test_a_clock_begins_where_the_test_has_it_begin() -> None:
    async with system(Account, now=datetime(2030, 5, 1, tzinfo=UTC)) as one:
        await one.execute(Account, "alice", Open(owner="x"))
        [(_, recorded)] = await one.history(Account, "alice")
    assert recorded.recorded_at == datetime(2030, 5, 1, tzinfo=UTC)


def test_a_clock_is_moved_by_what_is_a_time() -> None:
    clock = Clock()
    with pytest.raises(InvalidMessage, match="clock: 5 is not a timedelta"):
        clock.advance(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="^clock: 2026-01-01T00:00:00 has no time zone"):
        clock.set(datetime(2026, 1, 1))
    with pytest.raises(InvalidMessage, match="^now: 2026-01-01T00:00:00 has no time zone"):
        system(Account, now=datetime(2026, 1, 1))
    for far in (timedelta.max, timedelta.min):
        with pytest.raises(InvalidMessage, match="^clock: .* is outside of the years 1 to 9999; move it by less"):
            clock.advance(far)
    with pytest.raises(InvalidMessage, match="^clock: 9999.* is outside of the years 1 to 9999 in UTC"):
        clock.set(datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))))
    assert clock.now == NEW_YEAR


def test_no_runtime_takes_a_clock() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'clock'"):
        Runtime("bank-data", aggregates=[Account], clock=Clock())  # type: ignore[call-arg]
    assert not hasattr(Runtime, "clock")


# --- a read model that is behind ----------------------------------------------------------------------------------


async def test_a_projection_that_is_held_back_answers_from_where_it_was(bank: MemoryRuntime) -> None:
    opened = await bank.execute(Account, "alice", Open(owner="x"))
    with bank.holding_back(Balances):
        receipt = await bank.execute(Account, "alice", Deposit(amount=5))
        assert await bank.ask(Balances, BalanceOf(account="alice"), after=opened) == 0
        assert await bank.ask(Turnover, EventsSeen(), after=receipt) == 2
        place = f"position {receipt.position} of partition {receipt.partition} is not visible yet"
        with pytest.raises(NotYetVisible, match=f"^Balances: {place}, the replica is at {opened.position}$"):
            await bank.ask(Balances, BalanceOf(account="alice"), after=receipt, timeout_s=0.01)
        with pytest.raises(NotYetVisible, match="the command succeeded and its events are stored, but Balances"):
            await bank.execute(Account, "alice", Deposit(amount=1), until=Balances, timeout_s=0.01)
        with pytest.raises(NotYetVisible, match="^Balances: position"):
            await bank.caught_up(timeout_s=0.01)
        [behind] = [one for one in (await bank.status()).projectors if one.behind_events]
        assert (behind.projection, behind.behind_events, behind.behind_s) == ("Balances", 2, 0.0)
    assert await bank.ask(Balances, BalanceOf(account="alice")) == 6


async def test_what_waits_for_it_is_answered_when_it_goes_on(bank: MemoryRuntime) -> None:
    await bank.execute(Account, "alice", Open(owner="x"))
    with bank.holding_back():
        receipt = await bank.execute(Account, "alice", Deposit(amount=5))
        asked = [asyncio.ensure_future(bank.ask(Balances, BalanceOf(account="alice"), after=receipt)) for _ in range(3)]
        everywhere = asyncio.ensure_future(bank.caught_up())
        await asyncio.wait([*asked, everywhere], timeout=0.01)
        assert not any(one.done() for one in [*asked, everywhere])
    assert await asyncio.gather(*asked, everywhere) == [5, 5, 5, None]
    with (
        pytest.raises(UnknownName, match="no projection is named 'Elsewhere'"),
        bank.holding_back(type("Elsewhere", (rayfold.Projection,), {})),
    ):
        raise AssertionError("it holds nothing back")


async def test_what_cannot_be_held_back_or_asked_is_told_by_its_argument(bank: MemoryRuntime) -> None:
    with pytest.raises(InvalidMessage, match="^holding_back: 'Balances' is not a"), bank.holding_back("Balances"):  # type: ignore[arg-type]
        raise AssertionError("it holds nothing back")
    with pytest.raises(InvalidMessage, match="^as_of: 2026-01-01T00:00:00 has no time zone"):
        await bank.as_of(Balances, datetime(2026, 1, 1), BalanceOf(account="alice"))
    with pytest.raises(InvalidMessage, match="^since: 2026-01-01T00:00:00 has no time zone"):
        bank.events(since=datetime(2026, 1, 1))


async def test_another_event_loop_than_that_of_the_test_is_told_as_the_cause(bank: MemoryRuntime) -> None:
    with pytest.raises(CallerError, match=r"started on another event loop.*pytest_asyncio.fixture\(loop_scope="):
        await asyncio.to_thread(asyncio.run, bank.heads())


class TestFixturesOfAClass:
    bank = fixture(Account)
    till = fixture_blocking(Account)

    async def test_they_may_be_attributes_of_it(self, bank: MemoryRuntime) -> None:
        assert await bank.heads() == {0: 0, 1: 0}

    def test_without_await_too(self, till: BlockingMemoryRuntime) -> None:
        assert till.heads() == {0: 0, 1: 0}


def test_without_await_it_is_held_back_too(till: BlockingMemoryRuntime) -> None:
    till.execute(Account, "alice", Open(owner="x"))
    with till.holding_back(Balances):
        receipt = till.execute(Account, "alice", Deposit(amount=5))
        with pytest.raises(NotYetVisible):
            till.ask(Balances, BalanceOf(account="alice"), after=receipt, timeout_s=0.01)
        till.clock.advance(timedelta(days=1))
    assert till.ask(Balances, BalanceOf(account="alice")) == 5


async def test_it_is_held_back_whatever_serves_it_until_the_block_ends(bank: MemoryRuntime) -> None:
    async def balances() -> list[int]:
        return [await bank.ask(Balances, BalanceOf(account="alice")) for _ in range(6)]

    await bank.execute(Account, "alice", Open(owner="x"))
    await bank.execute(Account, "alice", Deposit(amount=1))
    with bank.holding_back(Balances):
        await bank.execute(Account, "alice", Deposit(amount=2))
        await bank.scale(Balances, replicas=3)
        assert await balances() == [1] * 6
        await bank.rebuild(Balances)
        assert await balances() == [1] * 6
        await bank.stop()
        await bank.start()
        receipt = await bank.execute(Account, "alice", Deposit(amount=4))
        assert await balances() == [1] * 6
        assert await bank.ask(Turnover, EventsSeen(), after=receipt) == 4
        with bank.holding_back():
            pass
        assert await balances() == [1] * 6
    assert await balances() == [7] * 6
    with bank.holding_back(Balances):
        await bank.stop()
    await bank.start()
    await bank.execute(Account, "alice", Deposit(amount=8))
    assert await balances() == [15] * 6


def test_without_await_a_block_may_outlive_the_system(till: BlockingMemoryRuntime) -> None:
    with till.holding_back():
        till.stop()
    till.start()
    till.execute(Account, "alice", Open(owner="x"))
    receipt = till.execute(Account, "alice", Deposit(amount=5))
    assert till.ask(Balances, BalanceOf(account="alice"), after=receipt) == 5


async def test_what_waits_when_it_is_stopped_gets_an_error() -> None:
    one = await system(Account, Balances).start()
    await one.execute(Account, "alice", Open(owner="x"))
    with one.holding_back():
        receipt = await one.execute(Account, "alice", Deposit(amount=5))
        asked = asyncio.ensure_future(one.ask(Balances, BalanceOf(account="alice"), after=receipt))
        await asyncio.wait([asked], timeout=0.01)
        await one.stop()
        with pytest.raises(Unavailable, match="^Balances BalanceOf: the system was stopped before it was answered$"):
            await asked


# --- bounds, and what is refused ----------------------------------------------------------------------------------


async def test_too_much_at_once_is_refused_by_name() -> None:
    async with system(Account, Balances, settings=Settings(in_flight_max=50)) as one:
        sent = [one.execute(Account, f"a{number}", Open(owner="x")) for number in range(80)]
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        refused = [str(outcome) for outcome in outcomes if isinstance(outcome, Overloaded)]
        told = "the client: limit of 50 commands in flight reached; this one was not sent, try again later"
        assert refused == [told] * 30
        asked = [one.ask(Balances, BalanceOf(account="a1")) for _ in range(80)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [int] * 50 + [Overloaded] * 30


async def test_what_races_is_decided_one_after_the_other(bank: MemoryRuntime) -> None:
    opened = await bank.execute(Account, "alice", Open(owner="x"))
    sent = [bank.execute(Account, "alice", Deposit(amount=1), expected_version=opened.version) for _ in range(20)]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 1
    with pytest.raises(Rejected):
        await bank.execute(Account, "alice", Withdraw(amount=2))


def test_what_cannot_be_run_is_refused_as_a_runtime_refuses_it() -> None:
    application = Application("bank", aggregates=[Account])
    for classes, what in (
        ((), "testing.system: there is nothing to run; give aggregate and projection classes"),
        ((Account, 5), "testing.system: 5 is neither an Aggregate nor a Projection class; give aggregate and"),
        ((Account, Deposit), "Deposit'> is neither an Aggregate nor a Projection class"),
        ((application, application), "testing.system: 2 Applications were given; give one"),
        ((application, Vault), "are those of the Application; give the Application alone, or leave it out"),
    ):
        with pytest.raises(InvalidMessage, match=what.replace("(", r"\(")):
            system(*classes)
    with pytest.raises(InvalidMessage, match=r"testing.system: partitions is 0; give 1 to 1,024"):
        system(Account, partitions=0)
    with pytest.raises(InvalidMessage, match="replicas: is 0"):
        system(Account, Balances, replicas=0)
    with pytest.raises(InvalidMessage, match="timeout_s is 0"):
        system_blocking(Account, timeout_s=0)
    with pytest.raises(DefinitionError, match="the aggregate name 'Account' is already that of tests.bank.Account"):
        system(Account, Account, type("Account", (rayfold.Aggregate,), {}))


async def test_it_has_no_directory_and_no_nodes(bank: MemoryRuntime) -> None:
    with pytest.raises(CallerError, match="this system is in memory and has no directory; give a test"):
        _ = bank.store
    with pytest.raises(CallerError, match="this system is in memory and has no nodes; give a test of moves a Runtime"):
        await bank.rebalance()


def test_a_handler_that_calls_the_system_it_runs_in_is_refused_at_once() -> None:
    class Count(Command):
        where: str

    class Counted(Event):
        where: str

    class CountOf(Query[int]):
        where: str = ""

    class Counter(Aggregate):
        @decide
        def count(self, command: Count) -> Counted:
            if command.where == "decide":
                one.execute(Account, "alice", Open(owner="x"))
            return Counted(where=command.where)

        @evolve
        def counted(self, event: Counted) -> None:
            if event.where == "evolve":
                one.ask(Counts, CountOf())

    class Counts(Projection):
        @project
        def counted(self, event: Counted) -> None:
            if event.where == "project":
                one.heads()

        @answer
        def count_of(self, query: CountOf) -> int:
            return one.heads()[0] if query.where == "answer" else 7

    told = "failed on .*: CallerError: this runtime was called by code that it runs itself and waits for, such as a"
    with system_blocking(Counter, Counts, Account, timeout_s=20) as one:
        for where in ("decide", "evolve"):
            with pytest.raises(HandlerFailed, match=rf"^Counter.*{told}"):
                one.execute(Counter, "a", Count(where=where))
        assert sum(one.heads().values()) == 0
        with pytest.raises(CallerError, match="^this runtime was called by code that it runs itself"):
            one.ask(Counts, CountOf(where="answer"))
        assert one.ask(Counts, CountOf()) == 7
        receipt = one.execute(Counter, "a", Count(where="project"))
        with pytest.raises(HandlerFailed, match=rf"Counts.*{told}"):
            one.ask(Counts, CountOf(), after=receipt)


def test_an_unfinished_loop_that_is_collected_by_its_own_event_loop_holds_up_nothing(
    till: BlockingMemoryRuntime,
) -> None:
    envelopes = (Envelope(Account, f"a{number}", Open(owner="x")) for number in range(3))
    outcomes = [till.execute_all(envelopes, in_flight=1)]
    next(iter(outcomes[0]))
    till._here(outcomes.clear)
    assert till.ask(Balances, BalanceOf(account="a0")) == 0


# --- what it takes ------------------------------------------------------------------------------------------------

ALL_OF_IT = """
import asyncio, sys
from datetime import timedelta
from rayfold.testing import system
from tests.bank import Account, BalanceOf, Balances, Deposit, Open

async def main():
    async with system(Account, Balances) as bank:
        await bank.execute(Account, "alice", Open(owner="x"))
        receipt = await bank.execute(Account, "alice", Deposit(amount=5), until=Balances)
        await bank.scale(Balances, replicas=2)
        await bank.rebuild(Balances)
        bank.subscribe("mailer").close()
        await bank.as_of(Balances, receipt, BalanceOf(account="alice"))
        await bank.status()
        await bank.verify()
        (await bank.replica(Balances)).close()

asyncio.run(main())
print(*sorted({"ray", "lmdb", "duckdb", "pytest", "cryptography"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_it_imports_neither_ray_nor_lmdb_and_writes_nothing(tmp_path: Path) -> None:
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}){ALL_OF_IT}"]
    run = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr, run.stdout.split()) == (0, "", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_starts_and_joins_no_ray_where_a_program_has_imported_one(tmp_path: Path) -> None:
    started = "import os; os.environ.pop('RAY_ENABLE_AUTO_CONNECT', None); import ray"
    asked = "print(ray.is_initialized())"
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {started}{ALL_OF_IT}\n{asked}"]
    run = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["ray", "False"], run.stderr


class Unshowable:
    """Its class has code that fails when it is to be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("not shown")


@pytest.mark.parametrize(
    "given", [10**5_000, Unshowable()], ids=["a number of over 4,300 digits", "a repr that raises"]
)
def test_an_argument_that_cannot_be_shown_is_refused_like_any_other(till: BlockingMemoryRuntime, given: Any) -> None:
    receipt = till.execute(Account, "unshowable", Open(owner="x"))
    deposit, balance = Deposit(amount=1), BalanceOf(account="unshowable")
    calls: list[Callable[[], object]] = [
        lambda: till.execute(Account, given, deposit),
        lambda: till.execute(given, "unshowable", deposit),
        lambda: till.execute(Account, "unshowable", deposit, expected_version=given),
        lambda: till.execute(Account, "unshowable", deposit, command_id=given),
        lambda: till.execute(Account, "unshowable", deposit, decisive=given),
        lambda: till.execute(Account, "unshowable", deposit, events=given),
        lambda: till.execute(Account, "unshowable", deposit, until=given),
        lambda: [*till.execute_all([], in_flight=given)],
        lambda: till.ask(given, balance),
        lambda: till.ask(Balances, balance, after=given),
        lambda: till.ask(Balances, balance, after={0: given}),
        lambda: till.as_of(Balances, given, balance),
        lambda: till.as_of(Balances, {0: given}, balance),
        lambda: till.history(Account, given),
        lambda: till.history(Account, "unshowable", from_version=given),
        lambda: till.state_at(Account, "unshowable", version=given),
        lambda: till.state_at(Account, "unshowable", at=given),
        lambda: till.events_of(given),
        lambda: till.events(since=given),
        lambda: till.events(until={0: given}),
        lambda: till.events(types=given),
        lambda: till.events(types=[given]),
        lambda: till.events(streams=[given]),
        lambda: till.subscribe(given),
        lambda: till.subscribe(from_=given),
        lambda: till.subscribe(acknowledge=given),
        lambda: till.subscribe(unreadable=given),
        lambda: till.scale(Balances, replicas=given),
        lambda: till.session(given),
        lambda: Application(given, aggregates=[Account]),
        lambda: Application("bank", aggregates=given),
        lambda: Application("bank", aggregates=[given]),
        lambda: Application("bank", aggregates=[Account], retired=given),
        lambda: system_blocking(Account, partitions=given),
        lambda: system_blocking(Account, settings=given),
        lambda: BlockingRuntime(given, aggregates=[Account]),
        lambda: BlockingRuntime("bank-data", aggregates=[Account], cluster=given),
        lambda: LocalCluster(nodes=given),
        lambda: connect_blocking(given),
        lambda: read_events(given, aggregates=[Account]),
        lambda: stored(given),
        lambda: stored("Deposited", version=-given if isinstance(given, int) else given),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(RayfoldError) as refused:
            raise AssertionError(f"call {number} was not refused: {call()}")
        assert str(refused.value), f"call {number}"
    with pytest.raises(AssertionError, match="no @evolve of Account takes"):
        rayfold.given(Account, given)
    assert str(Rejected("too_much", amount=given)).startswith("too_much (amount=")
    assert till.history(Account, "unshowable")[-1][1].version == receipt.version
