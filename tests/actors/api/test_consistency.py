"""Consistency on request: until=, sessions and their tokens, several receipts, caught_up, embedded replicas.

One runtime for all tests of this file; the one that stops a projection for good comes last.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayfold import (
    BlockingRuntime,
    BlockingSession,
    CallerError,
    HandlerFailed,
    InvalidMessage,
    NotYetVisible,
    Projection,
    Query,
    Receipt,
    UnknownName,
    answer,
)
from rayfold.actors.api.replica import Replica
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.settings import Settings
from tests.bank import Account, BalanceOf, Balances, Deposit, Open, Richest
from tests.support.log_walk import stored_events
from tests.support.read_models import LastSeen, PartedBalances, Stopping, TotalBalance, Trail

pytestmark = pytest.mark.slow

CLIENTS, DEPOSITS_EACH = 20, 25


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingRuntime]:
    with BlockingRuntime(
        tmp_path_factory.mktemp("consistency") / "bank-data",
        aggregates=[Account],
        projections=[Balances, PartedBalances, Stopping, Trail],
        replicas={Balances: 2},
        settings=Settings(attempt_timeout_s=0.5),
        timeout_s=30,
    ) as bank:
        yield bank


def opened(bank: BlockingRuntime, *accounts: str) -> list[Receipt]:
    return [bank.execute(Account, account, Open(owner="x")) for account in accounts]


def processes_of(bank: BlockingRuntime, projection: str) -> list[int]:
    return [one.pid for one in bank.status().projectors if one.projection == projection]


@contextmanager
def held_back(pid: int) -> Iterator[Callable[[], None]]:
    """A process stands still, until what this gives is called."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


# --- until= and caught_up -----------------------------------------------------------------------------------------


def test_a_command_until_projections_is_visible_in_every_replica_and_part_of_them(running: BlockingRuntime) -> None:
    running.execute(Account, "until", Open(owner="x"), until=Balances)
    for balance in range(1, 11):
        running.execute(Account, "until", Deposit(amount=1), until=[Balances, PartedBalances])
        assert {running.ask(Balances, BalanceOf(account="until")) for _ in range(4)} == {balance}
        assert running.ask(PartedBalances, BalanceOf(account="until")) == balance


def test_until_an_unknown_projection_is_refused_before_the_command_is_sent(running: BlockingRuntime) -> None:
    before = running.heads()
    with pytest.raises(UnknownName, match="no projection is named 'Projection'"):
        running.execute(Account, "nobody", Open(owner="x"), until=[Balances, Projection])
    assert running.heads() == before


def test_what_is_not_visible_everywhere_in_time_says_that_the_command_succeeded(running: BlockingRuntime) -> None:
    (before,) = opened(running, "late")
    running.caught_up()
    with held_back(processes_of(running, "Balances")[1]) as go_on:
        with pytest.raises(NotYetVisible) as told:
            running.execute(Account, "late", Deposit(amount=7), until=[Balances, Trail], timeout_s=0.5)
        receipt = told.value.receipt
        assert receipt is not None
        partition, position = receipt.partition, receipt.position
        assert position > before.position
        assert str(told.value) == (
            "the command succeeded and its events are stored, but Balances:"
            f" position {position} of partition {partition} is not visible yet, the replica is at {position - 1}"
        )
        with pytest.raises(NotYetVisible, match=f"Balances: position {position} of partition {partition}"):
            running.caught_up(Balances, timeout_s=0.5)
        running.caught_up(Trail, PartedBalances)
        go_on()
        running.caught_up(Balances)
    assert running.ask(Balances, BalanceOf(account="late")) == 7


# --- sessions -----------------------------------------------------------------------------------------------------


def test_a_session_reads_its_writes_and_never_backwards_while_one_replica_is_behind(running: BlockingRuntime) -> None:
    one, other = processes_of(running, "Balances")
    question = BalanceOf(account="mine")
    with running.session() as me, ThreadPoolExecutor(8) as pool:
        me.execute(Account, "mine", Open(owner="x"))
        for behind, ahead in ((one, other), (other, one)):
            with held_back(behind) as go_on:
                written = me.ask(Balances, question)
                for _ in range(20):
                    me.execute(Account, "mine", Deposit(amount=1))
                    written += 1
                assert me.ask(Balances, question) == written
                with held_back(ahead):  # now only the one that is behind can answer
                    asking = [pool.submit(me.ask, Balances, question) for _ in range(8)]
                    go_on()
                    assert {asked.result() for asked in asking} == {written}


def test_what_a_session_has_seen_in_one_projection_it_sees_in_the_others(running: BlockingRuntime) -> None:
    reader = running.session()
    for number in range(10):
        running.execute(Account, f"seen{number}", Open(owner="x"))
        before = reader.positions
        seen = {account for _, _, account in reader.ask(Trail, LastSeen())}
        assert seen <= set(reader.ask(Balances, Richest(limit=10_000)))
        assert all(reader.positions[partition] >= position for partition, position in before.items())
    assert reader.ask(PartedBalances, TotalBalance()) >= 0
    assert sum(reader.positions.values()) > 0


def test_a_token_carries_a_session_on_and_any_other_text_is_refused_by_name(running: BlockingRuntime) -> None:
    with running.session() as me:
        me.execute(Account, "carried", Open(owner="x"))
        token = me.token()
        assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
        with running.session(token) as you:
            assert you.positions == me.positions
            assert you.ask(Trail, LastSeen())
    for at in range(len(token)):
        other = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(InvalidMessage, match="the session token: is (damaged|not a text)"):
            running.session(other)
    for other in ("", "no token", "é", token[:-1], token * 500):
        with pytest.raises(InvalidMessage, match="the session token: is (damaged|not a text)"):
            running.session(other)


def test_after_takes_several_receipts_positions_and_sessions(running: BlockingRuntime) -> None:
    receipts = [*opened(running, *(f"several{number}" for number in range(6)))]
    assert {receipt.partition for receipt in receipts} == {0, 1}
    highest = {receipt.partition: receipt.position for receipt in receipts}
    with running.session() as me:
        me.join(receipts)
        assert me.positions == highest
        for after in (receipts, highest, me, iter(receipts)):
            seen = running.ask(Trail, LastSeen(), after=after)
            assert {account for _, _, account in seen} >= {receipt.stream.id for receipt in receipts}
    with pytest.raises(InvalidMessage, match="after: is str; give a receipt, several, positions by partition"):
        running.ask(Trail, LastSeen(), after="now")  # type: ignore[arg-type]


# --- twenty clients -----------------------------------------------------------------------------------------------


def test_overlapping_reads_of_twenty_clients_agree_and_each_sees_an_ordered_prefix(running: BlockingRuntime) -> None:
    def client(number: int) -> list[list[tuple[int, int, str]]]:
        readings, account = [], f"client{number}"
        me: BlockingSession = running.session()
        me.execute(Account, account, Open(owner="x"))
        for _ in range(DEPOSITS_EACH):
            mine = me.execute(Account, account, Deposit(amount=1))
            readings.append(me.ask(Trail, LastSeen(of_each=100)))
            assert (mine.partition, mine.position, account) in readings[-1]
        return readings

    with ThreadPoolExecutor(CLIENTS) as pool:
        by_client = list(pool.map(client, range(CLIENTS)))
    stored = stored_events(running.store.path)
    for readings in by_client:
        newest: dict[int, int] = {}
        for reading in readings:
            for partition in {partition for partition, _, _ in reading}:
                positions = [position for part, position, _ in reading if part == partition]
                assert positions == list(range(positions[0], positions[-1] + 1)), "in order, without a gap"
                assert positions[-1] >= newest.get(partition, 0), "never backwards"
                newest[partition] = positions[-1]
            for partition, position, account in reading:
                assert stored[partition][position - 1].stream.id == account, "all readers see the same at a position"


# --- embedded replicas --------------------------------------------------------------------------------------------


class Failing(Query[int]):
    """Asked for what no read model has."""


class Fragile(Trail, name="Fragile"):
    """A trail with a mistake in an answer."""

    @answer
    def fails(self, query: Failing) -> int:
        """Never works."""
        return self.trail[-1][0][0]


class KeptBalances(PartedBalances, name="Kept", parts=1):
    """In one part, and not in memory."""


def test_an_embedded_replica_tells_a_failing_answer_and_serves_a_session(running: BlockingRuntime) -> None:
    with running.session() as me, Replica(running.store, Fragile, running._runtime._active.catalogue) as replica:
        receipt = me.execute(Account, "embedded", Open(owner="x"))
        assert "embedded" in {account for _, _, account in me.ask_replica(replica, LastSeen())}
        assert me.positions[receipt.partition] >= receipt.position
        assert replica.ask(LastSeen(), after=me) == replica.ask(LastSeen(), after=[receipt])
        with pytest.raises(HandlerFailed, match=r"Fragile @answer failed on Failing: KeyError: -1"):
            replica.ask(Failing())


def test_only_a_projection_in_memory_can_be_embedded(running: BlockingRuntime) -> None:
    with pytest.raises(CallerError, match="Parted cannot be embedded: it is kept in 2 parts"):
        running.replica(PartedBalances)
    with pytest.raises(CallerError, match="Kept cannot be embedded: it is kept in Lmdb"):
        running.replica(KeptBalances)


def test_an_embedded_replica_whose_thread_has_ended_says_so(
    running: BlockingRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(replica: Replica[Any]) -> bool:
        raise MemoryError("no memory")

    with running.replica(Trail) as replica:
        monkeypatch.setattr(Replica, "_read_new", breaks)
        heads = {0: running.heads()[0] + 1}
        for asking in (lambda: replica.wait_for(heads), lambda: replica.ask(LastSeen())):
            with pytest.raises(HandlerFailed, match="the replica of Trail failed on the logs it follows: MemoryError"):
                asking()


# --- a projection that has stopped --------------------------------------------------------------------------------


def test_nobody_waits_for_a_projection_that_has_stopped(running: BlockingRuntime, tmp_path: Path) -> None:
    running.caught_up(Stopping)
    with running.replica(Stopping) as replica:
        with pytest.raises(NotYetVisible) as told:
            running.execute(Account, "poison", Open(owner=str(tmp_path / "gone")), until=Stopping)
        receipt = told.value.receipt
        assert receipt is not None
        assert told.value.reached == receipt.position - 1
        assert str(told.value).startswith(
            "the command succeeded and its events are stored, but Stopping cannot show them: Stopping.opened failed on"
        )
        stopped = r"Stopping\.opened failed on"
        with pytest.raises(HandlerFailed, match=stopped):
            running.caught_up()
        with pytest.raises(HandlerFailed, match=stopped):
            running.caught_up(Stopping)
        with pytest.raises(HandlerFailed, match=stopped):
            replica.wait_for(receipt)
    with pytest.raises(HandlerFailed, match=r"Stopping\.opened failed on"):
        running.replica(Stopping)
    running.caught_up(Balances, PartedBalances, Trail)
