"""Network: calls that take their time, arrive late, get lost, or lose their answer, as the story has it.

A call is bound to the process that was the actor when it was sent, as a connection is: what was sent to a process that
has ended fails, and what is on its way to a frozen copy still reaches it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from .story import Fault, SocketTrouble, Story, Trouble

__all__ = ["ActorHandle", "Handle", "Killed", "Network", "Process", "ProcessEnded", "fail", "tell"]

QUICK_S: Final = 0.003
LATE_S: Final = 1.2
"""Later than an attempt may take, so that it is sent again and both arrive."""

NOTICED_S: Final = 0.15
"""After which a caller learns that a process has ended."""


class ProcessEnded(Exception):  # noqa: N818 - what Ray's errors stand for here
    """The process that a call went to has ended."""


class Killed(BaseException):
    """The process ends here."""


class Process(Protocol):
    """Where calls go."""

    ended: bool

    def end(self) -> None:
        """The process ends, with all that is its own."""
        ...

    def handle(self, method: str, *arguments: Any) -> Any:
        """Do it, and return the answer. Raises `ProcessEnded` if it has ended, or ends meanwhile."""
        ...


class Network:
    """All messages of one simulation."""

    def __init__(self, story: Story, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._story = story
        self._sent: dict[str, int] = {}

    def trouble(self, trouble: Trouble | SocketTrouble, partition: int) -> Fault | None:
        """The fault of this kind that is on now, if one is."""
        now_ms = self.loop.time() * 1000
        for fault in self._story.faults:
            on = fault.at_ms <= now_ms < fault.at_ms + fault.for_ms
            if on and fault.trouble == trouble and fault.partition == partition:
                return fault
        return None

    def chance(self, what: str) -> float:
        """A number from 0 to 1 for the next thing of this name; which one depends on the seed and on nothing else."""
        number = self._sent[what] = self._sent.get(what, 0) + 1
        return zlib.crc32(f"{self._story.seed}/{what}/{number}".encode()) / 2**32

    def delay_s(self, what: str) -> float:
        """How long a message takes: usually little, sometimes five times as much."""
        chance = self.chance(f"delay of {what}")
        return QUICK_S * (chance if chance < 0.8 else 5 * chance)

    def call(self, process: Process, partition: int, method: str, *arguments: Any) -> Future[Any]:
        """Send a call. The future never gets an answer if a message was lost."""
        name = f"{method} of {partition}"
        answer: Future[Any] = Future()
        delay_s = self.delay_s(name)
        if self.trouble("calls late", partition) and self.chance(f"late {name}") < 0.3:
            delay_s += LATE_S * self.chance(f"how late {name}")
        if not (self.trouble("calls lost", partition) and self.chance(f"lost {name}") < 0.3):
            self.loop.call_later(delay_s, self._arrive, process, partition, method, arguments, answer)
        return answer

    def _arrive(
        self, process: Process, partition: int, method: str, arguments: tuple[Any, ...], answer: Future[Any]
    ) -> None:
        name = f"answer to {method} of {partition}"
        try:
            result = process.handle(method, *arguments)
        except ProcessEnded:
            self.loop.call_later(NOTICED_S, fail, answer)
            return
        if not (self.trouble("answers lost", partition) and self.chance(f"lost {name}") < 0.3):
            self.loop.call_later(self.delay_s(name), tell, answer, result)


def fail(answer: Future[Any], error: Exception | None = None) -> None:
    """The process has ended before it has answered, or with this error."""
    if not answer.done():
        answer.set_exception(error or ProcessEnded())


def tell(answer: Future[Any], result: Any) -> None:
    """The answer is there."""
    if not answer.done():
        answer.set_result(result)


class Handle:
    """What is held in place of Ray's handle: `handle.execute.remote(…).future()`."""

    def __init__(self, send: Callable[..., Future[Any]]) -> None:
        """`send`: is given the method and its arguments."""
        self._send = send

    def __getattr__(self, method: str) -> _Method:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(partial(self._send, method))


class ActorHandle(Handle):
    """The handle of a partition's actor."""

    def __init__(self, network: Network, partition: int, current: Callable[[], Process]) -> None:
        super().__init__(lambda *arguments: network.call(current(), partition, *arguments))


class _Method(NamedTuple):
    call: Callable[..., Future[Any]]

    def remote(self, *arguments: Any) -> _Sent:
        return _Sent(self.call(*arguments))


class _Sent(NamedTuple):
    answer: Future[Any]

    def future(self) -> Future[Any]:
        return self.answer
