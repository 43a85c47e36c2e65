"""Places: the ways to say one, and their tokens."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.errors import InvalidMessage
from rayfold.runtime.log.store import Store
from rayfold.runtime.place import join_place, place_asked, place_of_token, token_of_place

STORE = Store(Path("bank-data"), str(UUID(int=7)), 4)
PLACES = st.dictionaries(st.integers(0, 3), st.integers(1, 2**64 - 1))


@given(PLACES)
def test_a_token_means_the_place_it_was_made_of(place: dict[int, int]) -> None:
    assert place_of_token(token_of_place(place, STORE), STORE) == place


def test_the_bytes_of_a_token_are_these() -> None:
    content = bytes([1]) + UUID(int=7).bytes + bytes([0, 2]) + bytes([0, 0, 0, 0, 0, 0, 1, 44])
    written = base64.urlsafe_b64encode(content + zlib.crc32(content).to_bytes(4)).rstrip(b"=").decode()
    assert token_of_place({2: 300, 3: 0}, STORE) == written


def test_a_token_of_another_store_or_version_is_refused_by_name() -> None:
    token = token_of_place({1: 5}, STORE)
    told = f"is of the store {UUID(int=7)}, and this is the store {UUID(int=8)}; begin a session without it"
    with pytest.raises(InvalidMessage, match=told):
        place_of_token(token, Store(Path("other"), str(UUID(int=8)), 4))
    newer = bytes([2]) + base64.urlsafe_b64decode(token + "==")[1:-4]
    raw = newer + zlib.crc32(newer).to_bytes(4)
    with pytest.raises(InvalidMessage, match="is of version 2, and this runtime reads version 1"):
        place_of_token(base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), STORE)


@given(PLACES, PLACES)
def test_a_place_only_grows(before: dict[int, int], seen: dict[int, int]) -> None:
    joined = dict(before)
    join_place(joined, seen)
    assert joined == {part: max(before.get(part, 0), seen.get(part, 0)) for part in before.keys() | seen.keys()}


@pytest.mark.parametrize("after", [{4: 1}, {0: -1}, {0: True}, {0: 1.0}, {"0": 1}])
def test_what_is_no_place_in_this_store_is_refused(after: dict[int, int]) -> None:
    with pytest.raises(InvalidMessage, match=r"is no position in this store; its partitions are 0 to 3"):
        place_asked(after, 4)
