"""Shipping: classes of a script or a notebook are the same classes where they arrive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.driver import ROOT, start_driver

pytestmark = pytest.mark.slow

SENDER = '''
import dataclasses, sys
from dataclasses import InitVar, dataclass, field
from enum import Enum
import typing
from typing import NamedTuple
from typing_extensions import TypedDict
from pydantic import BaseModel
from rayfold import *
from rayfold.actors.packaging.shipping import ship
from rayfold.runtime.encoding.catalogue import Catalogue


class Deposited(Event):
    amount: int

class DepositedV2(Deposited, name="Deposited", version=2):
    note: str = ""
    @staticmethod
    @upcast(from_version=1)
    def with_note(old: Payload) -> Payload:
        return old | {"note": "old"}

class Again(DepositedV2, name="Deposited", version=1):
    """The version of its grandparent, not of its parent."""

class Base(Aggregate, name="Account", snapshot_every=7, state_version=2):
    ...

class Kind(Enum):
    A = "a"

class Point(NamedTuple):
    x: int

class Note(TypedDict):
    text: str

class Word(typing.TypedDict):
    word: str

class Model(BaseModel):
    y: int = 3

@dataclass(kw_only=True, frozen=True)
class Inner:
    kind: Kind = Kind.A
    many: tuple[int, ...] = field(default_factory=tuple)

@dataclass
class Line:
    sku: str
    inner: Inner = field(default_factory=Inner)
    note: Note | None = None
    point: Point = Point(1)
    model: Model = field(default_factory=Model)
    made: InitVar[int] = 0

    def __post_init__(self, made: int) -> None:
        self.sku += str(made or "")

class Sub(Base, name="Account"):
    lines: list[Line] = []
    words: dict[str, Word] = {}

    @evolve
    def deposited(self, event: DepositedV2) -> None:
        self.words["a"] = {"word": "b"}
        self.lines.append(Line(event.note))

class How(Query[list[Line]], name="how"):
    pass

class Same(How, name="how"):
    pass

class Lines(Projection, version=4):
    lines: list[Line] = []

    @project
    def deposited(self, event: DepositedV2) -> None:
        self.lines.append(Line(event.note))

    @answer
    def how(self, query: Same) -> list[Line]:
        return self.lines

class Renamed(Lines, name="Lines", version=4):
    pass

sys.stdout.buffer.write(ship(Catalogue([Sub], [Renamed], retired=["Old"])))
'''

RECEIVER = """
import dataclasses, sys
from rayfold.actors.packaging.shipping import unship
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.encoding.saved_state import decode_state, encode_state
from rayfold.runtime.stream import StreamId

catalogue = unship(sys.stdin.buffer.read())
Deposited, Sub = catalogue.event("Deposited"), catalogue.aggregate("Account")
Lines = catalogue.projection("Lines")
assert (Deposited.__name__, Deposited.message_name, Deposited.schema_version) == ("DepositedV2", "Deposited", 2)
assert Deposited.__mro__[1].schema_version == 1 and Deposited.__mro__[1].message_name == "Deposited"
assert (Sub.__name__, Sub.aggregate_type, Sub.snapshot_every, Sub.state_version) == ("Sub", "Account", 7, 2)
assert (Lines.projection_name, Lines.projection_version) == ("Lines", 4)
assert catalogue.query(Lines, "how").__name__ == "Same"
assert catalogue.retired == {"Old"}
record = StoredEvent(1, StreamId("Account", "a"), 1, "Deposited", 1, b"\\x81\\xa6amount\\x01", 0, b"", b"", b"")
[event] = catalogue.decode_events(record)
assert (event.amount, event.note) == (1, "old")
sub = Sub("a", 1)
sub.evolvers[Deposited](sub, event)
[line] = sub.lines
assert [field.name for field in dataclasses.fields(line)] == ["sku", "inner", "note", "point", "model"]
assert dataclasses.replace(line, sku="other", made=1).sku == "other1" and line.sku == "old"
restored = decode_state(Sub, encode_state(sub), "a", 1)
assert restored.lines == sub.lines, (restored.lines, sub.lines)
assert type(restored.lines[0].point).__name__ == "Point"
assert restored.words == {"a": {"word": "b"}}
assert Sub.state_fields["words"].__args__[1].__required_keys__ == {"word"}
assert Sub.state_fields["words"].__args__[1].__annotations__ == {"word": str}
print("arrived")
"""


def test_classes_that_travel_by_value_carry_their_stored_names_and_dataclasses_survive(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SENDER)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    sent = subprocess.run([sys.executable, str(script)], capture_output=True, env=environment, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr.decode()
    received = subprocess.run([sys.executable, "-c", RECEIVER], input=sent.stdout, capture_output=True, env=environment)
    assert received.returncode == 0, received.stderr.decode()
    assert received.stdout == b"arrived\n"


ENDING = """
import os, sys
from rayfold import *
if os.path.basename(sys.argv[0]) == "default_worker.py":
    {how}
class Added(Event):
    amount: int
class Put(Command):
    amount: int
class Account(Aggregate, placement=Shared()):
    balance: int = 0
    @decide
    def put(self, command: Put) -> Added:
        return Added(amount=command.amount)
    @evolve
    def added(self, event: Added) -> None:
        self.balance += event.amount
"""

STARTING = """
import sys
from ending import Account
from rayfold import *
try:
    BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1).start()
except DefinitionError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "os._exit(3)",
            "cannot be loaded in an actor: each of 3 processes ended while it imported their modules; see ",
        ),
        ("sys.exit('no configuration')", "cannot be loaded in an actor: SystemExit: no configuration; the modules "),
        ("raise KeyError('HOME')", "cannot be loaded in an actor: KeyError: 'HOME'; the modules "),
    ],
)
def test_a_module_that_cannot_be_imported_in_an_actor_is_told_by_name(tmp_path: Path, how: str, told: str) -> None:
    (tmp_path / "ending.py").write_text(ENDING.format(how=how))
    (tmp_path / "starting.py").write_text(STARTING)
    with start_driver("starting.py", str(tmp_path / "store"), folder=tmp_path) as program:
        out, errors = program.communicate(timeout=120)
    assert out.startswith(f"the application's classes: {told}"), errors
    assert errors == ""


SHIPS_FIRST = """
import os, sys
from examples.bank import Account
from rayfold.actors.packaging.shipping import ship, unship
from rayfold.runtime.encoding.catalogue import Catalogue
before = "ray" in sys.modules
unship(ship(Catalogue([Account])))
print(before, os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"], os.environ["RAY_AUTH_MODE"])
"""


def test_ray_is_prepared_to_keep_to_the_machine_also_where_classes_are_sent_before_it_starts() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SHIPS_FIRST], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.stdout == "False 0 token\n", done.stderr
