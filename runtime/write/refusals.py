"""Refusals: what a decisive command was refused for, kept under its id, so that no repeat is decided again.

Step [4] of the write path. Before it: the aggregate has rejected a command that was sent with `decisive=True`. After
it: the refusal is appended like an event, and only then returned to the caller.

It is an event `rayfold.Refused` in a stream of Rayfold's own, one for each log, and the command index leads from the
command's id to it. So it moves, is backed up, verified and chained like any other event; readers that do not know it
pass over it, since the type of its stream is a reserved one. In the command index its version is 0: there is no event
of the command in the stream that it was for, which distinguishes a refusal from a receipt.
"""

from __future__ import annotations

from typing import Final

import msgpack

from ..encoding.facts import pack_facts, unpack_facts
from ..errors import Damaged, Rejected
from ..log.contract import NewEvent
from ..log.format import decode_record
from ..stream import REFUSALS

__all__ = ["REFUSED_VERSION", "refused_event", "rejected_in"]

REFUSED: Final = "rayfold.Refused"

REFUSED_VERSION: Final = 0
"""In the command index, of a command that was refused."""


def refused_event(rejected: Rejected) -> NewEvent:
    """The event that keeps a refusal."""
    kept = {
        "reason": rejected.reason,
        "facts": pack_facts(rejected.facts),
        "stream": rejected._stream,
        "command": rejected.command,
    }
    return NewEvent(REFUSED, 1, msgpack.packb(kept))


def rejected_in(record: bytes) -> Rejected:
    """The refusal that a record keeps. Raises `Damaged` for another record."""
    stored = decode_record(record)
    if stored.stream == REFUSALS and stored.name == REFUSED:
        kept = msgpack.unpackb(stored.payload)
        return Rejected.told(kept["reason"], unpack_facts(kept["facts"]), kept["stream"], kept["command"])
    what = f"command {stored.command_id.hex()} is listed as refused there, but it holds {stored.name}"
    raise Damaged(f"event {stored.position}", what)
