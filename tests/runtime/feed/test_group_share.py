"""How the members of a group divide the partitions of a store and the streams in them."""

from __future__ import annotations

import pytest

from rayfold import StreamId
from rayfold.runtime.feed.group_share import GroupShare, partitions_of, readers_of

SIZES = [(1, 1), (1, 2), (1, 7), (2, 1), (2, 2), (2, 3), (3, 2), (4, 2), (6, 4), (4, 6), (5, 13), (16, 3), (7, 1024)]


@pytest.mark.parametrize(("partitions", "of"), SIZES)
def test_every_stream_of_every_partition_has_exactly_one_member(partitions: int, of: int) -> None:
    shares = [GroupShare(member, of, "by stream", partitions) for member in range(of)]
    for partition in range(partitions):
        for number in range(40):
            stream = StreamId("Account", f"{partition} {number}")
            assert sum(share.has(partition, stream) for share in shares) == 1


@pytest.mark.parametrize(("partitions", "of"), SIZES)
def test_the_readers_of_a_partition_are_those_that_have_something_of_it(partitions: int, of: int) -> None:
    shares = [partitions_of(member, of, "by stream", partitions) for member in range(of)]
    for partition in range(partitions):
        assert readers_of(partition, of, "by stream", partitions) == [
            member for member in range(of) if partition in shares[member]
        ]
    assert sum(map(len, shares)) <= partitions + of - 1, "each border adds one reader at most"


def test_as_many_members_as_partitions_read_each_event_once() -> None:
    assert [partitions_of(member, 6, "by stream", 6) for member in range(6)] == [[0], [1], [2], [3], [4], [5]]
    assert [partitions_of(member, 3, "by stream", 6) for member in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert [partitions_of(member, 4, "by stream", 6) for member in range(4)] == [[0, 1], [1, 2], [3, 4], [4, 5]]


def test_members_have_equally_much_whatever_the_numbers() -> None:
    shares = [GroupShare(member, 3, "by stream", 2) for member in range(3)]
    streams = [(number % 2, StreamId("Account", str(number))) for number in range(6_000)]
    counts = [sum(share.has(*stream) for stream in streams) for share in shares]
    assert all(1_800 < count < 2_200 for count in counts)


def test_by_key_every_member_reads_everything() -> None:
    assert partitions_of(1, 3, "by key", 4) == [0, 1, 2, 3]
    assert readers_of(2, 3, "by key", 4) == [0, 1, 2]
