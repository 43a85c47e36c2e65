"""Anchor: head and link of every partition, signed, to be kept where the writers of the store cannot write.

Beside the write path: it only reads, also while the store is written to. Recomputing the hash chain shows a change,
unless the whole chain was recomputed with it. An anchor ends that: the link of an event covers all events before it, so
a log that carries the anchored link at the anchored position holds exactly what it held then, and perhaps more.
Differences are reported by partition: a shorter log, another link, another store, a bad signature.

Signed with Ed25519, by the `cryptography` package (`pip install rayfold[anchor]`). The format is documented in
docs/anchors.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from ..durable_files import fsync_folder
from ..errors import CallerError, Damaged, StorageFailed
from ..log.contract import Reader
from ..log.format import chain_of
from ..private import make_private_folder, open_private
from ..store.readable_store import ReadableStore
from ..store.store import PARTITIONS_MAX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Anchor", "AnchorKey", "differences", "new_key", "public_key_in", "read_key", "take_anchor"]

KIND: Final = "rayfold anchor"
FORMAT: Final = 1

POSITION_MAX: Final = (1 << 63) - 1

ANCHOR_BYTES_MAX: Final = 1 << 20
"""A store has at most 1,024 partitions, with some 130 bytes each."""

_KEY_BYTES_MAX: Final = 65_536

_LINK: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""SHA-256 in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the logs of a store ended with at one moment. A plain value; `as_json()` is what is kept.

    Made by `Runtime.anchor` and `rayfold anchor`; compared by `rayfold verify --anchor`.

    Example:
        anchor = await bank.anchor()
        Path("/mnt/elsewhere/anchor.json").write_text(anchor.signed(read_key(path)).as_json())
    """

    store_id: str
    heads: Mapping[int, int]
    """Partition -> position of its last event; 0 for an empty log."""
    links: Mapping[int, str]
    """Partition -> the link of the hash chain at that position, in hexadecimal; empty for an empty log."""
    anchored_at: str
    """By the clock of the machine that took it, in ISO 8601 and UTC."""
    public_key: str = ""
    """Public part of the key that signed it, 32 bytes in hexadecimal; empty if it is not signed."""
    signature: str = ""
    """Ed25519, 64 bytes in hexadecimal."""

    def signed(self, key: AnchorKey) -> Anchor:
        """The same, signed with this key."""
        unsigned = replace(self, public_key=key.public_key, signature="")
        return replace(unsigned, signature=key.sign(unsigned._content()).hex())

    def check_signature(self, public_key: str = "") -> None:
        """Raise `Damaged` unless it was signed with its key and is as it was signed, and if a public key is given (in
        hexadecimal), unless that is its key."""
        if not self.signature:
            raise Damaged("the anchor", "it is not signed")
        if public_key and public_key.lower() != self.public_key:
            raise Damaged("the anchor", f"it was signed with the key {self.public_key}, not with {public_key}")
        ed25519, invalid = _ed25519()
        try:
            key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
            key.verify(bytes.fromhex(self.signature), self._content())
        except (invalid, ValueError) as error:
            raise Damaged("the anchor", "its signature is not that of its content and key") from error

    def _content(self) -> bytes:
        """What is signed: everything but the signature, as sorted compact JSON in ASCII."""
        facts = self._facts()
        del facts["signature"]
        return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()

    def _facts(self) -> dict[str, Any]:
        heads = [{"partition": one, "position": self.heads[one], "link": self.links[one]} for one in sorted(self.heads)]
        return {
            "kind": KIND,
            "format": FORMAT,
            "store_id": self.store_id,
            "anchored_at": self.anchored_at,
            "heads": heads,
            "public_key": self.public_key,
            "signature": self.signature,
        }

    def as_json(self) -> str:
        """As it is kept and printed."""
        return json.dumps(self._facts(), indent=2) + "\n"

    @classmethod
    def from_json(cls, content: str | bytes) -> Self:
        """The anchor in what `as_json` made. Raises `Damaged`; does not check the signature."""
        try:
            if len(content) > ANCHOR_BYTES_MAX:
                raise ValueError(f"it has over {ANCHOR_BYTES_MAX:,} bytes")
            facts = json.loads(content)
            if facts["kind"] != KIND or facts["format"] != FORMAT:
                raise ValueError(f"it is {facts['kind']!r} of format {facts['format']!r}")
            heads = {one["partition"]: one["position"] for one in facts["heads"]}
            links = {one["partition"]: one["link"] for one in facts["heads"]}
            numbers_right = all(
                _is_number(one, PARTITIONS_MAX - 1) and _is_number(heads[one], POSITION_MAX) for one in heads
            )
            if not heads or len(heads) != len(facts["heads"]) or not numbers_right:
                raise ValueError("its heads are not heads of partitions")
            if any(not _LINK.fullmatch(links[one]) if heads[one] else links[one] for one in heads):
                raise ValueError("its links are not links of heads")
            texts = [facts[name] for name in ("store_id", "anchored_at", "public_key", "signature")]
            if not all(isinstance(one, str) for one in texts):
                raise ValueError("its facts must be strings")
            return cls(texts[0], heads, links, *texts[1:])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged("the anchor", f"it is not an anchor that this version reads: {error}") from error


class AnchorKey:
    """A private key that signs anchors. Made by `new_key` and `read_key`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public_key(self) -> str:
        """32 bytes in hexadecimal: the key for verification."""
        return _hex(self._key.public_key())

    def sign(self, content: bytes) -> bytes:
        """The Ed25519 signature of these bytes."""
        return self._key.sign(content)


def new_key(path: Path) -> AnchorKey:
    """Make a key in a new file of mode 0600 (PKCS 8 in PEM, not encrypted). Raises `CallerError` if there is a file
    already, which is never replaced, `StorageFailed`, `NotPrivate`."""
    from cryptography.hazmat.primitives import serialization

    key = _ed25519()[0].Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    content = key.private_bytes(encoding, form, serialization.NoEncryption())
    try:
        if not path.parent.exists():
            make_private_folder(path.parent)
        descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fsync_folder(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)  # half a key, which this call has made
            raise
    except FileExistsError:
        raise CallerError(f"{path} is there already; a key is never replaced: choose another file") from None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot write the key: {error.strerror or error}") from error
    return AnchorKey(key)


def read_key(path: Path) -> AnchorKey:
    """The key in a file, which must belong to this user and is tightened to mode 0600. Raises `CallerError`,
    `StorageFailed`, `NotPrivate`."""
    ed25519, _ = _ed25519()
    from cryptography.hazmat.primitives import serialization

    try:
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            content = file.read(_KEY_BYTES_MAX)
    except FileNotFoundError:
        raise CallerError(f"there is no key {path}; --new-key makes one") from None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot read the key: {error.strerror or error}") from error
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise CallerError(f"{path} holds no private key in PEM without a password") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CallerError(f"{path} holds a key that is not Ed25519")
    return AnchorKey(key)


def public_key_in(path: Path) -> str:
    """The public key in a file, in hexadecimal: 64 hexadecimal digits, or PEM. Raises `CallerError`."""
    ed25519, _ = _ed25519()
    from cryptography.hazmat.primitives import serialization

    try:
        with path.open("rb") as file:
            content = file.read(_KEY_BYTES_MAX).strip()
        if content.startswith(b"-----"):
            key = serialization.load_pem_public_key(content)
            if isinstance(key, ed25519.Ed25519PublicKey):
                return _hex(key)
        elif len(found := bytes.fromhex(content.decode())) == 32:
            return found.hex()
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError:
        pass
    raise CallerError(f"{path} holds no public key: 64 hexadecimal digits, or an Ed25519 key in PEM")


def take_anchor(store: ReadableStore) -> Anchor:
    """The anchor of a store as it is now, not signed yet. Only reads, also beside a writer; of each partition the last
    event, in a fraction of a millisecond. Raises what opening and reading a store raises."""
    heads, links = {}, {}
    for partition in range(store.partitions):
        reader = store.open_reader(partition)
        try:
            head = reader.head()
            records = reader.read(head - 1, 1) if head else []
            heads[partition], links[partition] = head, chain_of(records[0]).hex() if records else ""
        finally:
            reader.close()
    return Anchor(store.store_id, heads, links, datetime.now(UTC).isoformat(timespec="seconds"))


def differences(anchor: Anchor, store: ReadableStore) -> dict[int, str]:
    """Partition -> in what the store differs from what was anchored; empty if all of it is unchanged. It checks the
    anchored events alone; `rayfold verify` checks that the events before each of them match its link. A difference that
    is not of one partition stands under -1.
    """
    if anchor.store_id != store.store_id:
        return {-1: f"the anchor is of store {anchor.store_id}, and this is store {store.store_id}"}
    if set(anchor.heads) != set(range(store.partitions)):
        return {-1: f"the anchor has {len(anchor.heads)} partitions, and the store {store.partitions}"}
    found: dict[int, str] = {}
    for partition in range(store.partitions):
        reader = store.open_reader(partition)
        try:
            if why := _difference(anchor, partition, reader):
                found[partition] = why
        finally:
            reader.close()
    return found


def _difference(anchor: Anchor, partition: int, reader: Reader) -> str:
    position = anchor.heads[partition]
    if not position:
        return ""
    records = reader.read(position - 1, 1)
    if not records:
        return f"the log was cut: it has {reader.head():,} events, and had {position:,} when it was anchored"
    link = chain_of(records[0]).hex()
    if link == anchor.links[partition]:
        return ""
    had = anchor.links[partition]
    return f"the log was changed or exchanged: event {position:,} has the link {link}, and had {had}"


def _is_number(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _hex(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def _ed25519() -> tuple[Any, type[Exception]]:
    """The module, and what it raises for a wrong signature. Raises `CallerError` where it is not installed."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise CallerError("signing needs the package cryptography: pip install rayfold[anchor]") from None
    return ed25519, InvalidSignature
