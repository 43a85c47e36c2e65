"""A log that fails as asked for: what a full disk, a lost answer or a killed process does to the write loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rayfold.runtime.errors import Damaged, RayfoldError
from rayfold.runtime.log.contract import STREAM_PAGE_BYTES, Append, Appended, CommandEntry, Holdings, Log, Snapshot
from rayfold.runtime.stream import StreamId

Stage = Literal["before deciding", "while deciding", "before the append", "after the commit", "before the answer"]
STAGES: tuple[Stage, ...] = (
    "before deciding",
    "while deciding",
    "before the append",
    "after the commit",
    "before the answer",
)


class FaultyLog:
    """A log that fails as asked for, once, at a stage; and else does what the log behind it does."""

    def __init__(self, log: Log) -> None:
        self.behind = log
        self.damaged: dict[bytes, Damaged] = {}
        """Command ids whose entries cannot be read."""
        self._faults: dict[Stage, BaseException] = {}

    def fail_once(self, stage: Stage, error: BaseException) -> None:
        self._faults[stage] = error

    def _pass(self, stage: Stage) -> None:
        error = self._faults.pop(stage, None)
        if error is not None:
            raise error

    def activate(self) -> int:
        return self.behind.activate()

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        self._pass("before the append")
        done = self.behind.append(epoch, appends)
        self._pass("after the commit")
        return done

    def head(self) -> int:
        return self.behind.head()

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        return self.behind.read(after, limit, bytes_max)

    def version(self, stream: StreamId) -> int:
        return self.behind.version(stream)

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        return self.behind.read_stream(stream, from_version, to_version, limit, bytes_max)

    def find_command(self, command_id: bytes) -> CommandEntry | None:
        return self.behind.find_command(command_id)

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        self._pass("before deciding")
        damaged = {each: self.damaged[each] for each in command_ids if each in self.damaged}
        return self.behind.find_commands(command_ids) | damaged

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        return self.behind.find_snapshot(stream, schema, at_or_before)

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        self.behind.declare(shapes)

    def secret(self) -> bytes:
        return self.behind.secret()

    def holdings(self) -> Holdings:
        return self.behind.holdings()

    def close(self) -> None:
        self.behind.close()
