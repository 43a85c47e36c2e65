"""The simulation of queries and broadcasts over sockets: finds nothing in the real parts, and finds each planted bug
within so many stories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rayfold.actors.client.query_protocol import QueryClientProtocol
from rayfold.actors.client.replica_pool import ReplicaPool
from rayfold.actors.partition.broadcast import Link, Recipient
from rayfold.actors.partition.broadcast_protocol import BroadcastClientProtocol
from rayfold.actors.partition.projector_links import ProjectorLink
from rayfold.actors.projection.broadcast_protocol import BroadcastServerProtocol, Committed
from rayfold.actors.projection.query_protocol import Asked, Awaited, QueryServerProtocol
from rayfold.actors.projection.waiting_queries import WaitingQueries, WaitingQuery
from rayfold.benchmarks.torture.contract import Findings
from rayfold.benchmarks.torture.simulation.query_world import QueryBuild, draw_query_story
from rayfold.benchmarks.torture.simulation.running import QUERIES

pytestmark = pytest.mark.slow

STORIES = 60
HUNTED_MAX = 200
"""Stories until a planted bug must have been found."""


def test_no_story_of_the_real_parts_breaks_an_invariant() -> None:
    total = Findings()
    failure = QUERIES.find_failure(range(STORIES), total=total)
    assert failure is None, "\n".join(failure.lines())
    assert total.figures["stories"] == STORIES
    assert int(total.figures["broadcasts"]) > STORIES, "over sockets"


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = QUERIES.run(draw_query_story(7)), QUERIES.run(draw_query_story(7))
    assert first.checks == second.checks


# Planted bugs -----------------------------------------------------------------------------------------------------


class WakesOnePositionTooSoon(WaitingQueries):
    def wake(self, positions: Mapping[int, int]) -> list[WaitingQuery]:
        return super().wake({partition: position + 1 for partition, position in positions.items()})


class WakesNobody(WaitingQueries):
    def wake(self, positions: Mapping[int, int]) -> list[WaitingQuery]:
        return []


class ForgetsWhatFollowsASplitFrame(QueryServerProtocol):
    def receive(self, data: bytes) -> list[Asked | Awaited]:
        calls = super().receive(data)
        if calls and self._reader.within:
            self._reader._received.clear()
        return calls


class MixesUpQueriesOfACall(QueryServerProtocol):
    def some(
        self,
        call: int,
        answers: Sequence[tuple[int, bytes | None]],
        positions: Mapping[int, int],
        incarnation: bytes,
    ) -> bytes:
        left = self._left[call]
        return super().some(call, [(left - 1, answer) for _, answer in answers], positions, incarnation)


class ForgetsCallsOfALostConnection(QueryClientProtocol):
    def end(self) -> list[int]:
        return []


class BelievesTheFormerProcess(ReplicaPool):
    """And has the replica answer from wherever it is."""

    def _send_as(self, call: Any) -> None:
        for asked in call.batch:
            asked.after = {}
        super()._send_as(call)

    def _next_replica(self, after: Mapping[int, int]) -> Any:
        replica = super()._next_replica(after)
        for partition, position in after.items():
            replica.positions[partition] = max(position, replica.positions.get(partition, 0))
        return replica


class SendsTheRestOfAFrameAnew(BroadcastClientProtocol):
    def sent(self, size_bytes: int) -> None:
        super().sent(size_bytes)
        self._at = 0


class KeepsQuietAboutWhatWasLeftOut(BroadcastClientProtocol):
    def put(self, frame: bytes, head: int) -> None:
        super().put(frame, head)
        self._left_out = 0


class ForgetsTheBeginningOfASplitBroadcast(BroadcastServerProtocol):
    def receive(self, data: bytes) -> list[Committed]:
        came = super().receive(data)
        if came and self.within:
            self._reader._received.clear()
        return came


class KeepsQuietAboutALostLink(Recipient):
    def _lost(self, link: Link) -> None:
        self._choice.lost(link, self._broadcast.now_s(), answered=True)


class SendsToALostLink(Recipient):
    def put(self, committed: Any) -> None:
        link = self._choice.connection
        if link is None:
            super().put(committed)
        else:
            link.put(committed.frame, committed.head)

    def _lost(self, link: Link) -> None:
        pass


class NeverSendsTheRest(ProjectorLink):
    def send_more(self) -> None:
        pass


@pytest.mark.parametrize(
    "build",
    [
        QueryBuild(waiting=WakesOnePositionTooSoon),
        QueryBuild(waiting=WakesNobody),
        QueryBuild(server=ForgetsWhatFollowsASplitFrame),
        QueryBuild(server=MixesUpQueriesOfACall),
        QueryBuild(client=ForgetsCallsOfALostConnection),
        QueryBuild(pool=BelievesTheFormerProcess),
        QueryBuild(ends=SendsTheRestOfAFrameAnew),
        QueryBuild(ends=KeepsQuietAboutWhatWasLeftOut),
        QueryBuild(reads=ForgetsTheBeginningOfASplitBroadcast),
        QueryBuild(recipient=KeepsQuietAboutALostLink),
        QueryBuild(recipient=SendsToALostLink),
        QueryBuild(link=NeverSendsTheRest),
    ],
    ids=lambda build: next(
        part.__name__ for part in dataclasses.astuple(build) if getattr(part, "__module__", "") == __name__
    ),
)
def test_a_planted_bug_is_found(build: QueryBuild) -> None:
    assert any(QUERIES.run(draw_query_story(seed), build).violations for seed in range(HUNTED_MAX))
