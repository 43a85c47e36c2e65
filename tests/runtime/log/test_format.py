"""The bytes of the log: that they round-trip, are bounded, and are those that `docs/log-format.md` shows."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.errors import Damaged
from rayfold.runtime.log import identity
from rayfold.runtime.log.contract import Append, NewEvent, StoredEvent
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.format import (
    BODY_AT,
    CHAIN_START,
    DATABASES,
    RECORD_BYTES_MAX,
    NextRecord,
    body_start,
    chain_of,
    decode_record,
    encode_record,
    next_chain,
    record_position,
    split_versioned_key,
    stream_id,
    versioned_key,
)
from rayfold.runtime.stream import ANY, StreamId
from tests.runtime.log.appends import ROOT

PAGE = (ROOT / "docs" / "log-format.md").read_text()

idents = st.text(min_size=1, max_size=100).filter(lambda text: _encodable(text))
type_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", fullmatch=True)
streams = st.builds(StreamId, type_names, idents)
versions = st.integers(min_value=1, max_value=(1 << 64) - 1)
ids = st.binary(min_size=16, max_size=16)


def _encodable(text: str) -> bool:
    try:
        return len(text.encode()) <= 400
    except UnicodeEncodeError:
        return False


@pytest.mark.slow
@given(streams, versions, versions, type_names, st.integers(1, 1 << 40), st.binary(max_size=300), ids, ids)
def test_a_record_gives_back_what_went_into_it(
    stream: StreamId, position: int, version: int, name: str, schema: int, payload: bytes, by: bytes, cause: bytes
) -> None:
    at = NextRecord(position, CHAIN_START, stream, version, 1_700_000_000_000_000, by, b"", cause)
    record = encode_record(at, NewEvent(name, schema, payload))
    assert decode_record(record) == StoredEvent(
        position, stream, version, name, schema, payload, 1_700_000_000_000_000, by, b"", cause
    )
    assert record_position(record) == position
    assert chain_of(record) == next_chain(CHAIN_START, record)
    assert record.startswith(body_start(stream, version), BODY_AT)


@given(streams, versions, streams, versions)
def test_keys_of_streams_and_versions_sort_by_version_and_never_run_into_each_other(
    stream: StreamId, version: int, other: StreamId, other_version: int
) -> None:
    key = versioned_key(stream.key, version)
    assert split_versioned_key(key) == (stream, version)
    assert len(versioned_key(stream_id("T" * 64, "é" * 200).key, version)) <= 511
    assert (versioned_key(stream.key, other_version) < key) == (other_version < version)
    assert versioned_key(other.key, version).startswith(stream.key) == (other == stream)


@pytest.mark.parametrize("key", [b"", b"\x05", b"\x01a\x00\x05b" + bytes(8), b"\x01a\x00\x01b" + bytes(9)])
def test_bytes_that_are_no_key_are_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="is not a stream and a version"):
        split_versioned_key(key)


def sealed(body: bytes) -> bytes:
    """A record with a good checksum around any body."""
    rest = (1).to_bytes(8, "big") + CHAIN_START + body
    return zlib.crc32(rest).to_bytes(4, "big") + rest


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"a": 1}),
        msgpack.packb(17),
        msgpack.packb(["T", "i", 1, 1, "N", 1, b"", b"", b"", b"", b""]),
        msgpack.packb(["T", "i", 1, 1, "N", 1, {"a": {}}, b"", b"", b""]),
        msgpack.packb(["T", "i" * 5_000, 1, 1, "N", 1, b"", b"", b"", b""]),
        msgpack.packb(["T", "i", 1, 1, "N", 1, b"", b"", b"", b""]) + b"more",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x9a\xa1\xff" + msgpack.packb(["i", 1, 1, "N", 1, b"", b"", b"", b""])[1:],
    ],
)
def test_a_body_that_is_not_that_of_an_event_is_damaged_whatever_its_checksum(body: bytes) -> None:
    with pytest.raises(Damaged, match="record is damaged: its body is not that of an event"):
        decode_record(sealed(body))


def test_a_payload_beyond_what_may_be_stored_is_not_decoded() -> None:
    body = msgpack.packb(["T", "i", 1, 1, "N", 1, bytes(RECORD_BYTES_MAX + 1), b"", b"", b""])
    with pytest.raises(Damaged, match="exceeds max_bin_len"):
        decode_record(sealed(body))


def test_a_record_shorter_than_its_header_is_damaged() -> None:
    with pytest.raises(Damaged, match="it has 43 bytes, fewer than the 44 of a record's header"):
        decode_record(bytes(43))


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _as_the_page_says(indexed_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexed at once, and with a secret that counts from 0."""
    monkeypatch.setattr(identity, "token_bytes", lambda size: bytes(range(size)))


def example_of(path: Path) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Database, key and value of every pair in the log of the page's worked example."""
    whose = "0b6c1bd2-6e0c-4d5c-9b0e-3f6f0d9a5a11/00000"
    log = open_log(path, "partition 0", identity=whose, now_us=lambda: 1_700_000_000_000_000)
    epoch = log.activate()
    payload = msgpack.packb({"amount": 100})
    events = (NewEvent("Deposited", 1, payload), NewEvent("Thanked", 1, b"\x80"))
    log.append(
        epoch,
        [
            Append(
                StreamId("Account", "alice"),
                ANY,
                events,
                command_id=b"command-id-16-b.",
                command_digest=b"digest----20-bytes--",
                snapshot=b"\x81\xa7balanced",
                snapshot_schema=b"v1",
            )
        ],
    )
    for name in DATABASES:
        database = log.environment.database(name)
        for key, value in log.environment.read(lambda txn, of=database: list(txn.cursor(of).iternext())):  # type: ignore[misc]
            yield name, key, value
    log.close()


def dump(data: bytes, indent: str) -> str:
    """Hexadecimal and text, 16 bytes a line; a star for lines that are as the one before."""
    lines: list[str] = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        if at and part == data[at - 16 : at]:
            lines += [f"{indent}*"] if not lines[-1].endswith("*") else []
            continue
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{indent}{at:3d}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def worked_example(path: Path) -> str:
    """The block of `docs/log-format.md` that shows every byte of a small log."""
    return "\n".join(
        f"{name.decode()}\n  key\n{dump(key, '    ')}\n  value\n{dump(value, '    ')}"
        for name, key, value in example_of(path)
    )


def test_the_worked_example_of_the_page_is_what_the_code_writes(tmp_path: Path) -> None:
    assert f"```text\n{worked_example(tmp_path)}\n```" in PAGE


def test_the_recipe_of_the_page_checks_a_record_with_nothing_of_rayfold(tmp_path: Path) -> None:
    """The page shows how to check a record with the standard library: that very code, on the example's records."""
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    records = [value for name, _, value in example_of(tmp_path) if name == b"events"]
    space = {"zlib": zlib, "hashlib": hashlib, "records": records}
    exec(recipe, space)
    assert space["checked"] == len(records) == 2
    broken = {**space, "records": [records[0], records[1][:-1] + b"\1"]}
    with pytest.raises(AssertionError):
        exec(recipe, broken)
