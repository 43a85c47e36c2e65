"""Streams: what an id may be, that two ids are never taken for one, and where a stream belongs."""

from __future__ import annotations

import itertools
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.errors import InvalidId
from rayfold.runtime.log.format import stream_id
from rayfold.runtime.stream import ANY, ID_BYTES_MAX, NO_STREAM, StreamId, partition_of

LMDB_KEY_BYTES_MAX = 511
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)
TYPES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", fullmatch=True)


def test_a_stream_is_named_by_its_type_and_id() -> None:
    stream = stream_id("Account", "alice")
    assert (stream.type, stream.id) == ("Account", "alice")
    assert str(stream) == "Account/alice"
    assert (ANY, NO_STREAM) == (-1, 0)


@pytest.mark.parametrize("ident", ["a", "x" * ID_BYTES_MAX, "ä" * 200, "😀" * 100, "\0", "..", "a/b/../c", " ", "\n"])
def test_an_id_may_be_any_text_of_at_most_400_bytes(ident: str) -> None:
    assert stream_id("Account", ident).id == ident


@pytest.mark.parametrize(
    ("ident", "text"),
    [
        ("", "aggregate id '' is empty"),
        ("x" * 401, f"aggregate id '{'x' * 57}...' has 401 characters, over 400 bytes of UTF-8"),
        ("x" * 4_000_000, f"aggregate id '{'x' * 57}...' has 4,000,000 characters, over 400 bytes of UTF-8"),
        ("ä" * 201, f"aggregate id '{'ä' * 57}...' has 402 bytes of UTF-8, over 400"),
        ("a\ud800", "aggregate id \"'a\\\\ud800'\" is not well-formed Unicode"),
        (5, "aggregate id '5' is int, not str"),
        (None, "aggregate id 'None' is NoneType, not str"),
        (b"alice", "aggregate id \"b'alice'\" is bytes, not str"),
    ],
    ids=["empty", "long", "very long", "many bytes", "surrogate", "int", "None", "bytes"],
)
def test_what_cannot_be_an_id_is_refused_by_name(ident: Any, text: str) -> None:
    with pytest.raises(InvalidId) as raised:
        stream_id("Account", ident)
    assert str(raised.value) == text


@pytest.mark.parametrize("name", ["", "1st", "a b", "a/b", "Ä", "a\n", "x" * 65, "-a", ".a", "a\0"])
def test_what_cannot_be_a_type_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidId, match="is not an ASCII name of at most 64 characters"):
        stream_id(name, "alice")


@pytest.mark.parametrize("name", ["A", "_a", "Account", "bank.Account-2", "x" * 64])
def test_a_type_is_an_ascii_name(name: str) -> None:
    assert stream_id(name, "alice").type == name


def test_ids_that_look_alike_are_kept_apart() -> None:
    idents = ["alice", "Alice", "ALICE", "alice ", "alice\0", "alic", "alice/", "é", unicodedata.normalize("NFD", "é")]
    streams = [stream_id(kind, ident) for kind in ("Account", "account", "Accoun") for ident in idents]
    streams += [stream_id("Accoun", "talice"), stream_id("A", "a"), stream_id("A", "aa"), stream_id("AA", "a")]
    assert len({stream.key for stream in streams}) == len(streams)
    for one, other in itertools.permutations(streams, 2):
        assert not other.key.startswith(one.key)


@given(one=st.tuples(TYPES, IDS), other=st.tuples(TYPES, IDS))
def test_no_streams_key_is_the_beginning_of_anothers(one: tuple[str, str], other: tuple[str, str]) -> None:
    keys = stream_id(*one).key, stream_id(*other).key
    assert (keys[0] == keys[1]) == (one == other)
    assert keys[0] == keys[1] or not keys[1].startswith(keys[0])


def test_the_longest_key_fits_lmdb_with_a_version_after_it() -> None:
    key = stream_id("x" * 64, "ä" * 200).key
    assert len(key) + 8 == 475 <= LMDB_KEY_BYTES_MAX


def test_a_key_is_the_same_for_ever() -> None:
    assert stream_id("Account", "Zoë").key == b"\x07Account\x00\x04Zo\xc3\xab"


def test_the_partition_of_a_stream_is_the_same_for_ever() -> None:
    streams = [StreamId("Account", "alice"), StreamId("Account", "Zoë"), StreamId("Vault", "alice")]
    assert [partition_of(stream, 8) for stream in streams] == [5, 0, 2]
    assert [partition_of(stream, 1) for stream in streams] == [0, 0, 0]


def test_streams_spread_evenly_over_partitions() -> None:
    counts = [0] * 8
    for number in range(8_000):
        counts[partition_of(StreamId("Account", f"account-{number}"), 8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1_150
