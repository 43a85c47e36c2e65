"""Handshake: the first thing that travels on a socket, in both directions, before anything else does.

Beside all steps. Around it: `greeting.py` and whatever else listens, and `../client/socket_client.py` and whatever else
connects. The client sends its greeting as soon as it has connected; the other end reads it, and answers with its own.
Nothing else may be sent before. So a program of another release, or one that has found the socket of another store,
learns that by name and at once, and no frame is ever read by rules that were not meant for it.

A greeting: 7 bytes that no other protocol begins with, the version of the protocol (1 byte), the length of the rest (2
bytes), and the rest, a map in msgpack: `service`, what the connection is for; `store`, the id of the
store; `proof`, that a client has the token of a cluster; `refused`, why the connection is about to be ended, if it is.
Unknown keys are ignored. The first ten bytes are
the same in every version, so that any two versions can read each other's number.

Bytes in, bytes out: no socket, no event loop, no thread, no clock.

Rule kept here: the length of a greeting is checked before it is read, and never more than the greeting is asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any, Final

import msgpack

from ...runtime.printable import printable

__all__ = ["GREETING_BYTES_MAX", "HANDSHAKE_S", "PROTOCOL_VERSION", "Handshake"]

PROTOCOL_VERSION: Final = 1
"""Raised whenever a frame of any socket changes its meaning; two ends of different versions do not talk."""

HANDSHAKE_S: Final = 5.0
"""How long a greeting may take. It takes microseconds; a process that is frozen or is none of Rayfold's takes forever,
and holds a place meanwhile."""

GREETING_BYTES_MAX: Final = 4096
"""The rest of a greeting: three short texts, with room for what later releases add."""

_MAGIC: Final = b"rayfold"
_HEAD: Final = struct.Struct(">7sBH")
_TEXT_CHARACTERS_MAX: Final = 500


class Handshake:
    """One end's half of the handshake on one connection."""

    def __init__(self, service: str, store_id: str = "", *, also: Collection[str] = (), proof: str = "") -> None:
        """`service`: what the connection is for: both ends have to name the same. `store_id`: of which store;
        without one a client takes whichever the other end serves. `also`: what else this end listens for. `proof`: that
        a client has the token of a cluster; the other end compares it."""
        self.wanted_bytes = _HEAD.size
        """How many bytes of the other end's greeting are missing, as far as is known; 0 at the end of the handshake."""
        self.refused = ""
        """Why this connection has to be ended."""
        self.store_id = store_id
        """The store's id; of a client without one, that of the other end once the handshake is `done`."""
        self.other_proof = ""
        """What the other end has sent as its proof."""
        self.rest = b""
        """What came behind the other end's greeting, if more was given to `receive` than was wanted."""
        self.service = service
        """What the connection is for; of an end that listens for several, what the other one has named."""
        self._also = also
        self._proof = proof
        self._received = b""

    @property
    def done(self) -> bool:
        """The two ends fit, and frames may follow."""
        return not self.wanted_bytes and not self.refused

    def greeting(self) -> bytes:
        """What to send: a client before anything else, the other end after `receive` has come to its end, whether it
        is `done` or has `refused`."""
        content = {"service": self.service, "store": self.store_id}
        if self._proof:
            content["proof"] = self._proof
        if self.refused:
            content["refused"] = self.refused
        rest: bytes = msgpack.packb(content)
        return _HEAD.pack(_MAGIC, PROTOCOL_VERSION, len(rest)) + rest

    def receive(self, data: bytes) -> None:
        """Some of what the other end has sent. Not to be called any more once `wanted_bytes` is 0."""
        self._received += data
        received, size_bytes = self._received, _HEAD.size
        if received[: len(_MAGIC)] != _MAGIC[: len(received)]:
            self.refuse(f"what came is no greeting of Rayfold's; it begins with {received[:16]!r}")
            return
        if len(received) >= _HEAD.size:
            _, version, rest_bytes = _HEAD.unpack_from(received)
            if version != PROTOCOL_VERSION:
                self.refuse(
                    f"the other end speaks version {version} of the protocol, and this one version {PROTOCOL_VERSION}; "
                    "use the same release of rayfold for both"
                )
                return
            if rest_bytes > GREETING_BYTES_MAX:
                self.refuse(f"a greeting of {rest_bytes} bytes, over {GREETING_BYTES_MAX}")
                return
            size_bytes += rest_bytes
        self.wanted_bytes = max(0, size_bytes - len(received))
        if not self.wanted_bytes:
            self.rest = received[size_bytes:]
            self._read(received[_HEAD.size : size_bytes])

    def _read(self, rest: bytes) -> None:
        try:
            content = msgpack.unpackb(rest, max_map_len=64, max_array_len=64)
        except Exception:  # msgpack raises many
            content = None
        if not isinstance(content, dict):
            self.refuse("a greeting that cannot be read")
            return
        service, store_id, refused = (_text(content, key) for key in ("service", "store", "refused"))
        self.other_proof = _text(content, "proof")
        if refused:
            self.refuse(f"the other end refuses this one: {refused}")
        elif service != self.service and service not in self._also:
            self.refuse(f"one end is for a {self.service}, and the other one for a {service}")
        elif store_id and self.store_id and store_id != self.store_id:
            self.refuse(f"one end has store {self.store_id}, and the other one store {store_id}")
        else:
            self.service, self.store_id = service, self.store_id or store_id

    def refuse(self, why: str) -> None:
        """End the handshake without success; the next `greeting` gives the other end the reason."""
        self.wanted_bytes, self.refused = 0, printable(why)[:_TEXT_CHARACTERS_MAX]


def _text(content: dict[Any, Any], key: str) -> str:
    value = content.get(key, "")
    return value[:_TEXT_CHARACTERS_MAX] if isinstance(value, str) else ""
