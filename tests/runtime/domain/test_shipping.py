"""Shipping: classes of a script's `__main__`, and of a function in it, survive cloudpickle, by which Ray carries them.

Each test runs a real script in a process of its own, and unpickles in another that never saw the script.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

DOMAIN = """
class Deposit(Command, name="deposit"):
    amount: int = Field(gt=0)

class Deposited(Event, name="deposited", version=2):
    amount: int
    at: datetime
    tags: frozenset[str] = frozenset()
    currency: str = "EUR"

    @staticmethod
    @upcast(from_version=1)
    def add_currency(old: Payload) -> Payload:
        return {**old, "currency": "USD"}

class Größe(Command, name="size"):
    pass

class Account(Aggregate, name="account", placement=Shared(), snapshot_every=7):
    balance: int = 0
    seen: dict[tuple[str, int], set[str]] = {}
    ledger: list[str] = field(default_factory=list)

    @decide(creates=True)
    def deposit(self, command: Deposit) -> Deposited | Rejected:
        return Deposited(amount=command.amount, at=datetime(2024, 1, 1), tags=frozenset("ba"))

    @decide
    def size(self, command: Größe) -> None: ...

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount
        self.seen[("a", 1)] = set(event.tags)

class Savings(Account, name="savings"):
    rate: float = 0.5

class BalanceOf(Query[int], name="balance"):
    account: str = "x"

class Balances(Projection, name="balances", version=3):
    total: int = 0

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.total += event.amount

    @answer
    def balance(self, query: BalanceOf) -> int:
        return self.total
"""

HEADER = """from __future__ import annotations
import sys
from dataclasses import field
from datetime import datetime
from pydantic import Field
import ray.cloudpickle as cloudpickle
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import decode_message, decode_state, encode_message, encode_state, state_fingerprint
from rayfold.runtime.errors import Rejected
from rayfold.runtime.domain.messages import Command, Event, Payload, Query, upcast
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
"""

SENDER = '''
def use(cls):
    """Fill the tables that are made at the first use, as a sender has done before it ships."""
    made = cls("x") if issubclass(cls, Aggregate) else cls()
    decode_state(cls, encode_state(made))
    return state_fingerprint(cls)

encode_message(Deposit(amount=1)), encode_message(Deposited(amount=1, at=datetime(2024, 1, 1)))
prints = [use(cls) for cls in (Account, Savings, Balances)]
catalogue = Catalogue([Account, Savings], [Balances])
data = cloudpickle.dumps((catalogue, Deposit, Deposited, Account, Savings, BalanceOf, Balances, prints))
sys.stdout.buffer.write(data)
'''

RECEIVER = """
import sys
import ray.cloudpickle as cloudpickle
arrived = cloudpickle.loads(sys.stdin.buffer.read())
catalogue, Deposit, Deposited, Account, Savings, BalanceOf, Balances, prints = arrived
from datetime import datetime
from rayfold.runtime.domain.aggregate import Shared, outcome_of
from rayfold.runtime.encoding.codec import decode_message, decode_state, encode_message, encode_state, state_fingerprint
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.stream import StreamId

assert (Deposit.message_name, Deposited.message_name, Deposited.schema_version) == ("deposit", "deposited", 2)
assert (Account.aggregate_type, Account.placement, Account.snapshot_every) == ("account", Shared(), 7)
assert (Savings.aggregate_type, Savings.placement, Savings.snapshot_every) == ("savings", Shared(), 7)
assert (Balances.projection_name, Balances.projection_version) == ("balances", 3)
assert (BalanceOf.message_name, BalanceOf.answer_type) == ("balance", int)
assert Account.creation_restricted and list(Account.deciders) == [Deposit, catalogue.command(Account, "size")]
assert catalogue.aggregate("account") is Account and catalogue.query(Balances, "balance") is BalanceOf

account = Account("alice")
(event,) = outcome_of(account, decode_message(Deposit, encode_message(Deposit(amount=5))))
assert type(event) is Deposited
stored = StoredEvent(1, StreamId("account", "alice"), 1, "deposited", 2, encode_message(event), 0, b"", b"", b"")
assert catalogue.decode_event(stored) == event
Account.evolvers[Deposited](account, event)
restored = decode_state(Account, encode_state(account), "alice", 1)
assert (restored.balance, restored.seen, restored.ledger) == (5, {("a", 1): {"a", "b"}}, [])
assert Account("a").ledger is not Account("b").ledger
assert Savings("x").rate == 0.5 and Savings.deciders == Account.deciders

old = stored._replace(schema_version=1, payload=__import__("msgpack").packb({"amount": 1, "at": "2024-01-01T00:00:00"}))
assert catalogue.decode_event(old).currency == "USD"

balances = Balances()
handler = Balances.projectors[Deposited]
assert handler.takes_recorded
handler.function(balances, event, Recorded(StreamId("account", "alice"), 1, 0, 1, 0, b"", b"", b""))
assert Balances.answers[BalanceOf](balances, BalanceOf()) == 5
try:
    Deposit(amount=-1)
except ValueError as error:
    assert "greater than 0" in str(error)
else:
    raise AssertionError("the constraint was lost")
assert prints == [state_fingerprint(cls) for cls in (Account, Savings, Balances)]
print("arrived")
"""


def in_a_function(domain: str) -> str:
    body = "\n".join(f"    {line}" for line in (domain + SENDER).splitlines())
    return f"def main():\n{body}\n\nmain()\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        HEADER + DOMAIN + SENDER,
        HEADER + in_a_function(DOMAIN),
        HEADER.removeprefix("from __future__ import annotations\n") + DOMAIN + SENDER,
    ],
    ids=["in __main__", "in a function", "with evaluated annotations"],
)
def test_a_domain_that_ray_ships_by_value_works_where_it_arrives(script: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    sent = subprocess.run([sys.executable, str(path)], capture_output=True, env=environment, cwd=tmp_path, check=False)
    assert sent.returncode == 0, sent.stderr.decode()
    received = subprocess.run(
        [sys.executable, "-c", RECEIVER], input=sent.stdout, capture_output=True, env=environment, check=False
    )
    assert received.returncode == 0, received.stderr.decode()
    assert received.stdout == b"arrived\n"
