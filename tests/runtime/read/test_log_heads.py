"""Read models where a log is out of reach: they open with the others, and take it in when it is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rayfold import Projection, Recorded, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import Damaged, Unavailable
from rayfold.runtime.log.contract import Reader
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from tests.bank import Deposited
from tests.runtime.log.appends import ALICE, BOB, deposits


class Seen(Projection):
    """Every deposit: whose, how much, and whether it was there when the read model was opened."""

    deposits: list[tuple[str, int, bool]] = []

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        """One more."""
        self.deposits.append((recorded.aggregate_id, event.amount, recorded.replayed))


class Cut(MemoryLog):
    """A log on another node, which cannot be reached while it is `away`."""

    away = False

    def head(self) -> int:
        self._check()
        return super().head()

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        self._check()
        return super().read(after, limit, bytes_max)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("node node-1", "the node agent of bank does not answer there")


def put(log: MemoryLog, stream: Any, *amounts: int) -> None:
    log.append(log.activate(), [deposits(stream, amount) for amount in amounts])


@pytest.fixture
def logs() -> dict[int, Cut]:
    return {0: Cut(), 1: Cut()}


def opened(logs: Mapping[int, Reader], directory: Path | None = None) -> ReadModel:
    model = ReadModel(Seen, Catalogue([], [Seen]), logs, directory=directory)
    model.open()
    return model


def seen(model: ReadModel) -> list[tuple[str, int, bool]]:
    with model.reading() as projection:
        assert isinstance(projection, Seen)
        return list(projection.deposits)


def test_a_read_model_opens_without_the_log_that_is_out_of_reach(logs: dict[int, Cut]) -> None:
    put(logs[0], ALICE, 5)
    put(logs[1], BOB, 6)
    logs[1].away = True
    model = opened(logs)
    model.catch_up(0)
    with pytest.raises(Unavailable):
        model.catch_up(1)
    assert seen(model) == [("alice", 5, True)]
    assert model.failed is None
    assert model.positions == {0: 1, 1: 0}


def test_what_was_in_it_when_it_is_reached_again_is_replayed_and_what_comes_then_is_not(logs: dict[int, Cut]) -> None:
    put(logs[1], BOB, 6)
    logs[1].away = True
    model = opened(logs)
    put(logs[1], BOB, 7)
    logs[1].away = False
    model.catch_up(1)
    put(logs[1], BOB, 8)
    model.catch_up(1)
    assert seen(model) == [("bob", 6, True), ("bob", 7, True), ("bob", 8, False)]


def test_a_checkpoint_is_used_though_one_of_its_logs_cannot_be_looked_at(logs: dict[int, Cut], tmp_path: Path) -> None:
    put(logs[0], ALICE, 5)
    put(logs[1], BOB, 6)
    model = opened(logs, tmp_path)
    model.catch_up(0)
    model.catch_up(1)
    model.checkpoint()
    model.close()
    logs[1].away = True
    again = opened(logs, tmp_path)
    assert again.positions == {0: 1, 1: 1}
    logs[1].away = False
    put(logs[1], BOB, 7)
    again.catch_up(1)
    assert [amount for _, amount, _ in seen(again)] == [5, 6, 7]
    assert again.failed is None


def test_a_log_that_turns_out_to_be_another_one_stops_the_projection_and_is_read_anew_at_the_next_opening(
    logs: dict[int, Cut], tmp_path: Path
) -> None:
    put(logs[1], BOB, 6)
    model = opened(logs, tmp_path)
    model.catch_up(1)
    model.checkpoint()
    model.close()
    other = {0: logs[0], 1: Cut()}
    put(other[1], BOB, 9, 9)
    other[1].away = True
    again = opened(other, tmp_path)
    other[1].away = False
    again.catch_up(1)
    assert isinstance(again.failed, Damaged)
    again.close()
    fresh = opened(other, tmp_path)
    fresh.catch_up(1)
    assert [amount for _, amount, _ in seen(fresh)] == [9, 9]
