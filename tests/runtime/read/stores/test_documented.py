"""The examples of `docs/read-models.md`, run as they stand there, and specifications of projections in every store."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rayfold import Lmdb, Projection, Query, Recorded, answer, given, on, project
from tests.bank import Deposited, Opened
from tests.runtime.read.stores.tallies import DOCUMENTED, TALLIES, Broken, Seen, SumOf

PRELUDE = """
from rayfold import *
from tests.bank import Deposited, Opened

class OwnerOf(Query[str]):
    account: str

class Largest(Query[list[tuple[str, int]]]):
    pass
"""


def documented(*marks: str) -> dict[str, Any]:
    """The names that the examples with these words define."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(PRELUDE, namespace)
    for mark in marks:
        (block,) = [block for block in blocks if mark in block]
        exec(block, namespace)
    return namespace


def test_the_example_in_lmdb_does_what_the_page_says() -> None:
    names = documented("class Owners(")
    history = [on("alice", Opened(owner="Ada")), on("alice", Deposited(amount=5)), on("bob", Opened(owner="Bo"))]
    given(names["Owners"], *history).ask(names["OwnerOf"](account="alice")).answers("Ada")


def test_the_example_in_duckdb_and_its_specification_do_what_the_page_says() -> None:
    documented("class Deposits(", "given(Deposits")


@pytest.mark.parametrize("tally", TALLIES, ids=lambda tally: tally.__name__)
def test_a_projection_in_any_store_is_specified_by_given_and_answers(tally: type[Projection]) -> None:
    case = given(tally, on("alice", Deposited(amount=5)), on("bob", Deposited(amount=7)))
    case.given(on("alice", Deposited(amount=2))).ask(SumOf(account="alice")).answers(7).ask(Seen()).answers([1, 2, 3])
    with pytest.raises(AssertionError, match=f"{tally.__name__}, asked SumOf"):
        case.ask(SumOf(account="bob")).answers(8)


@pytest.mark.parametrize("tally", TALLIES, ids=lambda tally: tally.__name__)
def test_what_a_handler_raises_comes_out_of_a_specification(tally: type[Projection]) -> None:
    Broken.accounts = {"bad"}
    try:
        with pytest.raises(ValueError, match="cannot count that"):
            given(tally, on("alice", Deposited(amount=5)), on("bad", Deposited(amount=7)))
    finally:
        Broken.accounts = set()


class Writing(Projection, store=Lmdb()):
    """Its answer writes."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.rows[recorded.aggregate_id] = event.amount

    @answer
    def sum_of(self, query: SumOf) -> int:
        self.rows["alice"] = 0
        return 0


def test_a_query_that_writes_is_caught_by_a_specification() -> None:
    with pytest.raises(Exception, match="a query changes nothing; only @project may"):
        given(Writing, on("alice", Deposited(amount=5))).ask(SumOf(account="alice"))


class Total(Query[int]):
    """Of all parts."""


class InParts(Projection, parts=3):
    """A sum over three parts."""

    total: int = 0

    @project
    def deposited(self, event: Deposited) -> None:
        self.total += event.amount

    @answer(merge=sum)
    def all(self, query: Total) -> int:
        return self.total


def test_a_projection_in_parts_is_specified_as_one() -> None:
    given(InParts, on("alice", Deposited(amount=5)), on("bob", Deposited(amount=7))).ask(Total()).answers(12)
