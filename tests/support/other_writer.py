"""A writer in a process of its own, as a partition is: LMDB opens no log twice in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rayfold import Event
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.store.store import Store
from tests.bank import Deposited

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, uuid
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.store.store import open_store
from rayfold.runtime.stream import ANY, StreamId

for line in sys.stdin:
    path, events = json.loads(line)
    store = open_store(path)
    written = []
    for kind, ident, name, version, payload in events:
        stream = StreamId(kind, ident)
        log = store.open_log(store.partition_of(stream))
        new = NewEvent(name, version, bytes.fromhex(payload))
        log.append(log.activate(), [Append(stream, ANY, (new,), uuid.uuid4().bytes, bytes(16))])
        written.append([store.partition_of(stream), log.head()])
        log.close()
    print(json.dumps(written), flush=True)
"""


def deposits(*amounts: int, to: str = "alice") -> list[tuple[str, Deposited]]:
    """Deposits to one account, as `OtherWriter.write` takes them."""
    return [(to, Deposited(amount=amount)) for amount in amounts]


class OtherWriter:
    """`write` returns when the events are committed."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, store: Store, *events: tuple[str, Event], kind: str = "Account") -> list[tuple[int, int]]:
        """Events, each with the id of its aggregate. Returns the partition and position of each."""
        packed = [
            (kind, ident, event.message_name, event.schema_version, encode_message(event).hex())
            for ident, event in events
        ]
        return self.write_packed(store, *packed)

    def write_packed(self, store: Store, *events: tuple[str, str, str, int, str]) -> list[tuple[int, int]]:
        """Events as they are stored: type, id, name, schema version, payload in hexadecimal."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([str(store.path), events]) + "\n")
        self.process.stdin.flush()
        return [(partition, position) for partition, position in json.loads(self.process.stdout.readline())]

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
