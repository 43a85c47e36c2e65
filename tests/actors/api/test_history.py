"""Time travel in a running system: histories, past states, and read models as of a place, folded in Ray tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold import (
    BlockingRuntime,
    CallerError,
    HandlerFailed,
    InvalidMessage,
    NotInHistory,
    Receipt,
    Unavailable,
    UnknownName,
)
from rayfold.actors.cli.main import app
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.read_store import Lmdb
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.write.write_loop import WriteLoop
from tests.bank import Account
from tests.runtime.encoding.test_refusals import CATALOGUE, Reserve, sent
from tests.support.orders import Add, Added, DiscountGiven, GiveDiscount, Order, TotalOf, Totals

pytestmark = pytest.mark.slow

ORDERS = [f"order {number}" for number in range(8)]


class AllPieces(Query[int]):
    """How many pieces there are in all orders, or in one."""

    order: str = ""


class Pieces(Projection, parts=2):
    """This one does not run: it is asked about the past only. In two parts, by order."""

    pieces: dict[str, int] = {}

    @project
    def added(self, event: Added, recorded: Recorded) -> None:
        """More of them."""
        self.pieces[recorded.aggregate_id] = self.pieces.get(recorded.aggregate_id, 0) + event.pieces

    @answer(merge=sum)
    def all_pieces(self, query: AllPieces) -> int:
        """Of this part."""
        return sum(self.pieces.values())

    @answer(key=lambda query: query.order)
    def total(self, query: TotalOf) -> int:
        """Of one order, in the part that has it."""
        return self.pieces.get(query.order, 0)


class PiecesInRows(Projection, store=Lmdb()):
    """The same, not in memory."""

    @project
    def added(self, event: Added, recorded: Recorded) -> None:
        """More of them."""
        self.rows[recorded.aggregate_id] = self.rows.get(recorded.aggregate_id, 0) + event.pieces

    @answer
    def total(self, query: TotalOf) -> int:
        """Of one order."""
        pieces: int = self.rows.get(query.order, 0)
        return pieces


class Failing(Projection):
    """Cannot take a discount in."""

    @project
    def discount_given(self, event: DiscountGiven) -> None:
        """Never."""
        raise LookupError("no discounts")

    @answer
    def total(self, query: TotalOf) -> int:
        """Nothing."""
        return 0


Shop = tuple[BlockingRuntime, list[Receipt]]


@pytest.fixture(scope="module")
def shop(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Every order: two additions of three pieces at ten, then a discount of ten percent; with the first's receipts."""
    path = tmp_path_factory.mktemp("history") / "shop"
    with BlockingRuntime(path, aggregates=[Order], projections=[Totals], partitions=2) as running:
        receipts = [
            running.execute(Order, order, command)
            for order in ORDERS
            for command in (Add(pieces=3, price=10), Add(pieces=3, price=10), GiveDiscount(percent=10))
        ]
        yield running, receipts[:3]


def test_the_state_of_an_order_was_30_then_60_then_54(shop: Shop) -> None:
    running, _ = shop
    assert [running.state_at(Order, "order 0", version=version).total for version in (1, 2, 3)] == [30, 60, 54]
    assert running.state_at(Order, "order 0").total == 54
    with pytest.raises(NotInHistory, match=r"^Order/order 0 has no version 4; it is at 3$"):
        running.state_at(Order, "order 0", version=4)


def test_a_history_tells_each_event_with_its_place_and_its_times_give_the_states_back(shop: Shop) -> None:
    running, receipts = shop
    told = running.history(Order, "order 0")
    assert [event for event, _ in told] == [
        Added(pieces=3, price=10),
        Added(pieces=3, price=10),
        DiscountGiven(percent=10),
    ]
    assert [(place.partition, place.position, place.version) for _, place in told] == [
        (receipt.partition, receipt.position, receipt.version) for receipt in receipts
    ]
    states = [running.state_at(Order, "order 0", at=place.recorded_at).total for _, place in told]
    assert states == [30, 60, 54]
    assert [event for event, _ in running.history(Order, "order 0", from_version=3)] == [DiscountGiven(percent=10)]


def test_the_past_of_what_is_unknown_is_an_error_that_says_so(shop: Shop) -> None:
    running, _ = shop
    with pytest.raises(NotInHistory, match=r"^Order/nothing has no version 1; it has no events$"):
        running.history(Order, "nothing")
    with pytest.raises(UnknownName, match=r"no aggregate is named 'Account'; known: Order"):
        running.state_at(Account, "a")
    with pytest.raises(InvalidMessage, match=r"at: .* has no time zone"):
        running.state_at(Order, "order 0", at=datetime(2026, 1, 1))


def test_a_projection_as_of_each_position_and_receipt_is_the_fold_up_to_there(shop: Shop) -> None:
    running, receipts = shop
    query = TotalOf(order="order 0")
    totals = [running.as_of(Totals, {receipt.partition: receipt.position}, query) for receipt in receipts]
    assert totals == [30, 60, 54]
    assert [running.as_of(Totals, receipt, query) for receipt in receipts] == [30, 60, 54]
    assert running.as_of(Totals, {}, query) == 0
    assert running.ask(Totals, query, after=running.heads()) == 54, "what is served now was not disturbed"


def test_a_projection_as_of_a_time_has_what_was_recorded_by_then_in_every_partition(shop: Shop) -> None:
    running, receipts = shop
    times = [place.recorded_at for _, place in running.history(Order, "order 0")]
    assert [running.as_of(Totals, at, TotalOf(order="order 0")) for at in times] == [30, 60, 54]
    assert running.as_of(Totals, datetime.now(UTC), TotalOf(order=ORDERS[-1])) == 54
    assert running.as_of(Totals, receipts[2], TotalOf(order=ORDERS[-1])) == 0, "it came later, wherever it is"
    assert running.as_of(Totals, datetime(2000, 1, 1, tzinfo=UTC), TotalOf(order="order 0")) == 0


def test_a_projection_that_nobody_runs_is_folded_part_by_part_and_merged(shop: Shop) -> None:
    running, _ = shop
    now, told = running.heads(), list[tuple[int, int]]()
    pieces = running.as_of(Pieces, now, AllPieces(), progress=lambda done, total: told.append((done, total)))
    assert pieces == 6 * len(ORDERS)
    assert told[-1] == (2 * sum(now.values()), 2 * sum(now.values())), "both parts read all of the log"
    assert sorted(told) == told
    assert [running.as_of(Pieces, now, TotalOf(order=order)) for order in ORDERS[:2]] == [6, 6]


def test_a_read_model_on_disk_is_folded_beside_the_store_and_leaves_nothing_behind(shop: Shop) -> None:
    running, receipts = shop
    before = {path.name for path in running.store.path.rglob("*")}
    assert [running.as_of(PiecesInRows, receipt, TotalOf(order="order 0")) for receipt in receipts] == [3, 6, 6]
    assert {path.name for path in running.store.path.rglob("*")} == before


def test_a_look_back_that_cannot_be_is_refused_with_the_reason(shop: Shop) -> None:
    running, receipts = shop
    query = TotalOf(order="order 0")
    with pytest.raises(NotInHistory, match=r"^partition 0 has no position 1000; it is at \d+$"):
        running.as_of(Totals, {0: 1000}, query)
    with pytest.raises(InvalidMessage, match=r"place: 7: 1 is not a position in this store; its partitions are 0 to 1"):
        running.as_of(Totals, {7: 1}, query)
    with pytest.raises(NotInHistory, match=r"has no position 999; it is at"):
        running.as_of(Totals, receipts[0]._replace(position=999), query)
    with pytest.raises(UnknownName, match=r"no query of Totals is named 'AllPieces'; known: TotalOf"):
        running.as_of(Totals, {}, AllPieces())
    with pytest.raises(HandlerFailed, match=r"LookupError: no discounts"):
        running.as_of(Failing, running.heads(), query)
    with pytest.raises(CallerError, match=r"^timeout_s is 0; give a positive number of seconds$"):
        running.as_of(Totals, {}, query, timeout_s=0)
    with pytest.raises(Unavailable, match=r"Totals: not folded within 1e-06 s; set timeout_s= for a long log"):
        running.as_of(Totals, running.heads(), query, timeout_s=1e-6)


def test_a_history_is_printed_as_it_is_stored_while_the_store_is_in_use(shop: Shop, tmp_path: Path) -> None:
    running, receipts = shop
    shown = CliRunner().invoke(app, ["history", str(running.store.path), "Order/order 0", "--from", "2"])
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(line["version"], line["event"], line["payload"]) for line in lines] == [
        (2, "Added", {"pieces": 3, "price": 10}),
        (3, "DiscountGiven", {"percent": 10}),
    ]
    assert [line["command_id"] for line in lines] == [str(receipt.command_id) for receipt in receipts[1:]]
    assert [(line["partition"], line["position"]) for line in lines] == [
        (receipt.partition, receipt.position) for receipt in receipts[1:]
    ]
    for wrong, told in (
        ("Order/x", "Order/x has no version 1; it has no events"),
        ("Ordre/order 0", "no aggregate of this store is named 'Ordre'; known: Order"),
        ("Order", "has no slash"),
    ):
        failed = CliRunner().invoke(app, ["history", str(running.store.path), wrong])
        assert told in str(failed.exception)
    failed = CliRunner().invoke(app, ["history", "nowhere", "Order/x", "--address", "elsewhere"])
    assert str(failed.exception).startswith("nowhere: there is no store here, and an application of that name cannot")


def test_the_refusals_that_used_up_an_id_are_printed_of_every_log(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "stock", 3)
    arguments = ["history", str(store.path), "rayfold.Refusals/all"]
    assert "it has no events" in str(CliRunner().invoke(app, arguments).exception)
    for number in (1, 2):
        log = store.open_log(number)
        loop = WriteLoop(number, log, CATALOGUE)
        loop.activate()
        loop.execute([sent(Reserve(pieces=5), number)])
        log.close()
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(line["partition"], line["event"], line["version"]) for line in lines] == [
        (1, "rayfold.Refused", 1),
        (2, "rayfold.Refused", 1),
    ]
