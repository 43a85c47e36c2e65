"""Loading: a long history is folded aside, while the partition goes on serving its other aggregates.

Step [4] of the write path, beside `residents.py`. An aggregate whose events since its last usable snapshot are many (a
million, for example, after a change of its code) took its partition's only thread for seconds, and every other
aggregate waited. So the residents fold a few thousand events at once and hand a longer history over to one thread,
which folds the rest in slices. Commands to that aggregate get `StillLoading` meanwhile, which the partition answers as
`RetryAfter` and which is not an outcome: the client keeps them, in order, and sends them again.

Rules kept here:
- nothing is appended to a stream while it is loaded aside, so that the fold ends at its end: no command to it is
  decided
- what was loaded is taken over between two batches and never within one, or a later command of a batch would be decided
  after an earlier one was put off
- one history at a time, in slices, with a pause after each as long as the slice has taken: Python runs one thread at a
  time, so that half of the time is left to commands
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..domain.aggregate import Aggregate
from ..errors import RayfoldError, StoreError, failure_text
from ..stream import StreamId

__all__ = ["LOADED_AT_ONCE_BYTES", "LOADED_AT_ONCE_EVENTS", "LOADS_MAX", "Loading", "StillLoading"]

LOADED_AT_ONCE_EVENTS: Final = 2_000
"""Events of one aggregate that are folded while the other aggregates wait: some 20 ms."""

LOADED_AT_ONCE_BYTES: Final = 4 << 20
"""... and bytes of their records."""

LOADS_MAX: Final = 64
"""Histories that wait to be loaded aside, or have been and were not asked for yet. The commands of further ones come
again."""

PAUSE_MAX_S: Final = 0.05
"""After one slice, which may be one event that takes long."""


class StillLoading(StoreError):
    """The history of an aggregate is long and is being loaded. Nothing was decided; the client sends it again."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream

    def sentence(self) -> str:
        return f"{self.stream} has a long history, which is being loaded; send the command again"


class Loading:
    """The histories that are loaded aside. All but the folding itself happens on the writer's thread."""

    def __init__(self, fold: Callable[[Aggregate, StreamId], Iterator[object]]) -> None:
        """`fold` folds slice after slice into the aggregate, and yields after each."""
        self._fold = fold
        self._changed = threading.Condition()
        self._waiting: dict[StreamId, Aggregate] = {}
        """In the order in which they came; the first one is being loaded."""
        self._done: dict[StreamId, Aggregate | RayfoldError] = {}
        self._taken_over: dict[StreamId, Aggregate | RayfoldError] = {}
        """What was done before the present batch began, until a command asks for it."""
        self._running = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._done) + len(self._taken_over)

    def __contains__(self, stream: StreamId) -> bool:
        """Whether it is being loaded, as far as the present batch knows."""
        return stream in self._waiting or stream in self._done

    def begin(self, stream: StreamId, aggregate: Aggregate) -> None:
        """Load the rest of this one aside; nothing if too many wait already."""
        with self._changed:
            if len(self) >= LOADS_MAX:
                for taken in list(self._taken_over):  # was loaded for a client that did not come back for it
                    del self._taken_over[taken]
                    break
                else:
                    return
            self._waiting[stream] = aggregate
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="rayfold-loading", daemon=True).start()

    def take_over(self) -> None:
        """A batch begins: what is loaded by now is what its commands are decided on."""
        if self._done:
            with self._changed:
                self._taken_over |= self._done
                self._done.clear()

    def taken(self, stream: StreamId) -> Aggregate | None:
        """What was loaded, once; None if there is nothing. Raises what loading it has raised."""
        if not self._taken_over:
            return None
        found = self._taken_over.pop(stream, None)
        if isinstance(found, RayfoldError):
            raise found
        return found

    def forget(self, stream: StreamId) -> None:
        """Whatever there is of it is of no use."""
        with self._changed:
            for known in (self._waiting, self._done, self._taken_over):
                known.pop(stream, None)

    def forget_all(self) -> None:
        """Nothing that was loaded is of use any more."""
        with self._changed:
            for known in (self._waiting, self._done, self._taken_over):
                known.clear()

    def wait(self, timeout_s: float) -> bool:
        """Until nothing is being loaded, for tests and for the end of a process. False if the time was over."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                stream = next(iter(self._waiting), None)
                if stream is None:
                    self._running = False
                    self._changed.notify_all()
                    return
                aggregate = self._waiting[stream]
            loaded = self._loaded(stream, aggregate)
            with self._changed:
                if self._waiting.get(stream) is aggregate:
                    self._done[stream] = loaded  # first: the writer reads both without the lock
                    del self._waiting[stream]

    def _loaded(self, stream: StreamId, aggregate: Aggregate) -> Aggregate | RayfoldError:
        try:
            began_s = time.perf_counter()
            for _ in self._fold(aggregate, stream):
                if self._waiting.get(stream) is not aggregate:  # it was forgotten
                    break
                time.sleep(min(time.perf_counter() - began_s, PAUSE_MAX_S))
                began_s = time.perf_counter()
        except RayfoldError as error:
            return error
        except BaseException as error:  # nothing that it raises may end the thread: the others wait for it
            return StoreError(str(stream), f"cannot be loaded: {failure_text(error)}")
        return aggregate
