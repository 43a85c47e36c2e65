"""Commands through real actors: what callers are answered, and what is on disk then.

One runtime for all tests that need no other one; each has accounts of its own there. They come last: while a test runs
in an event loop of its own, that of the shared runtime stands still.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import pytest_asyncio

from rayfold import (
    NO_STREAM,
    CallerError,
    CommandIdReused,
    Conflict,
    Envelope,
    InvalidId,
    InvalidMessage,
    NotYetVisible,
    Overloaded,
    Receipt,
    Rejected,
    Runtime,
    StreamId,
    Unavailable,
    UnknownName,
    derived_id,
)
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.settings import Settings
from rayfold.runtime.encoding.codec import decode_message
from rayfold.runtime.encoding.envelope import PackedCommand
from rayfold.runtime.encoding.outcome import Outcome
from tests.actors.conftest import Bank
from tests.bank import (
    Account,
    BalanceOf,
    Balances,
    Close,
    Deposit,
    Deposited,
    EventsSeen,
    Open,
    Pay,
    Richest,
    Turnover,
    Vault,
    Withdraw,
)
from tests.support.log_walk import check_nothing_lost_nothing_twice, stored_events
from tests.support.read_models import LastSeen, Trail

pytestmark = pytest.mark.slow


# --- in a runtime of their own ----------------------------------------------------------------------------------------


async def test_a_receipt_is_visible_on_every_replica(bank: Bank) -> None:
    async with bank(projections=[Balances], replicas=3) as running:
        await running.execute(Account, "alice", Open(owner="Alice"))
        for amount in range(1, 31):
            receipt = await running.execute(Account, "alice", Deposit(amount=1))
            answers = [running.ask(Balances, BalanceOf(account="alice"), after=receipt) for _ in range(6)]
            assert await asyncio.gather(*answers) == [amount] * 6
        status = await running.status()
        assert len({one.pid for one in status.projectors}) == 3


async def test_the_same_command_id_takes_effect_once_and_what_was_stored_goes_on_after_a_restart(bank: Bank) -> None:
    key = derived_id("payment", 4711)
    async with bank() as running:
        await running.execute(Account, "alice", Open(owner="Alice"))
        first = await running.execute(Account, "alice", Deposit(amount=10), command_id=key)
        assert await running.execute(Account, "alice", Deposit(amount=10), command_id=key) == first._replace(
            repeated=True
        )
        with pytest.raises(CommandIdReused, match=r"was already used for a different command"):
            await running.execute(Account, "alice", Deposit(amount=11), command_id=key)
    async with bank() as again:
        assert await again.execute(Account, "alice", Deposit(amount=10), command_id=key) == first._replace(
            repeated=True
        )
        assert await again.ask(Balances, BalanceOf(account="alice"), after=first) == 10
        receipt = await again.execute(Account, "alice", Withdraw(amount=4))
        assert receipt.version == 3
        assert await again.ask(Balances, BalanceOf(account="alice"), after=receipt) == 6
        assert {one.epoch for one in (await again.status()).partitions} == {2}


async def test_what_could_not_be_sent_is_sent_again_in_order_because_nothing_has_gone_past_it(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bank(partitions=1) as running:
        await running.execute(Account, "alice", Open(owner="Alice"))
        ahead, refused = deque(range(1, 31)), list[int]()
        away, submit = {3}, running._client._router.submit

        def submit_unless_away(packed: PackedCommand, blob: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
            amount = decode_message(Deposit, packed.payload).amount
            running._client.set_unavailable({0: "its node is gone"} if amount in away else {})
            return submit(packed, blob, timeout_s)

        monkeypatch.setattr(running._client._router, "submit", submit_unless_away)

        def deposits() -> Iterator[Envelope]:
            while ahead and not refused:
                yield Envelope(Account, "alice", Deposit(amount=ahead.popleft()))

        while ahead:
            async for envelope, outcome in running.execute_all(deposits(), in_flight=8):
                assert isinstance(envelope.command, Deposit)
                if isinstance(outcome, Unavailable):
                    assert str(outcome) == "Account/alice: it was not sent: partition 0: its node is gone"
                    refused.append(envelope.command.amount)
            assert refused == [*range(3, 3 + len(refused))], "it, and what was on its way behind it"
            assert bool(refused) == bool(away)
            ahead.extendleft(reversed(refused))
            refused.clear()
            away.clear()
        history = await running.history(Account, "alice", from_version=2)
        assert [event.amount for event, _ in history if isinstance(event, Deposited)] == [*range(1, 31)]


async def test_too_many_commands_at_once_are_refused_at_once_by_name(bank: Bank) -> None:
    async with bank(projections=[], settings=Settings(in_flight_max=50)) as running:
        sent = [running.execute(Account, f"a{number}", Open(owner="x")) for number in range(80)]
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert len(refused) == 30
        told = "the client: limit of 50 commands in flight reached; this one was not sent, try again later"
        assert str(refused[0]) == told
        assert sum((await running.heads()).values()) == 50


async def test_a_runtime_that_is_not_running_says_so(bank: Bank) -> None:
    stopped = bank()
    with pytest.raises(
        CallerError, match=r"the runtime on .*bank-data is not running; use `async with`, or start\(\) it"
    ):
        await stopped.execute(Account, "a", Open(owner="x"))


# --- in one for all ---------------------------------------------------------------------------------------------------

of_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    """Of two partitions, and two read models with one replica each."""
    path = tmp_path_factory.mktemp("commands") / "bank-data"
    async with Runtime(path, aggregates=[Account, Vault], projections=[Balances, Turnover], partitions=2) as bank:
        yield bank


async def events_in(running: Runtime) -> int:
    """How many there are in all partitions."""
    return sum((await running.heads()).values())


@of_one_loop
async def test_a_command_is_acknowledged_and_the_next_query_after_its_receipt_sees_it(running: Runtime) -> None:
    opened = await running.execute(Account, "alice", Open(owner="Alice"), expected_version=NO_STREAM)
    paid_in = await running.execute(Account, "alice", Deposit(amount=100), expected_version=opened.version)
    assert await running.ask(Balances, BalanceOf(account="alice"), after=paid_in) == 100
    assert (opened.stream, opened.version, paid_in.version) == (StreamId("Account", "alice"), 1, 2)
    assert paid_in.position > opened.position
    assert not paid_in.repeated
    assert stored_events(running.store.path)[paid_in.partition][-1].name == "Deposited"


@of_one_loop
async def test_a_refused_command_is_told_why_and_leaves_nothing(running: Runtime) -> None:
    before = await events_in(running)
    with pytest.raises(Rejected, match=r"Account/unopened refused Deposit: does_not_exist"):
        await running.execute(Account, "unopened", Deposit(amount=1))
    await running.execute(Account, "poor", Open(owner="Alice"))
    with pytest.raises(Rejected) as told:
        await running.execute(Account, "poor", Withdraw(amount=5))
    assert (told.value.reason, told.value.facts) == ("insufficient_funds", {"balance": 0, "needed": 5})
    with pytest.raises(Conflict, match=r"expected version 7 of Account/poor, but the stream is at 1"):
        await running.execute(Account, "poor", Deposit(amount=1), expected_version=7)
    assert await events_in(running) == before + 1


@of_one_loop
async def test_many_commands_come_back_in_order_each_with_its_own_outcome(running: Runtime) -> None:
    envelopes = [Envelope(Account, f"a{number % 50}", Open(owner="x")) for number in range(100)]
    envelopes += [Envelope(Account, f"a{number % 50}", Deposit(amount=1)) for number in range(2000)]
    envelopes.append(Envelope(Account, "", Deposit(amount=1)))
    seen = await running.ask(Turnover, EventsSeen(), after=await running.heads())
    results = [result async for result in running.execute_all(envelopes, in_flight=300)]
    assert [envelope for envelope, _ in results] == envelopes
    outcomes = [outcome for _, outcome in results]
    assert all(isinstance(outcome, Receipt) for outcome in outcomes[:50])
    assert all(isinstance(outcome, Rejected) and outcome.reason == "already_open" for outcome in outcomes[50:100])
    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    assert len(receipts) == 2050
    assert isinstance(outcomes[-1], InvalidId)
    for account in range(50):
        versions = [one.version for one in receipts if one.stream.id == f"a{account}"]
        assert versions == list(range(1, 42))
    assert await running.ask(Turnover, EventsSeen(), after=await running.heads()) == seen + 2050
    check_nothing_lost_nothing_twice(running.store.path, receipts)


@of_one_loop
async def test_one_command_with_two_events_stores_both_or_none(running: Runtime) -> None:
    await running.execute(Account, "payer", Open(owner="Alice"))
    await running.execute(Account, "payer", Deposit(amount=10))
    receipt = await running.execute(Account, "payer", Pay(to="bob", amount=5))
    assert receipt.version == 4
    with pytest.raises(Rejected):
        await running.execute(Account, "payer", Pay(to="bob", amount=4))
    assert await running.ask(Balances, BalanceOf(account="payer"), after=receipt) == 4
    assert receipt.store_id == running.store.store_id
    before = receipt._replace(store_id="that before a restore")
    with pytest.raises(InvalidMessage, match="the receipt is of the store that before a restore"):
        await running.ask(Balances, BalanceOf(account="payer"), after=before)
    with pytest.raises(InvalidMessage, match="the receipt is of the store that before a restore"):
        await running.as_of(Balances, before, BalanceOf(account="payer"))


@of_one_loop
async def test_a_command_without_events_is_acknowledged_and_writes_nothing(running: Runtime) -> None:
    await running.execute(Account, "closed", Open(owner="Alice"))
    closed = await running.execute(Account, "closed", Close())
    before = await events_in(running)
    again = await running.execute(Account, "closed", Close())
    assert (again.version, again.position) == (closed.version, closed.position) == (2, closed.position)
    assert await events_in(running) == before


@of_one_loop
async def test_a_callers_mistake_is_named_before_anything_is_sent(running: Runtime) -> None:
    before = await events_in(running)
    with pytest.raises(InvalidMessage, match=r"EventsSeen: is not a Command: it is a Query; queries are for ask"):
        await running.execute(Account, "mistaken", EventsSeen())  # type: ignore[arg-type]
    with pytest.raises(InvalidId, match=r"aggregate id '' is empty"):
        await running.execute(Account, "", Open(owner="x"))
    with pytest.raises(InvalidId, match=r"command id 'payment-1' is str, not uuid.UUID; derived_id\(\) makes one"):
        await running.execute(Account, "mistaken", Open(owner="x"), command_id="payment-1")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"no projection is named 'Trail'; known: Balances, Turnover"):
        await running.ask(Trail, LastSeen())
    with pytest.raises(UnknownName, match=r"no query of Balances is named 'EventsSeen'; known: BalanceOf, Richest"):
        await running.ask(Balances, EventsSeen())
    with pytest.raises(InvalidMessage, match=r"after: 9: 1 is not a position in this store; its partitions are 0 to 1"):
        await running.ask(Balances, BalanceOf(account="mistaken"), after={9: 1})
    with pytest.raises(CallerError, match=r"timeout_s is -1; give a positive number"):
        await running.execute(Account, "mistaken", Open(owner="x"), timeout_s=-1)
    assert await events_in(running) == before


@of_one_loop
async def test_a_query_after_a_position_nobody_reached_says_how_far_the_replica_is(running: Runtime) -> None:
    receipt = await running.execute(Account, "patient", Open(owner="Alice"))
    busy, here = receipt.partition, receipt.position
    assert await running.ask(Balances, BalanceOf(account="patient"), after=receipt) == 0
    ahead = {busy: here + 4}
    told = rf"position {here + 4} of partition {busy} is not visible yet, .* is at {here}\b"
    with pytest.raises(NotYetVisible, match=told):
        await running.ask(Balances, BalanceOf(account="patient"), after=ahead, timeout_s=0.3)


@of_one_loop
async def test_a_cancelled_call_does_not_disturb_the_others(running: Runtime) -> None:
    await running.execute(Account, "busy", Open(owner="Alice"))
    calls = [asyncio.ensure_future(running.execute(Account, "busy", Deposit(amount=1))) for _ in range(20)]
    await asyncio.sleep(0)
    calls[7].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 19


@of_one_loop
async def test_an_answer_that_is_the_read_model_itself_arrives_whole(running: Runtime) -> None:
    for name, amount in (("rich-1", 1_000_001), ("rich-3", 1_000_003), ("rich-2", 1_000_002)):
        await running.execute(Account, name, Open(owner=name))
        await running.execute(Account, name, Deposit(amount=amount))
    heads = await running.heads()
    assert await running.ask(Balances, Richest(limit=2), after=heads) == ["rich-3", "rich-2"]


@of_one_loop
async def test_correlation_and_causation_are_stored_with_the_event(running: Runtime) -> None:
    conversation, cause = uuid4(), uuid4()
    opening = running.execute(Account, "caused", Open(owner="x"), correlation_id=conversation, causation_id=cause)
    receipt = await opening
    stored = stored_events(running.store.path)[receipt.partition][receipt.position - 1]
    assert stored.stream.id == "caused"
    assert (stored.correlation_id, stored.causation_id) == (conversation.bytes, cause.bytes)
