"""A program that connects to a store by its path: every verb of a runtime, without Ray."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from rayfold import (
    Application,
    BlockingRuntime,
    CallerError,
    Conflict,
    Connection,
    Envelope,
    InvalidMessage,
    Receipt,
    Rejected,
    StoreMissing,
    Unavailable,
    connect,
)
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.relay import relay
from rayfold.runtime.store.store import create_or_open_store
from tests.bank import Account, BalanceOf, Balances, Deposit, Open, Store, Turnover, Vault, Withdraw

pytestmark = pytest.mark.slow

OWN = Application("mine", aggregates=[Account, Vault], projections=[Balances, Turnover])


@pytest.fixture(scope="module")
def owner(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingRuntime]:
    """A runtime that this process runs on a thread of its own, as another program would."""
    with BlockingRuntime(tmp_path_factory.mktemp("others") / "bank-data", OWN, timeout_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def store(owner: BlockingRuntime) -> Path:
    return owner.store.path


async def test_commands_and_queries_of_another_program(store: Path) -> None:
    async with connect(store) as bank, connect(store, OWN) as other:
        opened = await bank.execute(Account, "alice", Open(owner="a"), until=Balances)
        assert opened.version == 1
        receipt = await other.execute(Account, "alice", Deposit(amount=5), events=True)
        assert (receipt.version, len(receipt.events)) == (2, 1)
        assert await bank.ask(Balances, BalanceOf(account="alice"), after=receipt) == 5
        with pytest.raises(Rejected):
            await bank.execute(Account, "alice", Withdraw(amount=500))
        with pytest.raises(Conflict):
            await bank.execute(Account, "alice", Deposit(amount=1), expected_version=1)
        sent = [Envelope(Account, "alice", Deposit(amount=1)) for _ in range(300)]
        outcomes = [outcome async for _, outcome in bank.execute_all(sent, in_flight=100)]
        assert [outcome.version for outcome in outcomes if isinstance(outcome, Receipt)] == list(range(3, 303))
        await other.caught_up()
        asked = [BalanceOf(account="alice") for _ in range(300)]
        assert {answer async for _, answer in other.ask_all(Balances, asked)} == {305}


async def test_a_session_continues_in_another_program(store: Path) -> None:
    async with connect(store, OWN) as one, connect(store, OWN) as two:
        mine = one.session()
        await mine.execute(Account, "bob", Open(owner="b"))
        await mine.execute(Account, "bob", Deposit(amount=7))
        continued = two.session(mine.token())
        assert continued.positions == mine.positions
        assert await continued.ask(Balances, BalanceOf(account="bob")) == 7


async def test_an_aggregate_in_an_actor_of_its_own_is_reached(store: Path) -> None:
    async with connect(store, OWN) as bank:
        receipts = [await bank.execute(Vault, "v", Store(thing="0"))]
        while len(receipts) < 20 or not (await bank.status()).own_actors:
            receipts.append(await bank.execute(Vault, "v", Store(thing=str(len(receipts)))))
        receipts.append(await bank.execute(Vault, "v", Store(thing="last")))
        assert [receipt.version for receipt in receipts] == list(range(1, len(receipts) + 1))


async def test_what_reads_the_logs_works_in_this_program(store: Path) -> None:
    async with connect(store, OWN) as bank:
        await bank.execute(Account, "carol", Open(owner="c"))
        second = await bank.execute(Account, "carol", Deposit(amount=3))
        third = await bank.execute(Account, "carol", Deposit(amount=4))
        assert [place.version for _, place in await bank.history(Account, "carol")] == [1, 2, 3]
        assert (await bank.state_at(Account, "carol", version=2)).balance == 3
        assert await bank.as_of(Balances, second, BalanceOf(account="carol")) == 3
        with await bank.replica(Balances) as replica:
            replica.wait_for(third, 60)
            assert replica.ask(BalanceOf(account="carol")) == 7
        events = bank.subscribe(streams=["Account/carol"])
        assert [(await anext(events))[1].version for _ in range(3)] == [1, 2, 3]
        assert (await bank.verify()).ok
        assert (await bank.anchor()) is not None


async def test_the_system_is_observed_and_changed(store: Path) -> None:
    async with connect(store, OWN) as bank:
        assert (await bank.health()).ok
        assert set(await bank.heads()) == {0, 1}
        await bank.scale(Balances, replicas=2)
        assert len([one for one in (await bank.status()).projectors if one.projection == "Balances"]) == 2
        receipt = await bank.execute(Account, "dora", Open(owner="d"), until=Balances)
        answers = await asyncio.gather(
            *[bank.ask(Balances, BalanceOf(account="dora"), after=receipt) for _ in range(8)]
        )
        assert answers == [0] * 8
        await bank.scale(Balances, replicas=1)
        assert (await bank.rebuild(Turnover)).serving
        assert await bank.retry_quarantined(Balances) == ()
        with pytest.raises(CallerError, match="this system runs on one machine"):
            await bank.rebalance()


async def test_a_program_that_is_busy_with_something_else_delays_no_other(
    owner: BlockingRuntime, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owner._loop is not None
    monkeypatch.setattr(relay, "_BUSY_S", 0.2)
    busy, free = Event(), Event()
    owner._loop.call_soon_threadsafe(busy.set)
    owner._loop.call_soon_threadsafe(free.wait, 60)
    busy.wait(60)
    try:
        async with connect(store, OWN) as bank:
            receipt = await bank.execute(Account, "fred", Open(owner="f"))
            assert await bank.ask(Balances, BalanceOf(account="fred"), after=receipt) == 0
            assert (await bank.health()).ok
            assert (await bank.heads())[receipt.partition] >= receipt.position
            await bank.caught_up()
            with pytest.raises(Unavailable, match="has been busy with something else for 0.2 s; status was not begun"):
                await bank.status()
    finally:
        free.set()


async def test_a_class_that_the_system_does_not_run_is_refused_by_name(store: Path) -> None:
    class Turnover(Balances, name="Elsewhere"):
        """Not there."""

    async with connect(store, OWN) as bank:
        with pytest.raises(CallerError, match="Elsewhere"):
            await bank.ask(Turnover, BalanceOf(account="a"))


WITHOUT_RAY = """
import sys
from rayfold import connect_blocking
from tests.bank import Account, Balances, BalanceOf, Deposit, Open
with connect_blocking(sys.argv[1]) as bank:
    receipt = bank.execute(Account, "eve", Open(owner="e"))
    print(bank.ask(Balances, BalanceOf(account="eve"), after=receipt))
print(sorted({"ray", "lmdb"} & set(sys.modules)))
"""


def test_a_program_that_executes_and_asks_imports_neither_ray_nor_lmdb(store: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_RAY, str(store)], capture_output=True, text=True, timeout=120)
    assert ran.stdout.split("\n")[:2] == ["0", "[]"], ran.stderr


async def test_where_nothing_runs_the_error_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        await connect(tmp_path / "nowhere").start()
    create_or_open_store(tmp_path / "quiet", 1)
    with pytest.raises(Unavailable, match=r"no program runs it now; start one with `rayfold run`, or with Runtime"):
        await connect(tmp_path / "quiet").start()


def test_a_name_is_a_store_if_a_folder_of_that_name_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_or_open_store(tmp_path / "shop", 1)
    monkeypatch.chdir(tmp_path)

    def path_of(made: Connection) -> Path | None:
        return made._path

    assert path_of(connect("shop")) == tmp_path / "shop"
    assert path_of(connect("shop", address="one:6379")) is None
    assert path_of(connect("elsewhere")) is None
    assert path_of(connect("./elsewhere")) == tmp_path / "elsewhere"
    assert path_of(connect(Path("elsewhere"))) == tmp_path / "elsewhere"
    with pytest.raises(InvalidMessage, match="classes is 'shop'"):
        connect("shop", "shop")  # type: ignore[arg-type]  # what is tested
