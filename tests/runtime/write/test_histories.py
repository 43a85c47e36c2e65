"""Random histories of the write loop: commands, repeats, full disks, crashes at every step, reopenings, take-overs.

And whether they would find anything: loops with one planted bug each, every one of which has to be caught.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from rayfold.runtime.domain.aggregate import Aggregate
from rayfold.runtime.domain.messages import Event
from rayfold.runtime.encoding.envelope import PackedCommand
from rayfold.runtime.encoding.saved_state import encode_state
from rayfold.runtime.errors import Fenced, RayfoldError
from rayfold.runtime.log.contract import Append, Appended, CommandEntry
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import ANY, StreamId
from rayfold.runtime.write.write_loop import Batch, WriteLoop, _Decided
from tests.support.histories import machine

pytestmark = pytest.mark.slow

IN_MEMORY = settings(
    max_examples=200, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
ON_DISK = settings(IN_MEMORY, max_examples=60)
HUNTING = settings(IN_MEMORY, max_examples=300, derandomize=True, database=None, phases=[Phase.generate])
"""Stops at the first history that shows the bug; a shorter one would be of no use here."""


def test_random_histories_in_memory_are_as_the_model_says() -> None:
    run_state_machine_as_test(machine(), settings=IN_MEMORY)


def test_random_histories_on_disk_are_as_the_model_says() -> None:
    run_state_machine_as_test(machine(disk=True), settings=ON_DISK)


class AdoptsBeforeTheAppend(WriteLoop):
    def _decide_all(
        self, commands: Sequence[PackedCommand], stored: dict[bytes, CommandEntry | RayfoldError]
    ) -> _Decided:
        decided = super()._decide_all(commands, stored)
        for stream, aggregate in decided.working.items():
            self.residents.put_back(aggregate, stream)
        return decided


class KeepsWhatWasNotAppended(WriteLoop):
    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        for stream, aggregate in decided.working.items():
            self.residents.put_back(aggregate, stream)
        return super()._fail_batch(commands, decided, error)


class AcknowledgesWhatWasNotAppended(WriteLoop):
    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        batch = super()._fail_batch(commands, decided, error)
        outcomes = [Receipt(command.stream, 0, 1, 1, command.command_id) for command in commands]
        return batch._replace(outcomes=[*outcomes])


class StandsByRefusalsOfALostBatch(WriteLoop):
    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        if isinstance(error, Fenced):
            return super()._fail_batch(commands, decided, error)
        return Batch([outcome if outcome is not None else error for outcome in decided.outcomes], [])


class LooksUpNoCommandIds(WriteLoop):
    def _find_stored(self, commands: Sequence[PackedCommand]) -> dict[bytes, CommandEntry | RayfoldError]:
        return {}


class MissesRepeatsInsideABatch(WriteLoop):
    def _decide_all(
        self, commands: Sequence[PackedCommand], stored: dict[bytes, CommandEntry | RayfoldError]
    ) -> _Decided:
        decided = _Decided(len(commands))
        for index, command in enumerate(commands):
            decided.first_use.clear()
            try:
                decided.outcomes[index] = self._decide(index, command, stored.get(command.command_id), decided)
            except Exception as error:
                decided.outcomes[index] = self._handler_failed(command, decided, error)
        return decided


class IgnoresTheExpectedVersion(WriteLoop):
    def execute(self, commands: Sequence[PackedCommand], *fallen: object) -> Batch:
        return super().execute([command._replace(expected_version=ANY) for command in commands])


class ComparesNoContent(WriteLoop):
    def _decide(
        self, index: int, command: PackedCommand, entry: CommandEntry | RayfoldError | None, decided: _Decided
    ) -> Receipt | RayfoldError | None:
        if isinstance(entry, CommandEntry):
            entry = entry._replace(digest=command.digest(self._secret))
        return super()._decide(index, command, entry, decided)


class KeepsAHalfChangedState(WriteLoop):
    def _handler_failed(self, command: PackedCommand, decided: _Decided, error: BaseException) -> RayfoldError:
        aggregate = decided.working.get(command.stream)
        failed = super()._handler_failed(command, decided, error)
        if aggregate is not None:
            decided.working[command.stream] = aggregate
        return failed


class ForgetsWhatTheBatchDecidedBefore(WriteLoop):
    def _check_out(self, stream: StreamId, decided: _Decided) -> Aggregate:
        if stream not in decided.working:
            decided.working[stream] = self.residents.load(stream)
        return decided.working[stream]


class FailsTheNeighbours(WriteLoop):
    def _handler_failed(self, command: PackedCommand, decided: _Decided, error: BaseException) -> RayfoldError:
        failed = super()._handler_failed(command, decided, error)
        decided.appends.clear()
        decided.outcomes[:] = [failed] * len(decided.outcomes)
        decided.indexes.clear()
        return failed


class SnapshotsTheStateOfBefore(WriteLoop):
    def _build_append(
        self, command: PackedCommand, digest: bytes, aggregate: Aggregate, events: list[Event], decided: _Decided
    ) -> Append:
        before = encode_state(aggregate)
        append = super()._build_append(command, digest, aggregate, events, decided)
        return append._replace(snapshot=before) if append.snapshot else append


class BroadcastsOnlyTheLastEventOfACommand(WriteLoop):
    def _adopt(self, commands: Sequence[PackedCommand], decided: _Decided, appended: Iterable[Appended]) -> Batch:
        return super()._adopt(commands, decided, [done._replace(records=done.records[-1:]) for done in appended])


class RefusesAfterItWasTakenOver(WriteLoop):
    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        refused = list(decided.outcomes)
        batch = super()._fail_batch(commands, decided, error)
        return batch._replace(outcomes=[old or new for old, new in zip(refused, batch.outcomes, strict=True)])


@pytest.mark.parametrize(
    "mutant",
    [
        AdoptsBeforeTheAppend,
        KeepsWhatWasNotAppended,
        AcknowledgesWhatWasNotAppended,
        StandsByRefusalsOfALostBatch,
        LooksUpNoCommandIds,
        MissesRepeatsInsideABatch,
        IgnoresTheExpectedVersion,
        ComparesNoContent,
        KeepsAHalfChangedState,
        ForgetsWhatTheBatchDecidedBefore,
        FailsTheNeighbours,
        SnapshotsTheStateOfBefore,
        BroadcastsOnlyTheLastEventOfACommand,
        RefusesAfterItWasTakenOver,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_loop_with_a_planted_bug_is_caught(mutant: type[WriteLoop]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine(mutant), settings=HUNTING)
