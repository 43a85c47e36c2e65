"""Whether two programs have the same code of an application's classes."""

from __future__ import annotations

from rayfold import Aggregate, Command, Projection, answer, decide, evolve
from rayfold.actors.packaging.class_fingerprints import class_fingerprints, differing
from rayfold.runtime.encoding.catalogue import Catalogue
from tests.bank import Account, Balances, Turnover, Vault
from tests.support.tally import Add, Added, Tally, Total, Totals


def of(tally: type[Aggregate] = Tally, totals: type[Projection] = Totals) -> dict[str, str]:
    return class_fingerprints(Catalogue([tally], [totals]))


def test_the_same_code_has_the_same_fingerprints_in_each_copy() -> None:
    classes = Catalogue([Account, Vault], [Balances, Turnover])
    own = class_fingerprints(classes)
    assert own == class_fingerprints(Catalogue([Vault, Account], [Turnover, Balances]))
    assert own["fields Deposit of Account"] == "amount"
    assert differing(own, own) == []


def test_code_that_decides_answers_or_changes_a_state_differs_and_is_named() -> None:
    class Deciding(Tally, name="Tally"):
        @decide
        def add(self, command: Add) -> Added:
            return Added(amount=2 * command.amount)

    class Evolving(Tally, name="Tally"):
        @evolve
        def added(self, event: Added) -> None:
            self.total -= event.amount

    class Answering(Totals, name="Totals"):
        @answer
        def of_all(self, query: Total) -> int:
            return -self.total

    assert differing(of(Deciding), of()) == ["the code of Tally"]
    assert differing(of(Evolving), of()) == ["the code of Tally"]
    assert differing(of(Evolving, Answering), of()) == ["the code of Tally, Totals"]


def test_fields_that_differ_are_named_and_are_all_that_is_compared_between_versions_of_python() -> None:
    class More(Command, name="Add"):
        amount: int
        note: str = ""

    class Noting(Aggregate, name="Tally"):
        total: int = 0

        @decide
        def add(self, command: More) -> Added:
            return Added(amount=command.amount)

        @evolve
        def added(self, event: Added) -> None:
            self.total += event.amount

    fields = "Add of Tally has the fields amount, note here, and amount there"
    assert differing(of(Noting), of()) == ["the code of Tally", fields]
    assert differing(of(Noting), of() | {"python": "cpython-299"}) == [fields]


def test_what_the_others_lack_is_named_and_what_they_have_besides_is_not() -> None:
    assert differing(of(), {}) == []
    assert differing(of(), of() | class_fingerprints(Catalogue([Account], []))) == []
    lacking = ["there is no Tally, Totals there"]
    assert differing(of(), class_fingerprints(Catalogue([Account], []))) == lacking


def test_a_class_that_cannot_be_described_is_left_out() -> None:
    class Strange:
        amount = 1

        def __getattribute__(self, name: str) -> object:
            raise ZeroDivisionError

    strange = Strange()

    class Odd(Tally, name="Tally"):
        @decide
        def add(self, command: Add) -> Added:
            return Added(amount=strange.amount)

    assert "code Totals" in of(Odd)
