"""The simulation: finds nothing in the real parts, runs the same story for the same seed, and finds planted bugs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rayfold.actors.client.routing import Routing
from rayfold.actors.partition.request_order import RequestOrder
from rayfold.benchmarks.torture.contract import Findings
from rayfold.benchmarks.torture.simulation.running import COMMANDS
from rayfold.benchmarks.torture.simulation.story import draw
from rayfold.benchmarks.torture.simulation.world import Build
from rayfold.runtime.encoding.envelope import PackedCommand, _pack, new_command_id, unpack_batch
from rayfold.runtime.errors import RayfoldError, Rejected
from rayfold.runtime.log.contract import Append, Appended, CommandEntry
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import ANY
from rayfold.runtime.write.write_loop import Batch, WriteLoop, _Decided

STORIES = 100
HUNTED_MAX = 1500
"""Stories until a planted bug must have been found."""

LIKELY = (923,)
"""What has shown a planted bug that hardly any other story shows, and is tried first; where the stories have changed,
all of them are."""


@pytest.mark.slow
def test_no_story_of_the_real_parts_breaks_an_invariant() -> None:
    total = Findings()
    failure = COMMANDS.find_failure(range(STORIES), total=total)
    assert failure is None, "\n".join(failure.lines())
    assert total.figures["stories"] == STORIES
    assert set(total.checks) == {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9"}


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = COMMANDS.run(draw(7)), COMMANDS.run(draw(7))
    assert first.checks == second.checks
    assert draw(7) == draw(7) != draw(8)


# Planted bugs -----------------------------------------------------------------------------------------------------


class AcknowledgesBeforeTheCommit(WriteLoop):
    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        head, done = 1000, []
        for command in commands:
            done.append(Receipt(command.stream, self.partition, head, 1, command.command_id))
        return Batch([*done], [])


class AdoptsBeforeTheAppend(WriteLoop):
    def _decide_all(self, *arguments: Any) -> _Decided:
        decided = super()._decide_all(*arguments)
        for stream, aggregate in decided.working.items():
            self.residents.put_back(aggregate, stream)
        return decided


class StandsByRefusalsWhenFenced(WriteLoop):
    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        return Batch([outcome if outcome is not None else error for outcome in decided.outcomes], [])


class IgnoresExpectedVersions(WriteLoop):
    def execute(self, commands: Sequence[PackedCommand], *fallen: object) -> Batch:
        return super().execute([command._replace(expected_version=ANY) for command in commands])

    def _build_append(self, *arguments: Any) -> Append:
        return super()._build_append(*arguments)._replace(expected_version=ANY)


class ForgetsCommandIds(MemoryLog):
    def find_command(self, command_id: bytes) -> CommandEntry | None:
        return None

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        self._commands.clear()
        return super().append(epoch, appends)


class HasNoFence(MemoryLog):
    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        return super().append(self._epoch, appends)


class AdmitsLateAttempts(RequestOrder):
    def admit(self, client: bytes, attempt: int, predecessor: int) -> bool:
        self._last.pop(client, None)
        return super().admit(client, attempt, 0)


class IgnoresPredecessors(RequestOrder):
    def admit(self, client: bytes, attempt: int, predecessor: int) -> bool:
        return super().admit(client, attempt, 0)


def _pretend(model: ReadModel, partition: int, position: int) -> None:
    """Set it to another position than its own."""
    model.positions[partition] = position
    model._kept._at.positions[partition] = position


class PassesOverGaps(ReadModel):
    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int = 0) -> None:
        if first > self.positions[partition] + 1:
            _pretend(self, partition, first - 1)
        super().apply(partition, first, records, head)


class MissesGapsOfOne(ReadModel):
    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int = 0) -> None:
        if first == self.positions[partition] + 2:
            _pretend(self, partition, first - 1)
        super().apply(partition, first, records, head)


class AppliesTwice(ReadModel):
    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int = 0) -> None:
        _pretend(self, partition, min(self.positions[partition], first - 1))
        super().apply(partition, first, records, head)


class SaysItIsFurtherThanItIs(ReadModel):
    def answer(self, queries: Sequence[tuple[str, bytes]], encode: Any, key: bytes = bytes(16)) -> Any:
        def further(answers: list[Any]) -> Any:
            true = dict(self.positions)
            self.positions.update({partition: position + 1 for partition, position in true.items() if position})
            encoded = encode(answers)
            self.positions.update(true)
            return encoded

        return super().answer(queries, further, key)


class SendsAgainUnderANewId(Routing):
    def _send_again(self, destination: Any) -> None:
        for batch in destination.held.values():
            for pending in batch:
                command = next(unpack_batch(pending.blob))
                pending.blob = _pack(command._replace(command_id=new_command_id()))
        super()._send_again(destination)


class TakesALostAnswerForARefusal(Routing):
    def answered(self, now_s: float, attempt: int, answer: bytes | None) -> None:
        destination = self._attempted.get(attempt)
        if answer is None and destination is not None:
            for pending in destination.flights[attempt]:
                self._resolve(pending, Rejected("lost"))
        super().answered(now_s, attempt, answer)


class SendsAgainInTheWrongOrder(Routing):
    def _send_again(self, destination: Any) -> None:
        for batch in destination.held.values():
            batch.reverse()
        super()._send_again(destination)


@pytest.mark.parametrize(
    "build",
    [
        Build(write_loop=AcknowledgesBeforeTheCommit),
        Build(write_loop=AdoptsBeforeTheAppend),
        Build(write_loop=StandsByRefusalsWhenFenced),
        Build(write_loop=IgnoresExpectedVersions),
        Build(log=ForgetsCommandIds),
        Build(log=HasNoFence),
        Build(attempts=AdmitsLateAttempts),
        Build(attempts=IgnoresPredecessors),
        Build(read_model=PassesOverGaps),
        Build(read_model=MissesGapsOfOne),
        Build(read_model=AppliesTwice),
        Build(read_model=SaysItIsFurtherThanItIs),
        Build(routing=SendsAgainUnderANewId),
        Build(routing=TakesALostAnswerForARefusal),
        Build(routing=SendsAgainInTheWrongOrder),
    ],
    ids=lambda build: next(
        part.__name__ for part in (build.write_loop, build.log, build.attempts, build.read_model, build.routing)
        if part.__module__ == __name__
    ),
)  # fmt: skip
def test_a_planted_bug_is_found(build: Build) -> None:
    found = any(COMMANDS.run(draw(seed), build).violations for seed in (*LIKELY, *range(HUNTED_MAX)))
    assert found, f"{build} went through {HUNTED_MAX} stories"


def test_a_failing_story_is_told_as_short_as_it_gets() -> None:
    failure = COMMANDS.find_failure(range(100), Build(log=HasNoFence))
    assert failure is not None
    assert len(failure.story.acts) + len(failure.story.faults) <= 8, failure.lines()
    assert any("two copies" in line for line in failure.lines())
    assert failure.lines()[0] == f"seed {failure.story.seed}"
    assert failure.findings.violations


def test_nothing_is_left_of_a_story_in_which_everything_fails() -> None:
    from rayfold.benchmarks.torture.simulation.story import shortest

    short = shortest(draw(3), lambda story: True)
    assert (short.acts, short.faults) == ((), ())
