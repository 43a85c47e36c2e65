"""Calls: the frames in which one program calls another over a socket, after the handshake: numbered, answered in any
order.

Beside all steps. Around it: `../relay/relay.py`, which answers, and `../client/relay_connection.py`, which asks.

The content of a frame (`framing.py`) is in msgpack (`records.py`). A call has the kind `CALL`, and the content
`[target, method, timeout in seconds, arguments]`. The caller chooses its number, and has at most `CALLS_MAX` calls
without an answer. An answer has the number of its call, and one of the other kinds. A call whose timeout has passed is
never answered, and its number is free.

Only names and bounds are here.
"""

from __future__ import annotations

from typing import Final

from ...runtime.encoding.frames import REQUEST_BYTES_MAX

__all__ = [
    "ACTOR_AWAY",
    "ACTOR_DIED",
    "ANSWER_BYTES_MAX",
    "CALL",
    "CALLS_MAX",
    "CALL_BYTES_MAX",
    "ERROR",
    "FAILED",
    "VALUE",
]

CALL: Final = 0
VALUE: Final = 1
ERROR: Final = 2
"""One of ours, as a value."""
ACTOR_DIED: Final = 3
"""The actor has ended for good; with a text."""
ACTOR_AWAY: Final = 4
"""The actor's process has ended, and is being started again; with a text."""
FAILED: Final = 5
"""Anything else; with a text."""

CALLS_MAX: Final = 4096
"""Calls of one program without an answer. A program has two batches on their way to each actor, and a few questions."""

CALL_BYTES_MAX: Final = REQUEST_BYTES_MAX + 65_536
"""A batch of the largest size, and the positions that 1,024 queries wait for."""

ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""The answers to 1,024 queries, of 256 KiB each. Larger ones are refused by name."""
