"""The simulation of connections: finds nothing in the real parts, and finds each planted bug within so many stories."""

from __future__ import annotations

from typing import Any

import pytest

from rayfold.actors.client.routing import Destination, PendingCommand, Routing
from rayfold.actors.client.socket_protocol import ClientProtocol
from rayfold.actors.partition.request_order import RequestOrder
from rayfold.actors.partition.socket_protocol import Request, ServerProtocol
from rayfold.actors.sockets.transport_choice import TransportChoice
from rayfold.benchmarks.torture.contract import Findings
from rayfold.benchmarks.torture.simulation.running import CONNECTIONS
from rayfold.benchmarks.torture.simulation.socket_world import SocketBuild, draw_socket_story
from rayfold.runtime.encoding.envelope import _pack, new_command_id, unpack_batch
from rayfold.runtime.encoding.outcome import decode_answer
from rayfold.runtime.errors import Fenced

pytestmark = pytest.mark.slow

STORIES = 40
HUNTED_MAX = 200
"""Stories until a planted bug must have been found."""


def test_no_story_of_the_real_parts_breaks_an_invariant() -> None:
    total = Findings()
    failure = CONNECTIONS.find_failure(range(STORIES), total=total)
    assert failure is None, "\n".join(failure.lines())
    assert total.figures["stories"] == STORIES
    assert set(total.checks) == {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I11", "I12"}


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = CONNECTIONS.run(draw_socket_story(7)), CONNECTIONS.run(draw_socket_story(7))
    assert first.checks == second.checks
    assert draw_socket_story(7) == draw_socket_story(7) != draw_socket_story(8)


# Planted bugs -----------------------------------------------------------------------------------------------------


class ForgetsTheBeginningOfASplitHeader(ServerProtocol):
    def receive(self, data: bytes) -> Request | None:
        request = super().receive(data)
        if self._header is None and self._received:
            self._received = bytes(len(self._received))
        return request


class TakesWhatHasComeForAWholeBatch(ServerProtocol):
    def receive(self, data: bytes) -> Request | None:
        request = super().receive(data)
        if request is None and self._header is not None and self._received:
            _, client, attempt, predecessor = self._header
            request = Request(client, attempt, predecessor, self._received)
            self.__init__()  # type: ignore[misc]  # begins anew at what is the middle of a frame
        return request


class LosesWhatComesWithAnAnswer(ClientProtocol):
    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        answers = super().receive(data)
        if answers:
            self._received.clear()
        return answers


class MatchesAnswersByPosition(Routing):
    def answered(self, now_s: float, attempt: int, answer: bytes | None) -> None:
        destination = self._attempted.get(attempt)
        if destination is not None and answer is not None:
            attempt = next(iter(destination.flights))
        super().answered(now_s, attempt, answer)


class SendsAgainUnderANewId(Routing):
    def _send_again(self, destination: Destination) -> None:
        for batch in destination.held.values():
            for pending in batch:
                command = next(unpack_batch(pending.blob))
                pending.blob = _pack(command._replace(command_id=new_command_id()))
        super()._send_again(destination)


class TellsCallersOfAnOldEpoch(Routing):
    def _read_answer(self, destination: Destination, batch: Any, blob: bytes) -> list[PendingCommand]:
        unanswered = super()._read_answer(destination, batch, blob)
        answers = decode_answer(blob, batch)[0]
        for pending, answered in zip(batch, answers, strict=True):
            if isinstance(answered, Fenced):
                unanswered.remove(pending)
                self._resolve(pending, answered)
        return unanswered


class KeepsTheWindowOfALostConnection(Routing):
    def _send_again(self, destination: Destination) -> None:
        in_flight = destination.queue._in_flight
        super()._send_again(destination)
        destination.queue._in_flight += in_flight


class SendsBesideWhatIsToBeSentAgain(Routing):
    def _send(self, destination: Destination, batch: list[PendingCommand]) -> None:
        held, destination.held = destination.held, {}
        super()._send(destination, batch)
        destination.held = held


class NamesNoPredecessor(Routing):
    def _send(self, destination: Destination, batch: list[PendingCommand]) -> None:
        flights, destination.flights = destination.flights, {}
        super()._send(destination, batch)
        destination.flights = {**flights, **destination.flights}


class LosesWhatWasSetAside(Routing):
    def _bring_back(self, stream: Any) -> None:
        if len(self._parked.get(stream, ())) > 1:
            self._parked[stream].pop()
        super()._bring_back(stream)


class LooksForDeadlinesOnlyOnce(Routing):
    def _sweep(self, now_s: float) -> None:
        super()._sweep(now_s)
        self._sweeping = True


class KeepsAConnectionThatIsLost(TransportChoice[Any]):
    def lost(self, connection: Any, now_s: float, *, answered: bool) -> None:
        kept = self.connection
        super().lost(connection, now_s, answered=answered)
        self.connection = kept


class LetsThroughWhatIsBehindARedirect(RequestOrder):
    def bar(self, client: bytes) -> None:
        pass


class AdmitsLateAttempts(RequestOrder):
    def admit(self, client: bytes, attempt: int, predecessor: int) -> bool:
        self._last.pop(client, None)
        return super().admit(client, attempt, 0)


PLANTED = [
    SocketBuild(server=ForgetsTheBeginningOfASplitHeader),
    SocketBuild(server=TakesWhatHasComeForAWholeBatch),
    SocketBuild(client=LosesWhatComesWithAnAnswer),
    SocketBuild(routing=MatchesAnswersByPosition),
    SocketBuild(routing=SendsAgainUnderANewId),
    SocketBuild(routing=TellsCallersOfAnOldEpoch),
    SocketBuild(routing=KeepsTheWindowOfALostConnection),
    SocketBuild(routing=SendsBesideWhatIsToBeSentAgain),
    SocketBuild(routing=NamesNoPredecessor),
    SocketBuild(routing=LosesWhatWasSetAside),
    SocketBuild(routing=LooksForDeadlinesOnlyOnce),
    SocketBuild(choice=KeepsAConnectionThatIsLost),
    SocketBuild(attempts=LetsThroughWhatIsBehindARedirect),
    SocketBuild(attempts=AdmitsLateAttempts),
]


def name_of(build: SocketBuild) -> str:
    parts = (build.server, build.client, build.routing, build.choice, build.attempts)
    return next(part.__name__ for part in parts if part.__module__ == __name__)


@pytest.mark.parametrize("build", PLANTED, ids=name_of)
def test_a_planted_bug_is_found(build: SocketBuild) -> None:
    found = any(CONNECTIONS.run(draw_socket_story(seed), build).violations for seed in range(HUNTED_MAX))
    assert found, f"{name_of(build)} went through {HUNTED_MAX} stories"


def test_a_failing_story_is_told_as_short_as_it_gets() -> None:
    failure = CONNECTIONS.find_failure(range(100), SocketBuild(choice=KeepsAConnectionThatIsLost))
    assert failure is not None
    assert len(failure.story.acts) + len(failure.story.faults) <= 8, failure.lines()
    assert failure.lines()[0] == f"seed {failure.story.seed}"
    assert failure.findings.violations
