"""Replica: a read model in the caller's own process, which follows the logs of the store and is asked without Ray.

Steps [7] and [8] of the read path in one process. Before it: the logs, as they are committed. After it: the caller. No
broadcast reaches it; a thread of its own polls the heads of the logs (`PollInterval`) and reads what is new.

Rules kept here: the logs are only read, and no transaction is open while the thread waits; a reader sees a prefix of
each partition's log, as anywhere else; a projection that has stopped, and a thread that has, raises in every query, and
is never hidden by old answers; a log that cannot be read is tried again, and the program's log has a line about it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Generic, Self, TypeVar, cast

from ...runtime.arguments import checked_timeout, unregistered_message
from ...runtime.domain.messages import Query
from ...runtime.domain.projection import Projection
from ...runtime.domain.read_store import InMemory
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError, HandlerFailed, InvalidMessage, RayfoldError, Unavailable
from ...runtime.feed.log_follower import PollInterval, any_away
from ...runtime.printable import printable_log
from ...runtime.read.positions import After, place_asked
from ...runtime.read.read_model import ReadModel
from ...runtime.user_code import is_ctrl_c
from ..nodes.store import AnyStore

__all__ = ["Replica"]

log = printable_log(__name__)

TIMEOUT_S: Final = 10.0
"""Timeout of `after=`, unless the call sets another: over a hundred times what following takes."""

_TROUBLE_S: Final = 1.0
"""Before a log that could not be read is tried again: one line in the program's log each time."""

P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")


class Replica(Generic[P]):
    """A read model in your own process; made by `Runtime.replica`, ended by `close` or by leaving `with` or `async
    with`.

    Safe from any thread. An answer is the caller's own: what the `@answer` method returned is copied where it could
    change. For look-ups without copies there is `reading()`. Calls raise what has stopped the projection.

    Example:
        with bank.replica(Balances) as replica:
            balance = replica.ask(BalanceOf(account="alice"), after=receipt)
    """

    def __init__(self, store: AnyStore, projection: type[P], catalogue: Catalogue) -> None:
        """Reads the logs up to where they end now, which takes as long as a rebuild; then a thread follows them.

        Raises `CallerError` for a projection with parts or with a store other than memory, what stopped the projection,
        and `StoreError`.
        """
        name = projection.projection_name
        if projection.parts > 1 or not isinstance(projection.read_store, InMemory):
            kept = f"{projection.parts} parts" if projection.parts > 1 else f"{projection.read_store!r}"
            raise CallerError(f"{name} cannot be embedded: it is kept in {kept}; ask it through the runtime")
        self._projection, self._store_id = projection, store.store_id
        self._ending = threading.Event()
        with ExitStack() as undo:
            self._readers = {number: store.open_reader(number) for number in range(store.partitions)}
            for reader in self._readers.values():
                undo.callback(reader.close)
            self._read_model = ReadModel(projection, catalogue, self._readers)
            undo.callback(self._read_model.close)
            self._read_new()
            if self._read_model.failed is not None:
                raise self._read_model.failed.with_traceback(None)
            self._undo = undo.pop_all()
        self._answers: Mapping[type[Any], Any] = projection.answers
        self._answer_here = self._read_model.answer_here
        self._thread = threading.Thread(target=self._follow, name=f"rayfold replica of {name}", daemon=True)
        self._thread.start()

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position of the last event taken in. A copy."""
        return dict(self._read_model.positions)

    def ask(self, query: Query[Answer], *, after: After | None = None, timeout_s: float = TIMEOUT_S) -> Answer:
        """The answer, at once, or with `after` once this replica has come so far.

        Raises `NotYetVisible` after `timeout_s`, `UnknownName`, `HandlerFailed`, what stopped the projection, and
        `Unavailable` once the replica is closed.
        """
        if timeout_s is not TIMEOUT_S:
            timeout_s = checked_timeout(timeout_s)
        answering = self._answers.get(type(query))
        if answering is None:
            raise self._unknown(query)
        if after is not None:
            self.wait_for(after, timeout_s)
        try:  # not packed, and not checked again: the query was when it was made
            answer: Answer = self._answer_here(answering, query)
            return answer
        except RayfoldError:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            name = f"{self._projection.__name__} @answer"
            raise HandlerFailed.caused_by(name, type(query).__name__, error) from error

    def ask_at(self, query: Query[Answer]) -> tuple[Answer, dict[int, int]]:
        """The answer at once, and the positions at which it was read. Raises what `ask` does."""
        with self.reading():
            return self.ask(query), self.positions

    def reading(self) -> AbstractContextManager[P]:
        """The read model itself, which does not change while the `with` block runs: for many look-ups at once. No event
        is taken in meanwhile, so keep it short; and only read."""
        return cast("AbstractContextManager[P]", self._read_model.reading())

    def wait_for(self, after: After, timeout_s: float = TIMEOUT_S) -> None:
        """Return once this replica has come so far. Raises `NotYetVisible`, and at once what stopped it."""
        place = place_asked(after, len(self._readers), self._store_id)
        self._read_model.wait_for(place, checked_timeout(timeout_s))

    def has(self, positions: Mapping[int, int]) -> bool:
        """Whether it has come so far."""
        if not isinstance(positions, Mapping):
            raise InvalidMessage("has", f"{positions!r} is not a place", "give positions by partition")
        reached = self._read_model.positions
        return all(reached.get(partition, 0) >= positions[partition] for partition in positions)

    def close(self) -> None:
        """End the thread and close the logs. Closing twice is allowed; a waiting call raises."""
        self._ending.set()
        self._thread.join()
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def _unknown(self, query: object) -> CallerError:
        return unregistered_message(f"query of {self._projection.projection_name}", query, self._answers, Query)

    def _follow(self) -> None:
        """Until it is closed, or the projection has stopped."""
        pace, name = PollInterval(away=any_away(self._readers.values())), self._projection.projection_name
        while not self._ending.is_set() and self._read_model.failed is None:
            try:
                found, pause_s = self._read_new(), pace.next_pause_s()
            except RayfoldError as error:
                log.error("the replica of %s tries again: %s", name, error)
                found, pause_s = False, _TROUBLE_S
            except Exception as error:  # a bug of Rayfold, or no memory: no call may wait for a thread that has ended
                log.exception("the replica of %s follows no more", name)
                self._read_model.fail(HandlerFailed.caused_by(f"the replica of {name}", "the logs it follows", error))
                return
            if found:
                pace.news()
            else:
                self._ending.wait(pause_s)

    def _read_new(self) -> bool:
        """Take in what is new up to the heads of now. Whether there was any."""
        heads: dict[int, int] = {}
        for partition, reader in self._readers.items():
            with contextlib.suppress(Unavailable):  # its node is gone: the others go on
                heads[partition] = reader.head()
        behind = [partition for partition, head in heads.items() if head > self._read_model.positions[partition]]
        for partition in behind:
            self._read_model.catch_up(partition, heads[partition])
        return bool(behind)
