"""Refusals: what a decisive command was refused for, kept under its id, so that no repeat is decided again.

Step [4] of the write path. Before it: the aggregate has rejected a command that was sent with `decisive=True`. After
it: the refusal is appended like an event, and only then returned to the caller.

It is an event `rayfold.Refused` in a stream of Rayfold's own, one for each log, and the command index leads from the
command's id to it. So it moves, is backed up, verified and chained like any other event; readers that do not know it
pass over it, since the type of its stream is a reserved one. In the command index its version is 0: there is no event
of the command in the stream that it was for, which distinguishes a refusal from a receipt.

What a process sends is `FINAL`: whatever has come of it is acted on, so every outcome without an event is kept under
its id, a failure (`rayfold.Failed`) and a receipt without events (`rayfold.Unchanged`) too.
"""

from __future__ import annotations

from typing import Final

import msgpack

from ..encoding.envelope import PackedCommand
from ..encoding.error_codec import from_wire, to_wire
from ..encoding.facts import pack_facts, unpack_facts
from ..encoding.outcome import Outcome
from ..errors import Damaged, RayfoldError, Rejected
from ..log.contract import NewEvent
from ..log.format import decode_record
from ..receipt import Receipt
from ..stream import REFUSALS

__all__ = ["REFUSED_VERSION", "first_outcome_in", "kept_event"]

REFUSED: Final = "rayfold.Refused"
FAILED: Final = "rayfold.Failed"
UNCHANGED: Final = "rayfold.Unchanged"

REFUSED_VERSION: Final = 0
"""In the command index, of a command that was refused."""


def kept_event(outcome: Outcome) -> NewEvent:
    """The event that keeps a refusal, a failure, or a receipt for a command that has left no event."""
    if isinstance(outcome, Rejected):
        kept = {
            "reason": outcome.reason,
            "facts": pack_facts(outcome.facts),
            "stream": outcome._stream,
            "command": outcome.command,
        }
        return NewEvent(REFUSED, 1, msgpack.packb(kept))
    if isinstance(outcome, RayfoldError):
        return NewEvent(FAILED, 1, msgpack.packb(to_wire(outcome), default=str))
    return NewEvent(UNCHANGED, 1, msgpack.packb((outcome.position, outcome.version)))


def first_outcome_in(record: bytes, command: PackedCommand, partition: int) -> Outcome:
    """The outcome that a record keeps of this command. Raises `Damaged` for another record."""
    stored = decode_record(record)
    if stored.stream == REFUSALS:
        kept = msgpack.unpackb(stored.payload)
        if stored.name == REFUSED:
            return Rejected.with_facts(kept["reason"], unpack_facts(kept["facts"]), kept["stream"], kept["command"])
        if stored.name == FAILED:
            return from_wire(kept)
        if stored.name == UNCHANGED:
            position, version = kept
            return Receipt(command.stream, partition, position, version, command.command_id, True, "", 0)
    what = f"command {stored.command_id.hex()} is listed as refused there, but it holds {stored.name}"
    raise Damaged(f"event {stored.position}", what)
