"""`rayfold check`, and a runtime that is started over a store that its classes do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rayfold import Application, BlockingRuntime, CodeMismatch, StoreMismatch
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.log.format import stream_id
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.stream import partition_of
from rayfold.runtime.write.write_loop import WriteLoop
from tests.support.driver import ROOT, start_driver

pytestmark = pytest.mark.slow

SHOP = """
from rayfold import *

class Put(Command):
    amount: int

class Deposited(Event):
    amount: int

class Account(Aggregate, placement=Shared()):
    balance: int = 0

    @decide
    def put(self, command: Put) -> Deposited:
        return Deposited(amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount

class Total(Query[int]):
    pass

class Totals(Projection):
    total: int = 0

    @project
    def deposited(self, event: Deposited) -> None:
        self.total += event.amount

    @answer
    def ask(self, query: Total) -> int:
        return self.total

shop = Application("shop", aggregates=[Account], projections=[Totals])
"""
EUROS = SHOP.replace("amount", "euros")
DOUBLED = SHOP.replace("+= event.amount", "+= event.amount * 2", 1)
OTHER = SHOP.replace("Deposited", "Arrived").replace("Account", "Parcel").replace("amount", "weight")


def loaded(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "shop_app"}
    exec(source, names)
    return names


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that the application has written, without Ray."""
    names, folder = loaded(SHOP), tmp_path / "shop-data"
    made, catalogue = create_or_open_store(folder, 2), names["shop"].catalogue
    for number in range(made.partitions):
        log = made.open_log(number)
        log.declare(catalogue.shapes())
        loop = WriteLoop(number, log, catalogue)
        loop.activate()
        ids = [f"a{one}" for one in range(20) if partition_of(stream_id("Account", f"a{one}"), 2) == number]
        loop.execute([pack(Envelope(names["Account"], one, names["Put"](amount=5)))[0] for one in ids])
        log.close()
    return folder


def check(store: Path, *arguments: str, **modules: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and findings."""
    for name, source in modules.items():
        file = store.parent / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
    found = store.parent / "found.json"
    run = subprocess.run(
        [sys.executable, "-m", "rayfold.actors.cli", "check", str(store), *arguments, "--json", str(found)],
        cwd=store.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout + run.stderr, json.loads(found.read_text()) if found.exists() else {}


def test_code_that_fits_is_said_to_and_what_will_be_built_with_it(store: Path) -> None:
    code, output, found = check(store, "shop_app:shop", shop_app=SHOP)
    assert code == 0, output
    assert "the code fits the store" in output
    assert "read model Totals version 1: it is built from 20 events, about 0.1 s on this machine: it is new" in output
    assert (found["ok"], found["streams_folded"], found["misfits"]) == (True, 20, [])
    assert found["events"] == [{"name": "Deposited", "schema_version": 1, "tried": 20, "unreadable": 0, "why": ""}]


def test_code_that_does_not_fit_is_told_with_its_remedies_and_ends_with_1(store: Path) -> None:
    code, output, found = check(store, "shop_app:shop", "--all", shop_app=EUROS)
    assert code == 1
    assert "event 'Deposited' version 1: its fields have changed: amount is stored" in output
    assert "remedy: give version=2 in the class line of Deposited" in output
    assert "the code does not fit the store" in output
    assert found["events"][0]["unreadable"] == 20
    assert found["streams_folded"] == 0, "none of them could be"
    assert output.count("cannot be folded") == 1, "a reason is given once"
    assert " and 19 more cannot be folded: " in output
    assert "Traceback" not in output


def test_states_that_come_out_differently_with_other_code_are_listed(store: Path) -> None:
    code, output, found = check(store, "shop_app:shop", "--against", "old_app:shop", shop_app=DOUBLED, old_app=SHOP)
    assert code == 1
    assert output.count(": balance was 5, and is 10") == 10
    assert "10 more" in output
    assert "the code fits the store, and makes other states of its events" in output
    assert (found["states_compared"], len(found["states_differing"])) == (20, 20)


def test_older_code_of_another_folder_may_have_the_same_module_names(store: Path) -> None:
    against = ("--against", "shop_app:shop", "--against-in", "released")
    code, output, found = check(store, "shop_app:shop", *against, shop_app=DOUBLED, released__shop_app=SHOP)
    assert (code, len(found["states_differing"])) == (1, 20), output
    code, output, _ = check(store, "shop_app:shop", *against, shop_app=SHOP)
    assert code == 0, output


def test_a_users_mistake_is_one_line_and_ends_with_2(store: Path) -> None:
    code, output, _ = check(store, "nowhere:shop")
    assert (code, output.count("\n")) == (2, 1)
    code, output, _ = check(store, "shop_app:shop", "--against-in", "released", shop_app=SHOP)
    assert (code, "--against-in is the folder of the modules of --against" in output) == (2, True)
    code, output, _ = check(store.parent / "no-store" / "here", "shop_app:shop", shop_app=SHOP)
    assert (code, "Traceback" in output) == (2, False)


def has_ray() -> bool:
    """Whether this process has a Ray: other tests may have started one."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (EUROS, ["event 'Deposited' version 1"]),
        (OTHER, ["event 'Deposited' version 1", "aggregate 'Account'"]),
    ],
    ids=["a changed field", "another application"],
)
def test_a_runtime_does_not_start_over_a_store_that_its_classes_do_not_fit(
    store: Path, source: str, told: Sequence[str]
) -> None:
    shop: Application = loaded(source)["shop"]
    aggregates = list(shop.catalogue.aggregates.values())
    runtime = BlockingRuntime(store, aggregates=aggregates, projections=shop.projections)
    before = has_ray()
    with pytest.raises(CodeMismatch) as caught:
        runtime.start()
    assert [misfit.where for misfit in caught.value.misfits] == told
    assert isinstance(caught.value, StoreMismatch)
    assert has_ray() == before, "nothing was started"
    first = loaded(SHOP)["shop"]
    assert {reader.holdings().aggregates for reader in map(create_or_open_store(store).open_reader, range(2))} == {
        frozenset({"Account"})
    }
    assert first.catalogue.aggregates.keys() == {"Account"}


NOTEBOOK = '''
import sys

CELL_1 = """
from dataclasses import dataclass
from rayfold import *

class Put(Command):
    amount: int

@dataclass
class Line:
    amount: int

class Deposited(Event):
    amount: int
"""
CELL_2 = """
class Account(Aggregate, placement=Shared()):
    lines: list[Line] = []

    @decide
    def put(self, command: Put) -> Deposited:
        return Deposited(amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.lines.append(Line(event.amount))

class Lines(Query[list[Line]]):
    pass

class Book(Projection):
    lines: list[Line] = []

    @project
    def deposited(self, event: Deposited) -> None:
        self.lines.append(Line(event.amount))

    @answer
    def ask(self, query: Lines) -> list[Line]:
        return self.lines
"""
USE = """
with BlockingRuntime("notebook-data", aggregates=[Account], projections=[Book], partitions=1, num_cpus=1) as bank:
    print("stored", bank.execute(Account, "a", Put(amount=5)).version)
    answered = bank.ask(Book, Lines(), after=bank.heads())
    print(answered, [type(line) is Line for line in answered], bank.state_at(Account, "a").lines)
"""

def cell(source):
    exec(compile(source, "<cell>", "exec"), globals())

if __name__ == "__main__":
    cell(CELL_1); cell(CELL_2); cell(USE)
    CELL_1 = CELL_1.replace("class Deposited(Event):", """class Deposited(Event, version=2):
    note: str

    @staticmethod
    @upcast(from_version=1)
    def old(payload: Payload) -> Payload:
        return payload | {"note": "old"}
""").replace("@dataclass\\\\nclass Line:\\\\n", "@dataclass\\\\nclass Line:\\\\n    note: str\\\\n")
    CELL_1 = CELL_1.replace("class Line:", "class Line:\\\\n    note: str")
    CELL_2 = CELL_2.replace("Line(event.amount)", "Line(event.note, event.amount)")
    CELL_2 = CELL_2.replace("Deposited(amount=command.amount)", "Deposited(amount=command.amount, note='new')")
    cell(CELL_1)
    try:
        Catalogue = __import__("rayfold.runtime.encoding.catalogue", fromlist=["Catalogue"]).Catalogue
        Catalogue([Account], events=[Deposited])
    except DefinitionError as error:
        print(error)
    cell(CELL_2); cell(USE)
'''


def test_a_class_cell_of_a_notebook_that_is_run_again_replaces_its_class(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK.replace("\\\\n", "\\n"))
    with start_driver(str(script), folder=tmp_path) as driver:
        output, errors = driver.communicate(timeout=170)
    assert driver.returncode == 0, errors
    assert output.splitlines() == [
        "stored 1",
        "[Line(amount=5)] [True] [Line(amount=5)]",
        "__main__.Deposited: the event name 'Deposited' is already that of another __main__.Deposited, which was"
        " defined before; run the definitions of what names it again too",
        "stored 2",
        "[Line(note='old', amount=5), Line(note='new', amount=5)] [True, True] [Line(note='old', amount=5), "
        "Line(note='new', amount=5)]",
    ]
