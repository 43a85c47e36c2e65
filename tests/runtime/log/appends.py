"""The one example of the log's tests: deposits to accounts, and how they become appends."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgpack

from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.stream import ANY, StreamId

ROOT = Path(__file__).parents[3]
ALICE = StreamId("Account", "alice")
BOB = StreamId("Account", "bob")
DIGEST = b"digest of 16 b.."

children: list[subprocess.Popen[str]] = []
"""The processes that the present test has started."""

_numbers = itertools.count(1)


def command_id(number: int | None = None) -> bytes:
    """A command id of 16 bytes, a new one without a number."""
    return (next(_numbers) + (1 << 64) if number is None else number).to_bytes(16, "big")


def deposited(amount: int) -> NewEvent:
    return NewEvent("Deposited", 1, msgpack.packb({"amount": amount}))


def deposits(stream: StreamId, *amounts: int, expected: int = ANY, by: bytes = b"", digest: bytes = DIGEST) -> Append:
    """The append of a command that deposits amounts, one event each."""
    events = tuple(deposited(amount) for amount in amounts)
    return Append(stream, expected, events, by or command_id(), digest)


def amounts_of(records: Sequence[bytes]) -> list[int]:
    return [msgpack.unpackb(decode_record(record).payload)["amount"] for record in records]


def positions_of(records: Sequence[bytes]) -> list[int]:
    return [decode_record(record).position for record in records]


def versions_of(records: Sequence[bytes]) -> list[int]:
    return [decode_record(record).version for record in records]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A child process that runs `code` with the checkout importable; its lines come through a pipe.

    It lives no longer than the test that started it (`conftest.py` sees to that).
    """
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    children.append(child)
    return child
