"""Pickles in place of everything that is decoded: none of them may run.

A pickle whose loading makes a file is put where a caller, a peer or a user with access to the disk could put one: in
a command, a batch of them, an outcome, a stored event with a good checksum, a snapshot, a saved read model and its
checkpoint, the manifest, the lock file. Then all of it is read. The file must not exist; that a pickle which is
loaded makes it is shown first.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgpack

from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import decode_message, decode_payload
from rayfold.runtime.encoding.envelope import PackedCommand, unpack_batch
from rayfold.runtime.encoding.outcome import decode_outcomes
from rayfold.runtime.encoding.saved_state import decode_state, state_fingerprint
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.read.stores.checkpoint import Checkpoint
from rayfold.runtime.store.store import create_or_open_store, open_store
from rayfold.runtime.stream import ANY, StreamId
from rayfold.runtime.write.write_loop import WriteLoop

from ..bank import Put, Till, Totals
from ..contract import Context, Findings, scenario
from .workload import write_loop

STREAM: Final = StreamId("Till", "till-0")
PROTOCOLS: Final = range(pickle.HIGHEST_PROTOCOL + 1)


class Bomb:
    """Loading its pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def pickles(path: Path) -> list[bytes]:
    """The bomb in every protocol, bare and where a decoder of msgpack would look for more."""
    bare = [pickle.dumps(Bomb(path), protocol) for protocol in PROTOCOLS]
    wrapped: list[Any] = []
    for one in bare[2:4]:
        wrapped += [{"amount": one}, {"note": one}, {"amount": 1, "note": one.decode("latin-1")}, [one], one]
        wrapped += [msgpack.ExtType(code, one) for code in range(0, 128, 3)]
        wrapped += [{"amount": msgpack.ExtType(code, one)} for code in (0, 1, 5, 42, 127)]
    return bare + [msgpack.packb(one) for one in wrapped]


@scenario(
    "pickles",
    "pickles in commands, events, snapshots, read models, manifests: none may run",
    "I10",
    counts="places pickles executed",
    times=(3, 5, 0.2),
)
def pickled_payloads(context: Context, findings: Findings) -> None:
    """Everywhere, every pickle."""
    made = context.folder / "made by a pickle"
    pickle.loads(pickle.dumps(Bomb(made))).close()  # what must not happen, to show that it would
    findings.reach(made.exists(), "the pickle does nothing, so nothing was tried")
    made.unlink()
    bombs = pickles(made)
    findings.figures["pickles"] = len(bombs)
    places: dict[str, Callable[[bytes], object]] = {
        "a command's payload": _in_a_command(context.folder / "commands"),
        "a message": lambda bomb: decode_message(Put, bomb),
        "a payload": decode_payload,
        "a batch of commands": lambda bomb: list(unpack_batch(bomb)),
        "outcomes": lambda bomb: decode_outcomes(bomb, [None]),
        "an aggregate's saved state": lambda bomb: decode_state(Till, bomb),
        "a read model's saved state": lambda bomb: decode_state(Totals, bomb),
        "a saved field": lambda bomb: decode_state(Totals, b"\x01" + bomb),
        "a read model's checkpoint": lambda bomb: Checkpoint.unpacked(crc32(bomb).to_bytes(4, "big") + bomb),
        "a record": decode_record,
        "a stored event and its snapshot": _in_a_log(context.folder / "logs"),
        "the manifest": _in_a_file(context.folder / "manifests", "store.json"),
        "the lock": _in_a_file(context.folder / "locks", "store.lock"),
    }
    for place, read in places.items():
        findings.count("places")
        for bomb in bombs:
            with suppress(Exception):  # refused, in whatever way; what matters here is what has not happened
                read(bomb)
            if not findings.check("I10", not made.exists(), f"{place}: a pickle was executed"):
                findings.count("executed")
                made.unlink()


def _in_a_command(folder: Path) -> Callable[[bytes], object]:
    """Sent to a partition as a command's payload, and as the rest of it."""
    loop = write_loop(create_or_open_store(folder, 1).open_log(0))
    numbers = iter(range(1, 1 << 30))

    def read(bomb: bytes) -> object:
        good = PackedCommand(next(numbers).to_bytes(16, "big"), STREAM, "Put", bomb, ANY, b"", b"")
        return loop.execute([good, good._replace(correlation_id=bomb), good._replace(command_id=bomb[:16].ljust(16))])

    return read


def _in_a_log(folder: Path) -> Callable[[bytes], object]:
    """Stored with a good checksum, as an event and as a snapshot of the very code that reads it; then read by all."""
    numbers = iter(range(1, 1 << 30))
    store = create_or_open_store(folder, 1)
    log = store.open_log(0)
    epoch = log.activate()

    def read(bomb: bytes) -> object:
        number = next(numbers)
        stream = StreamId("Till", f"till-{number}")
        append = Append(stream, ANY, (NewEvent("PutIn", 1, bomb),), number.to_bytes(16, "big"), bytes(16))
        [done] = log.append(epoch, [append._replace(snapshot=bomb, snapshot_schema=state_fingerprint(Till))])
        with suppress(RayfoldError):
            WriteLoop(0, log, Catalogue([Till])).residents.load(stream)
        return Catalogue([Till], [Totals]).decode_event(decode_record(done.records[0]))

    return read


def _in_a_file(folder: Path, name: str) -> Callable[[bytes], object]:
    """In place of a file of a store, which is then opened, held and verified."""
    create_or_open_store(folder, 1)

    def read(bomb: bytes) -> object:
        (folder / name).write_bytes(bomb)
        with open_store(folder).hold("a runtime"):
            return open_store(folder)

    return read
