"""Projectors: replicas and parts that come and go, are killed, and fail; and what readers see of it, which is nothing.

One runtime for all tests of this file. It was filled and stopped before: each read model starts from its checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

import pytest
from msgpack import unpackb

from rayfold import (
    BlockingRuntime,
    DefinitionError,
    Envelope,
    HandlerFailed,
    InvalidMessage,
    RebuildCancelled,
    Receipt,
    UnknownName,
)
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.observe.status import PartitionStatus, ProjectorStatus
from tests.bank import Account, BalanceOf, Balances, Deposit, EventsSeen, Open, Vault
from tests.support.log_walk import stored_events
from tests.support.read_models import PartedBalances, Poisoned, Stopping, TotalBalance

pytestmark = pytest.mark.slow

LOOKING = threading.Event()
"""Waited for between two polls, which take the core from what they wait for."""

ACCOUNTS, BEFORE = 20, 2000
CHECKPOINTED = ACCOUNTS + BEFORE
"""Events in the checkpoint that the stop has left: an account is opened, and then paid into."""


def deposits(count: int) -> Iterator[Envelope]:
    """One cent each, to all accounts in turn."""
    return (Envelope(Account, f"a{number % ACCOUNTS}", Deposit(amount=1)) for number in range(count))


def execute(bank: BlockingRuntime, envelopes: Iterator[Envelope]) -> list[Receipt]:
    receipts = []
    for _, outcome in bank.execute_all(envelopes, in_flight=100):
        assert isinstance(outcome, Receipt), outcome
        receipts.append(outcome)
    return receipts


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingRuntime]:
    path = tmp_path_factory.mktemp("projectors") / "bank-data"

    def make() -> BlockingRuntime:
        projections = [Balances, PartedBalances]
        return BlockingRuntime(path, aggregates=[Account], projections=projections, timeout_s=30)

    with make() as bank:
        execute(bank, (Envelope(Account, f"a{number}", Open(owner="x")) for number in range(ACCOUNTS)))
        execute(bank, deposits(BEFORE))
        bank.ask(PartedBalances, TotalBalance(), after=bank.heads())
    with make() as bank:
        yield bank


def fold(bank: BlockingRuntime) -> Counter[str]:
    """The balances, by the log alone."""
    balances = Counter[str]()
    for events in stored_events(bank.store.path).values():
        for stored in events:
            if stored.name == "Deposited":
                balances[stored.stream.id] += unpackb(stored.payload)["amount"]
    return balances


@contextmanager
def load(bank: BlockingRuntime) -> Iterator[Counter[str]]:
    """Two threads that write and read until the end: every command must succeed and every query be answered."""
    counts, over = Counter[str](), threading.Event()

    def write() -> None:
        for envelope in takewhile(lambda _: not over.is_set(), deposits(100_000)):
            bank.execute(envelope.aggregate, envelope.id, envelope.command)
            counts["written"] += 1

    def read() -> None:
        for number in takewhile(lambda _: not over.is_set(), range(100_000)):
            queries = [BalanceOf(account=f"a{number % ACCOUNTS}")] * 4
            for _, answer in bank.ask_all(Balances, queries):
                assert isinstance(answer, int), answer
            counts["asked"] += len(queries)

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(write), threads.submit(read)]
        try:
            yield counts
            while min(counts["written"], counts["asked"]) <= 10 and not any(one.done() for one in running):
                over.wait(0.01)  # a query to a projector that was killed has waited for most of it
        finally:
            over.set()
    assert [future.result() for future in running] == [None, None]


def projectors_of(bank: BlockingRuntime, projection: str) -> list[ProjectorStatus]:
    return [projector for projector in bank.status().projectors if projector.projection == projection]


def kill(seen: PartitionStatus | ProjectorStatus) -> None:
    assert seen.alive, "process 0 would be all of ours"
    os.kill(seen.pid, signal.SIGKILL)


def check_equal_to_the_fold(bank: BlockingRuntime, *, rounds: int = 1) -> None:
    """What every replica answers is the fold of the log."""
    heads, expected = bank.heads(), fold(bank)
    queries = [BalanceOf(account=f"a{number}") for number in range(ACCOUNTS)] * rounds
    for projection in (Balances, PartedBalances):
        answers = bank.ask_all(projection, queries, after=heads)
        assert [answer for _, answer in answers] == [expected[query.account] for query in queries]


def check_equal_to_the_fold_so_far(bank: BlockingRuntime) -> None:
    """While commands are sent: what was stored before is in every answer, and nothing that is not stored afterwards."""
    before, heads = fold(bank), bank.heads()
    queries = [BalanceOf(account=f"a{number}") for number in range(ACCOUNTS)]
    answers = [answer for _, answer in bank.ask_all(Balances, queries, after=heads)]
    after = fold(bank)
    for query, answer in zip(queries, answers, strict=True):
        assert isinstance(answer, int), answer
        assert before[query.account] <= answer <= after[query.account]


def test_a_projector_starts_from_its_checkpoint_and_the_rest_of_the_log(running: BlockingRuntime) -> None:
    check_equal_to_the_fold(running)
    assert [projector.events_applied for projector in projectors_of(running, "Balances")] == [0]


def test_a_projector_killed_under_load_comes_back_from_its_checkpoint_and_equals_the_fold(
    running: BlockingRuntime,
) -> None:
    killed = [*projectors_of(running, "Balances"), projectors_of(running, "Parted")[1]]
    with load(running) as counts:
        for projector in killed:
            kill(projector)
        check_equal_to_the_fold_so_far(running)
    check_equal_to_the_fold(running)
    [after] = projectors_of(running, "Balances")
    assert after.pid != killed[0].pid
    assert 0 < after.events_applied <= counts["written"]


def test_replicas_are_added_and_ended_under_load_and_every_query_is_answered(running: BlockingRuntime) -> None:
    with load(running) as counts:
        for size in (3, 2, 1):
            asked = counts["asked"]
            running.scale(Balances, replicas=size)
            replicas = projectors_of(running, "Balances")
            since_the_checkpoint = sum(running.heads().values()) - CHECKPOINTED
            assert [projector.replica for projector in replicas] == list(range(size))
            for projector in replicas:
                assert projector.events_applied <= since_the_checkpoint, "the checkpoint was lent to them"
            check_equal_to_the_fold_so_far(running)
            assert counts["asked"] > asked
    check_equal_to_the_fold(running)
    folders = [folder.name for folder in (running.store.path / "projections" / "Balances-v1").iterdir()]
    assert sorted(folders) == ["0-0", "serves"]


def test_a_partition_killed_after_replicas_were_added_broadcasts_to_them_again(running: BlockingRuntime) -> None:
    running.scale(Balances, replicas=2)
    for partition in running.status().partitions:
        kill(partition)
    receipts = execute(running, deposits(50))
    last = {receipt.partition: receipt.position for receipt in receipts}
    while any(projector.positions != last for projector in projectors_of(running, "Balances")):
        LOOKING.wait(0.05)  # the status asks every replica: also the one that no query goes to has to learn of it
    check_equal_to_the_fold(running, rounds=2)
    running.scale(Balances, replicas=1)


def test_partitions_broadcast_over_the_sockets_of_projectors_and_again_after_either_was_killed(
    running: BlockingRuntime,
) -> None:
    connections: list[int] = []
    for killed in (None, running.status().partitions[0], projectors_of(running, "Balances")[0]):
        if killed is not None:
            kill(killed)
        for _ in range(1_000):
            execute(running, deposits(ACCOUNTS))  # a socket is looked for when the projector has answered
            check_equal_to_the_fold(running)
            status = running.status()
            connections = [connections_to(projector.pid) for projector in status.projectors]
            if min(connections) > len(status.partitions):  # theirs, and one of this program
                break
        else:
            raise AssertionError(connections)


def connections_to(pid: int) -> int:
    """Connections that a process has accepted at its own socket."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(descriptor))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    connected = [line for line in lines if len(line) == 8 and line[5] == "03" and f"/rayfold-{os.getuid()}/" in line[7]]
    return sum(f"socket:[{line[6]}]" in inodes for line in connected)


def test_each_part_of_a_projection_holds_its_accounts_and_they_are_asked_together(running: BlockingRuntime) -> None:
    assert [(one.part, one.replica) for one in projectors_of(running, "Parted")] == [(0, 0), (1, 0)]
    running.scale(PartedBalances, replicas=2)
    assert len(projectors_of(running, "Parted")) == 4
    check_equal_to_the_fold(running, rounds=4)
    total = running.ask(PartedBalances, TotalBalance(), after=running.heads())
    assert total == sum(fold(running).values())
    running.scale(PartedBalances, replicas=1)


def test_what_one_aggregate_has_contributed_is_rebuilt_alone(running: BlockingRuntime) -> None:
    before = fold(running)
    running.rebuild_stream(PartedBalances, Account, "a3")
    running.rebuild_stream(PartedBalances, Account, "nobody")
    assert running.ask(PartedBalances, EventsSeen()) == 1
    check_equal_to_the_fold(running)
    assert fold(running) == before
    with pytest.raises(UnknownName, match="no aggregate is named 'Vault'"):
        running.rebuild_stream(PartedBalances, Vault, "a3")
    with pytest.raises(DefinitionError, match="Balances: it has no @forget method; add one"):
        running.rebuild_stream(Balances, Account, "a3")


def test_a_projection_in_parts_is_rebuilt_without_await_and_a_rebuild_of_it_cancelled(running: BlockingRuntime) -> None:
    cancelled = running.rebuild(PartedBalances)
    cancelled.cancel()
    with pytest.raises(RebuildCancelled):
        cancelled.wait()
    with load(running):
        rebuild = running.rebuild(PartedBalances)
        *_, last = rebuild
        assert last == rebuild.wait() == rebuild.progress()
        assert last.serving
    check_equal_to_the_fold(running)
    assert running.ask(PartedBalances, EventsSeen()) == 0, "this one was built from the log"
    assert [(one.part, one.replica) for one in projectors_of(running, "Parted")] == [(0, 0), (1, 0)]


def test_a_number_of_replicas_that_cannot_be_is_refused(running: BlockingRuntime) -> None:
    with pytest.raises(InvalidMessage, match="replicas: 0 replicas of Balances; choose 1 to 64"):
        running.scale(Balances, replicas=0)
    with pytest.raises(UnknownName, match="no projection is named 'Poisoned'; known: Balances, Parted"):
        running.scale(Poisoned, replicas=2)


def test_a_poisoned_projection_sets_the_event_aside_or_stops_and_the_others_go_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    projections = [Balances, Poisoned, Stopping]
    with BlockingRuntime(tmp_path / "data", aggregates=[Account], projections=projections) as bank:
        for account, owner in (("a", "x"), ("b", str(mended)), ("c", "x")):
            bank.execute(Account, account, Open(owner=owner))
        bank.execute(Account, "b", Deposit(amount=5))
        assert bank.ask(Balances, BalanceOf(account="b"), after=bank.heads()) == 5
        assert bank.ask(Poisoned, EventsSeen(), after=bank.heads()) == 2
        with pytest.raises(HandlerFailed, match=r"FileNotFoundError: .*mended"):
            bank.ask(Stopping, EventsSeen(), after=bank.heads())
        [aside] = projectors_of(bank, "Poisoned")[0].quarantined
        assert (aside.stream, aside.version, aside.event) == ("Account/b", 1, "Opened")
        assert bank.retry_quarantined(Poisoned) == (aside,)
        assert bank.ask(Poisoned, EventsSeen()) == 2
        mended.touch()
        assert bank.retry_quarantined(Poisoned) == ()
        assert bank.ask(Poisoned, EventsSeen()) == 3
        assert projectors_of(bank, "Poisoned")[0].quarantined == ()
