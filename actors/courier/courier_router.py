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
from ..client.command_router import CommandRouter
from ..client.transport import PartitionTransport
from ..settings import Settings

__all__ = ["CourierRouter", "ExecuteHere", "NamedPartition"]

_pack = msgpack.Packer(autoreset=True).pack


ExecuteHere = Callable[[bytes, int, int, bytes], bytes]
"""Executes a batch (client, attempt, predecessor, commands) in the partition of this process, when it is its turn."""


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


class _Here:
    """In place of the actor of the partition that is in this process."""


class LocalTransport(PartitionTransport):
    """Reaches the partition of this process, by way of a thread: a batch waits for its turn there, and for the disk."""

    def __init__(
        self,
        here: ExecuteHere,
        worker: ThreadPoolExecutor,
        client: bytes,
        batch_done: Callable[[int, bytes | None], None],
    ) -> None:
        """`here`: executes a batch, on the thread `worker`."""
        super().__init__(None, client, batch_done, by_socket=False)
        self._here, self._worker = here, worker

    def execute(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """See `PartitionTransport`."""

        def run() -> None:
            answer: bytes | None = None
            try:
                answer = self._here(self._client, attempt, predecessor, blob)
            finally:
                with contextlib.suppress(RuntimeError):  # the courier has ended
                    self._loop.call_soon_threadsafe(self._came_back, attempt, answer)

        try:
            self._worker.submit(run)
        except RuntimeError:  # the courier is ending
            self._loop.call_soon(self._came_back, attempt, None)


class CourierRouter(CommandRouter):
    """Used on the event loop of the courier only."""

    def __init__(
        self,
        partition: int,
        names: Sequence[str],
        actor_named: Callable[[str], Any],
        here: ExecuteHere,
        worker: ThreadPoolExecutor,
        settings: Settings,
        placement_rule: str,
        store_id: str,
    ) -> None:
        """`names`: of the actors of all partitions, in order; that of `partition` is not used. `here`: what executes in
        place of that; `worker`: the thread on which it does."""
        self._here, self._worker = here, worker
        partitions = [
            _Here() if number == partition else NamedPartition(name, actor_named) for number, name in enumerate(names)
        ]
        super().__init__(partitions, actor_named, settings, placement_rule, store_id)

    def name(self, names: Sequence[str], unavailable: Mapping[int, str]) -> None:
        """The actors of the partitions have these names from now on, and these partitions are away: why."""
        for number, actor, _ in self.reached():
            if isinstance(actor, NamedPartition) and actor.name != names[number]:
                self.replace(number, NamedPartition(names[number], self._actor_named))
        self.tell_unavailable(unavailable)

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
        if not isinstance(actor, _Here):
            return super()._partition_transport(actor)
        return LocalTransport(self._here, self._worker, self._client, self._came_back)
