"""Durable: small files that are there whole or not at all, and the checksum of the facts in them.

Beside the write path: the manifest of a store, its map, the identity of a node, checkpoints in memory, what
subscriptions have acknowledged, backups.

Rule kept here: a file is written beside its place, fsynced, moved there, and then its folder is fsynced, in this order.
Whatever is cut short leaves the file that was there before.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from .errors import StoreMismatch
from .private import open_private

__all__ = ["checksum_of", "decode_facts", "encode_facts", "fsync_folder", "write_durably"]


def write_durably(path: Path, *content: bytes) -> None:
    """Make `content` the file at `path`, mode 0600, in place of any that is there. Raises `OSError`, `NotPrivate`."""
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        for piece in content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum_of(facts: dict[str, Any]) -> str:
    """CRC-32 over the facts as sorted compact JSON, in hexadecimal."""
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True, separators=(',', ':')).encode()):08x}"


def encode_facts(facts: dict[str, Any]) -> bytes:
    """Facts as the JSON that people can read, with their checksum."""
    return (json.dumps({**facts, "checksum": checksum_of(facts)}, indent=2) + "\n").encode()


def decode_facts(content: bytes, path: Path, name: str, remedy: str) -> dict[str, Any]:
    """What `encode_facts` made. Raises `StoreMismatch`, which names `name` as damaged, with the remedy."""
    try:
        facts: dict[str, Any] = json.loads(content)
        checksum = facts.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise StoreMismatch(str(path), f"{name} is damaged: it is not what was written", remedy) from error
    if checksum != checksum_of(facts):
        raise StoreMismatch(str(path), f"{name} is damaged: its checksum is wrong", remedy)
    return facts
