"""The handshake without a socket: what is let through, what is refused, by which words, and never a byte too much."""

from __future__ import annotations

import struct

import msgpack
import pytest

from rayfold.actors.sockets.handshake import GREETING_BYTES_MAX, PROTOCOL_VERSION, Handshake

STORE, OTHER = "5" * 32, "6" * 32


def met(client: Handshake, server: Handshake) -> None:
    server.receive(client.greeting())
    client.receive(server.greeting())


def head(version: int = PROTOCOL_VERSION, size_bytes: int = 0) -> bytes:
    return struct.pack(">7sBH", b"rayfold", version, size_bytes)


def test_two_ends_that_want_the_same_are_done_after_a_greeting_each() -> None:
    client, server = Handshake("partition", STORE), Handshake("partition", STORE)
    met(client, server)
    assert client.done
    assert server.done


def test_a_client_that_names_no_store_learns_which_one_it_is() -> None:
    client, server = Handshake("system"), Handshake("system", STORE)
    met(client, server)
    assert client.done
    assert client.store_id == STORE


@pytest.mark.parametrize(
    ("client", "refused"),
    [
        (Handshake("projector", STORE), "one end is for a partition, and the other one for a projector"),
        (Handshake("partition", OTHER), f"one end has store {STORE}, and the other one store {OTHER}"),
    ],
)
def test_the_other_end_refuses_what_does_not_fit_and_the_client_is_given_the_reason(
    client: Handshake, refused: str
) -> None:
    server = Handshake("partition", STORE)
    met(client, server)
    assert server.refused == refused
    assert client.refused == f"the other end refuses this one: {refused}"
    assert not client.done
    assert not server.done


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 255])
def test_another_version_is_named_with_the_remedy_whatever_follows(version: int) -> None:
    one = Handshake("partition")
    one.receive(head(version, 65535))
    assert one.refused == (
        f"the other end speaks version {version} of the protocol, and this one version 1; "
        "use the same release of rayfold for both"
    )
    assert one.wanted_bytes == 0


def test_a_greeting_that_comes_byte_by_byte_is_the_same_and_no_byte_behind_it_is_asked_for() -> None:
    one, greeting = Handshake("partition", STORE), Handshake("partition", STORE).greeting()
    for at in range(len(greeting)):
        assert 0 < one.wanted_bytes <= len(greeting) - at
        one.receive(greeting[at : at + 1])
    assert one.done
    assert one.rest == b""


def test_what_comes_behind_a_greeting_is_kept_apart() -> None:
    one = Handshake("partition", STORE)
    one.receive(Handshake("partition", STORE).greeting() + b"more")
    assert one.done
    assert one.rest == b"more"


@pytest.mark.parametrize(
    ("came", "refused"),
    [
        (b"GET / HTTP/1.1\r\n", "no greeting of Rayfold's; it begins with b'GET / HTTP/1.1"),
        (b"rayfoul", "no greeting of Rayfold's"),
        (b"\x00", "no greeting of Rayfold's"),
        (head(size_bytes=GREETING_BYTES_MAX + 1), f"a greeting of {GREETING_BYTES_MAX + 1} bytes, over"),
        (head(size_bytes=1) + b"\xc1", "a greeting that cannot be read"),
        (head(size_bytes=1) + b"\x01", "a greeting that cannot be read"),
        (head(size_bytes=5) + b"\xdf\xff\xff\xff\xff", "a greeting that cannot be read"),
        (head(), "a greeting that cannot be read"),
    ],
)
def test_what_is_no_greeting_is_refused_as_soon_as_that_shows(came: bytes, refused: str) -> None:
    one = Handshake("partition")
    one.receive(came)
    assert refused in one.refused
    assert one.wanted_bytes == 0


def test_texts_of_the_other_end_are_bounded_and_have_no_control_characters() -> None:
    one, rest = Handshake("partition"), msgpack.packb({"refused": "\x1b[2J" + "x" * 3000, "later": {"a": [1]}})
    one.receive(head(size_bytes=len(rest)) + rest)
    assert r"\x1b[2Jxxx" in one.refused
    assert len(one.refused) <= 500
