"""What a user's type checker must know. Nothing runs here: `mypy --strict` over the tests checks every `assert_type`.

Rule kept here: a decorator never loses the type of a method, a query knows its answer, and a specification only has the
steps that its subject has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, assert_type

from rayfold import (
    Application,
    BlockingConnection,
    BlockingEvents,
    BlockingGateway,
    BlockingOperations,
    BlockingRuntime,
    BlockingSession,
    BlockingSubscription,
    Connection,
    Events,
    Exported,
    Gateway,
    Operations,
    Receipt,
    Recorded,
    Replica,
    Runtime,
    Session,
    Settings,
    Status,
    Stored,
    Subscription,
    read_events,
    stored,
    subscribe,
    upcast,
)
from rayfold.runtime.domain.aggregate import Aggregate, events_of, outcome_of
from rayfold.runtime.domain.messages import Event, Payload, Query
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import decode_message, decode_state
from rayfold.runtime.errors import Rejected
from rayfold.runtime.testing import AggregateCase, Answered, Outcome, ProjectionCase, given, on
from rayfold.testing import BlockingMemoryRuntime, MemoryRuntime, system, system_blocking
from tests.bank import (
    Account,
    BalanceOf,
    Balances,
    Deposit,
    Deposited,
    FeeCharged,
    Open,
    Opened,
    Paid,
    Pay,
    Richest,
)

Answer = TypeVar("Answer")


class Charged(Event, version=2):
    """An upcaster that splits an event can declare what it returns."""

    amount: int

    @staticmethod
    @upcast(from_version=1)
    def without_fee(old: Payload) -> list[Payload | Stored]:
        return [old, stored("FeeCharged", amount=1)]


def _ask(query: Query[Answer]) -> Answer:
    """The shape of the call that the runtime has."""
    raise NotImplementedError(query)


if TYPE_CHECKING:
    account = Account("alice")

    # A decorated method keeps its type, whichever way it is decorated.
    assert_type(account.open(Open(owner="Ada")), Opened | Rejected)
    assert_type(account.deposit(Deposit(amount=1)), Deposited | Rejected)
    assert_type(account.pay(Pay(to="bob", amount=1)), Iterator[Paid | FeeCharged])
    _folds: Callable[[Deposited], None] = account.deposited
    _folds_not: Callable[[Opened], None] = account.deposited  # type: ignore[assignment]
    assert_type(Balances().balance(BalanceOf(account="alice")), int)
    assert_type(account.balance, int)
    assert_type(account.id, str)
    account.deposit(Open(owner="Ada"))  # type: ignore[arg-type]
    Deposit(amount="much")  # type: ignore[arg-type]

    # A query is typed by its answer.
    assert_type(_ask(BalanceOf(account="alice")), int)
    assert_type(_ask(Richest()), list[str])

    # A specification has the steps of its subject, and no others.
    assert_type(given(Account, Opened(owner="Ada"), id="alice"), AggregateCase[Account])
    assert_type(given(Account).when(Open(owner="Ada")), Outcome[Account])
    assert_type(given(Account).when(Open(owner="Ada")).then(Opened(owner="Ada")), AggregateCase[Account])
    assert_type(given(Balances, on("alice", Deposited(amount=1))), ProjectionCase[Balances])
    assert_type(given(Balances, ("alice", Deposited(amount=1)), Deposited(amount=2)), ProjectionCase[Balances])
    assert_type(given(Balances).ask(BalanceOf(account="alice")), Answered[Balances, int])
    given(Account).ask(BalanceOf(account="alice"))  # type: ignore[attr-defined]
    given(Balances).when(Open(owner="Ada"))  # type: ignore[attr-defined]
    given(Account, on("alice", Deposited(amount=1)))  # type: ignore[type-var]

    # Both runtimes have arguments that are checked.
    Runtime("bank-data", Application("bank", aggregates=[Account]))
    BlockingRuntime("bank-data", aggregates=[Account], projections=[Balances], replicas={Balances: 2})
    BlockingRuntime("bank-data", agregates=[Account])  # type: ignore[call-arg]
    BlockingRuntime("bank-data", aggregates=[Balances])  # type: ignore[list-item]

    # The past is typed by the aggregate, and a look back by the query.
    async def _looks_back(bank: Runtime, blocking: BlockingRuntime) -> None:
        assert_type(await bank.state_at(Account, "alice", version=7), Account)
        assert_type(blocking.state_at(Account, "alice"), Account)
        assert_type(await bank.history(Account, "alice"), list[tuple[Event, Recorded]])
        assert_type(await bank.as_of(Balances, {0: 5}, BalanceOf(account="alice")), int)
        assert_type(blocking.as_of(Balances, {}, Richest()), list[str])
        assert_type(await bank.status(), Status)

    # A session and an embedded replica answer as the runtime does.
    async def _reads_its_writes(bank: Runtime, blocking: BlockingRuntime) -> None:
        me, replica = bank.session(), await bank.replica(Balances)
        assert_type(me, Session)
        assert_type(replica, Replica[Balances])
        receipt = await me.execute(Account, "alice", Open(owner="Ada"), until=[Balances])
        assert_type(receipt, Receipt)
        assert_type(await bank.events_of(receipt), list[Event])
        assert_type(blocking.execute(Account, "alice", Deposit(amount=1), events=True), Receipt)
        assert_type(await me.ask(Balances, BalanceOf(account="alice")), int)
        assert_type(await me.ask_replica(replica, Richest()), list[str])
        assert_type(await bank.ask(Balances, Richest(), after=[receipt]), list[str])
        assert_type(replica.ask(BalanceOf(account="alice"), after=me), int)
        assert_type(blocking.session(me.token()), BlockingSession)
        assert_type(blocking.session().ask(Balances, Richest()), list[str])
        await bank.ask(Balances, Richest(), after=7)  # type: ignore[arg-type]

    # Code that sends commands and queries declares what it needs, and takes whatever has it.
    def _gateways(
        runtime: Runtime, connection: Connection, session: Session, blocking: BlockingRuntime, other: BlockingConnection
    ) -> None:
        _asynchronous: list[Gateway] = [runtime, connection, session]
        _whole: list[Operations] = [runtime, connection]
        _blocking: list[BlockingGateway] = [blocking, other, blocking.session()]
        _blocking_whole: list[BlockingOperations] = [blocking, other]
        _awaited: Gateway = blocking  # type: ignore[assignment]
        _not_whole: Operations = session  # type: ignore[assignment]

    async def _sends(bank: Gateway, blocking: BlockingGateway) -> None:
        assert_type(await bank.execute(Account, "alice", Deposit(amount=1)), Receipt)
        assert_type(await bank.ask(Balances, Richest()), list[str])
        assert_type(blocking.ask(Balances, BalanceOf(account="alice")), int)

    BlockingRuntime("bank-data", aggregates=[Account], settings=Settings(timeout_s=1))

    # A subscription to some types of events yields those, unless it also yields what stands for unreadable ones.
    async def _subscribes(bank: Operations, blocking: BlockingOperations) -> None:
        async for event, recorded in bank.subscribe(types=[Deposited]):
            assert_type(event, Deposited)
            assert_type(recorded, Recorded)
        assert_type(bank.subscribe("mailer", types=Deposited), Subscription[Deposited])
        assert_type(blocking.subscribe(types=[Opened]), BlockingSubscription[Opened])
        assert_type(blocking.subscribe(), BlockingSubscription[Event])
        assert_type(blocking.subscribe(types=["Opened"]), BlockingSubscription[Event])
        assert_type(blocking.subscribe(types=[Opened], unreadable="yield"), BlockingSubscription[Event])
        _any: BlockingSubscription = blocking.subscribe(types=[Opened])
        for batch in subscribe("bank-data", aggregates=[Account], types=[Deposited]).batches():
            assert_type(batch, list[tuple[Deposited, Recorded]])
        blocking.subscribe(types=[Account])  # type: ignore[type-var]

    async def _reads_in_bulk(bank: Operations, blocking: BlockingOperations) -> None:
        async for event, recorded in bank.events(types=Deposited):
            assert_type(event, Deposited)
            assert_type(recorded, Recorded)
        assert_type(bank.events(types=[Opened], unreadable="raise"), Events[Opened])
        assert_type(bank.events(), Events[Event])
        assert_type(blocking.events(types=[Opened]), BlockingEvents[Opened])
        assert_type(blocking.events(types=[Opened], unreadable="yield"), BlockingEvents[Event])
        for opened, _ in read_events("bank-data", aggregates=[Account], types=Opened):
            assert_type(opened, Opened)
        bank.events(types=[Account])  # type: ignore[type-var]
        assert_type(await bank.events(types=Opened).to_parquet("opened.parquet"), Exported)
        assert_type(blocking.events().to_parquet("folder", overwrite=True), Exported)

    # A command is sent to an aggregate, and a query to a projection.
    async def _sends_to_whom(bank: Operations) -> None:
        await bank.execute(Account, "alice", Richest())  # type: ignore[arg-type]
        await bank.execute(Balances, "alice", Deposit(amount=1))  # type: ignore[arg-type]
        await bank.ask(Balances, Deposit(amount=1))  # type: ignore[arg-type]
        await bank.ask(Account, Richest())  # type: ignore[arg-type]

    # What the runtime uses.
    assert_type(outcome_of(account, Deposit(amount=1)), list[Event] | Rejected)
    assert_type(events_of(None, account), list[Event] | Rejected)
    assert_type(decode_message(Deposit, b""), Deposit)
    assert_type(decode_state(Account, b""), Account)
    assert_type(Catalogue([Account], [Balances]).aggregate("Account"), type[Aggregate])


async def a_system_in_memory_is_what_a_runtime_is(application: Application) -> None:
    async with system(Balances, Account, replicas={Balances: 2}) as bank:
        assert_type(bank, MemoryRuntime)
        assert_type(await bank.ask(Balances, BalanceOf(account="alice")), int)
        gateway: Gateway = bank
        operations: Operations = bank
        assert_type(await operations.state_at(Account, "alice"), Account)
        assert_type(await gateway.execute(Account, "alice", Deposit(amount=1)), Receipt)
    with system_blocking(application, timeout_s=3) as blocking:
        assert_type(blocking, BlockingMemoryRuntime)
        now: BlockingOperations = blocking
        assert_type(now.ask(Balances, BalanceOf(account="alice")), int)
