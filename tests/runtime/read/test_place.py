"""Places: the ways to give one, and their tokens."""

from __future__ import annotations

import base64
import zlib
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.errors import InvalidMessage
from rayfold.runtime.read.positions import join_place, place_asked, place_of_token, token_of_place
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.store import Store
from rayfold.runtime.stream import StreamId

STORE = Store(Path("bank-data"), str(UUID(int=7)), 4)
SECRET = bytes(range(32))
PLACES = st.dictionaries(st.integers(0, 3), st.integers(1, 2**64 - 1))


@given(PLACES)
def test_a_token_means_the_place_it_was_made_of(place: dict[int, int]) -> None:
    assert place_of_token(token_of_place(place, STORE, SECRET), STORE, SECRET) == place


def test_the_bytes_of_a_token_are_these() -> None:
    content = bytes([2]) + UUID(int=7).bytes + bytes([0, 2]) + bytes([0, 0, 0, 0, 0, 0, 1, 44])
    content += blake2b(content, key=SECRET, digest_size=12, person=b"rayfold token").digest()
    written = base64.urlsafe_b64encode(content + zlib.crc32(content).to_bytes(4)).rstrip(b"=").decode()
    assert token_of_place({2: 300, 3: 0}, STORE, SECRET) == written


def test_a_token_of_another_store_or_version_is_refused_by_name() -> None:
    token = token_of_place({1: 5}, STORE, SECRET)
    told = f"is of the store {UUID(int=7)}, and this is the store {UUID(int=8)}; begin a session without it"
    with pytest.raises(InvalidMessage, match=told):
        place_of_token(token, Store(Path("other"), str(UUID(int=8)), 4), SECRET)
    with pytest.raises(InvalidMessage, match="is of version 3, and this runtime reads version 2"):
        place_of_token(token_with(bytes([3]) + content_of(token)[1:]), STORE, SECRET)
    unsigned = bytes([1]) + content_of(token)[1:-12]
    with pytest.raises(InvalidMessage, match="is of version 1, and this runtime reads version 2"):
        place_of_token(token_with(unsigned), STORE, SECRET)


def test_a_token_that_was_made_up_is_refused() -> None:
    signed = content_of(token_of_place({1: 5}, STORE, SECRET))
    for made_up in (
        token_of_place({1: 5}, STORE, b"a guess"),
        token_with(signed[:-13] + bytes([signed[-13] ^ 1]) + signed[-12:]),
        token_with(signed[:-1] + bytes([signed[-1] ^ 1])),
    ):
        with pytest.raises(InvalidMessage, match="is not signed by this store; begin a session without it"):
            place_of_token(made_up, STORE, SECRET)
    for cut in (signed[:-12], signed[:-1], signed[:17]):
        with pytest.raises(InvalidMessage, match="is not a text|is not signed"):
            place_of_token(token_with(cut), STORE, SECRET)


def content_of(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-4]


def token_with(content: bytes) -> str:
    return base64.urlsafe_b64encode(content + zlib.crc32(content).to_bytes(4)).rstrip(b"=").decode()


@given(PLACES, PLACES)
def test_a_place_only_grows(before: dict[int, int], seen: dict[int, int]) -> None:
    joined = dict(before)
    join_place(joined, seen)
    assert joined == {part: max(before.get(part, 0), seen.get(part, 0)) for part in before.keys() | seen.keys()}


def test_a_receipt_of_another_store_is_refused_by_name_wherever_a_place_is_asked_for() -> None:
    receipt = Receipt(StreamId("Account", "alice"), 0, 7, 1, bytes(16), False, "store-before")
    assert place_asked(receipt, 4, "store-before") == place_asked([receipt], 4) == {0: 7}
    for after in (receipt, [receipt], [receipt._replace(store_id=""), receipt]):
        with pytest.raises(
            InvalidMessage, match=r"the receipt is of the store store-before, and this is the store now"
        ):
            place_asked(after, 4, "now")


@pytest.mark.parametrize("after", [{4: 1}, {0: -1}, {0: True}, {0: 1.0}, {"0": 1}])
def test_what_is_no_place_in_this_store_is_refused(after: dict[int, int]) -> None:
    with pytest.raises(InvalidMessage, match=r"is not a position in this store; its partitions are 0 to 3"):
        place_asked(after, 4)
