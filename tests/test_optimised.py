"""`python -O` leaves every `assert` out: what comes from callers, peers and files is refused all the same, in the same
words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent

PROGRAM: Final = """
import tempfile
from pathlib import Path
import ray.cloudpickle, msgpack, zlib
from rayfold import Application, Envelope, Settings, given
from rayfold.actors.nodes.agent import NodeAgent, NodeAgentPlan
from rayfold.actors.packaging.shipping import unship
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import decode_message
from rayfold.runtime.encoding.envelope import unpack_batch
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.feed.committed_positions import check_member
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.stores.checkpoint import Checkpoint
from rayfold.runtime.store.store import create_or_open_store, open_store
from tests.bank import Account, Balances, Deposit, Open

folder = Path(tempfile.mkdtemp())
create_or_open_store(folder / "store", 1)
(folder / "broken").mkdir()
(folder / "broken" / "store.json").write_text("{}")
shipped = msgpack.packb(("", zlib.compress(ray.cloudpickle.dumps("no catalogue")), []))
agent = NodeAgent(NodeAgentPlan("bank", "node", "rayfold", False, None))

DOORS = {
    "shipped classes that are none": lambda: unship(shipped),
    "shipped bytes": lambda: unship(b"abc"),
    "another call of a node agent": lambda: agent.read(0, "close", ())[0][:2],
    "a batch": lambda: list(unpack_batch(b"\\xc1\\xc1")),
    "a payload": lambda: decode_message(Deposit, b"\\xc1"),
    "a payload of another type": lambda: decode_message(Deposit, msgpack.packb({"amount": "much"})),
    "a checkpoint": lambda: Checkpoint.unpacked(b"12345678"),
    "a manifest": lambda: open_store(folder / "broken"),
    "another number of partitions": lambda: create_or_open_store(folder / "store", 3),
    "a member": lambda: check_member("x", 3, 2),
    "an append of an old epoch": lambda: MemoryLog().append(7, []),
    "settings": lambda: Settings(timeout_s=-1),
    "an application": lambda: Application("x/y", aggregates=[Account], projections=[Balances]),
    "an envelope": lambda: Envelope(Account, "", Open(owner="x")),
    "a command of another class": lambda: given(Account).when(object()),
}
for name, door in DOORS.items():
    try:
        print(f"{name}: {door()!r}")
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {str(error).replace(str(folder), '')}")
"""


def said(*options: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, *options, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.slow
def test_what_comes_from_outside_is_refused_in_the_same_words_without_assertions() -> None:
    usual = said()
    assert len(usual) == 15
    assert not [line for line in usual if "AssertionError" in line]
    assert said("-O") == usual
