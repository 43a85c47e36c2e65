"""CourierRouter: the router of a courier. Its commands find their way as those of any program do; those to its own
partition stay in the process.

Step [2] of the write path, for what processes send and are sent. Before it: the courier (`courier_thread.py`). After
it: the partition of the target.

The other partitions are known by name, and looked up when they are needed: they may start later than this one, and
move.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgpack

from ...runtime.encoding.envelope import PackedCommand
from ...runtime.encoding.outcome import Outcome
from ...runtime.errors import RayfoldError
from ...runtime.stream import StreamId
from ..client.command_router import CommandRouter
from ..client.transport import PartitionTransport
from ..settings import Settings

__all__ = ["CourierRouter", "Execute", "LocalPartition", "NamedPartition", "ReportLost"]

_pack = msgpack.Packer(autoreset=True).pack


Execute = Callable[[bytes, int, int, bytes], bytes]
"""Executes a batch (client, attempt, predecessor, commands) in the partition of this process, when it is its turn."""


ReportLost = Callable[[StreamId, str, bool], None]
"""Notifies the partition of this process that one of its own actors (stream, name, whether it has ended) is lost."""


class Caller(Protocol):
    """Gets the outcome of one command."""

    def done(self) -> bool:
        """Whether it has one."""
        ...

    def set_result(self, outcome: Outcome, /) -> None:
        """Here it is."""
        ...


class _NamedMethod:
    """A method of an actor that is looked up when it is called."""

    def __init__(self, actor: NamedPartition, method: str) -> None:
        self._actor, self._method = actor, method

    def remote(self, *arguments: Any) -> Any:
        """Call it. Raises what finding the actor raises."""
        return getattr(self._actor.found(), self._method).remote(*arguments)


class NamedPartition:
    """Stands for the actor of a partition that may not have been started yet."""

    def __init__(self, name: str, actor_named: Callable[[str], Any]) -> None:
        self.name = name
        self._actor_named = actor_named
        self._found: Any = None

    def found(self) -> Any:
        """The actor. Raises `ValueError` as long as there is none of this name."""
        if self._found is None:
            self._found = self._actor_named(self.name)
        return self._found

    def __getattr__(self, method: str) -> _NamedMethod:
        if method.startswith("_"):
            raise AttributeError(method)
        return _NamedMethod(self, method)


class _LocalMethod:
    """A method of the partition of this process, called on the thread for that: it waits for its turn."""

    def __init__(self, worker: ThreadPoolExecutor, method: Callable[..., object]) -> None:
        self._worker, self._method = worker, method

    def remote(self, *arguments: Any) -> None:
        """Have it called. Nothing comes back."""
        self._worker.submit(self._method, *arguments)


class LocalPartition:
    """The partition that is in this process."""

    def __init__(self, worker: ThreadPoolExecutor, execute: Execute, lost: ReportLost) -> None:
        """`worker`: the thread on which both are called."""
        self.worker, self.run = worker, execute
        self.lost = _LocalMethod(worker, lost)


class LocalTransport(PartitionTransport):
    """Reaches the partition of this process, by way of a thread: a batch waits for its turn there, and for the disk."""

    actor: LocalPartition

    def execute(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """See `PartitionTransport`."""

        def run() -> None:
            answer: bytes | None = None
            try:
                answer = self.actor.run(self._client, attempt, predecessor, blob)
            finally:
                with contextlib.suppress(RuntimeError):  # the courier has ended
                    self._loop.call_soon_threadsafe(self._came_back, attempt, answer)

        try:
            self.actor.worker.submit(run)
        except RuntimeError:  # the courier is ending
            self._loop.call_soon(self._came_back, attempt, None)


class CourierRouter(CommandRouter):
    """Used on the event loop of the courier only."""

    def __init__(
        self,
        partition: int,
        names: Sequence[str],
        actor_named: Callable[[str], Any],
        here: LocalPartition,
        settings: Settings,
        placement_rule: str,
        store_id: str,
    ) -> None:
        """`names`: of the actors of all partitions, in order; `here` takes the place of `partition`."""
        partitions = [
            here if number == partition else NamedPartition(name, actor_named) for number, name in enumerate(names)
        ]
        super().__init__(partitions, actor_named, settings, placement_rule, store_id)

    def name(self, names: Sequence[str], unavailable: Mapping[int, str]) -> None:
        """The actors of the partitions have these names from now on, and these partitions are away: why."""
        for number, actor, _ in self.reached():
            if isinstance(actor, NamedPartition) and actor.name != names[number]:
                self.replace(number, NamedPartition(names[number], self._actor_named))
        self.set_unavailable(unavailable)

    def send(self, command: PackedCommand, caller: Caller, timeout_s: float) -> None:
        """Send a command; the caller gets its outcome, errors too as values, perhaps at once."""
        try:
            self._routing.submit(self._loop.time(), command, _pack(command), caller, timeout_s)
        except RayfoldError as error:
            caller.set_result(error)
            return
        if self._routing.instructions:
            self._carry_out()

    def _partition_transport(self, actor: Any) -> PartitionTransport:
        if not isinstance(actor, LocalPartition):
            return super()._partition_transport(actor)
        return LocalTransport(actor, self._client, self._came_back, by_socket=False)
