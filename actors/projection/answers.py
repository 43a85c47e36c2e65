"""Answers: what an open read model answers, whichever way its queries have come.

Step [8]. Before it: a call through Ray (`actor.py`), or over a socket (`query_server.py`). After it: the read model,
which answers one batch at a time (`../../runtime/read/read_model.py`).

Rules kept here: a query that has ended a process of this projector more than once is refused; one whose answer cannot
be pickled spoils no other; what an ended projector has answered is not returned, since others serve by then.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from threading import Event
from typing import Any, Final

import ray.cloudpickle

from ...runtime.encoding.query_batch import PackedQuery, join_queries
from ...runtime.errors import HandlerFailed, NotYetVisible, RayfoldError, Unavailable
from ...runtime.in_hand import REFUSED_S, Fallen, InHand
from ...runtime.user_code import class_name, is_ctrl_c
from ..os_process.suspects import key_of_batch
from ..sockets.query_frames import Answered
from .open_model import OpenModel

__all__ = ["Answers", "pickled_alone"]

_ASKED_MAX: Final = 64
"""Kinds of queries of which the last one is kept."""

_ASKED_BYTES_MAX: Final = 16 * 1024
"""The size of one that is kept: all of them together take 1 MiB at most."""

_PLAIN: Final = frozenset({int, str, float, bool, bytes, type(None)})
"""Types that plain pickle writes as cloudpickle does, in 0.3 us instead of 3.6."""


class Answers:
    """Answers of one open read model. Safe from any thread."""

    def __init__(self, projection: str, projector: str, opened: OpenModel, in_hand: InHand, ending: Event) -> None:
        """`projection`, `projector`: their names. `ending`: once it is set, what is asked fails."""
        self.asked: dict[str, bytes] = {}
        """The last query of each kind, by name: for probing a build that is to take over."""
        self._projection, self._projector = projection, projector
        self._opened, self._in_hand, self._ending = opened, in_hand, ending
        self._read_model = opened.read_model

    @property
    def incarnation(self) -> bytes:
        """Which process of this projector it is."""
        return self._in_hand.incarnation

    @property
    def positions(self) -> Mapping[int, int]:
        """How far it has come, by partition."""
        return self._read_model.positions

    @property
    def failed(self) -> RayfoldError | None:
        """Why it has stopped, if it has."""
        return self._read_model.failed

    def ask(
        self, queries: Sequence[tuple[str, bytes]], batch: bytes, needs: Mapping[int, int], apart: bool
    ) -> Answered:
        """See `ProjectorActor.ask`."""
        positions = self._read_model.positions
        if any(positions.get(partition, 0) < position for partition, position in needs.items()):
            return Answered(b"", dict(positions), self._in_hand.incarnation)
        blob, reached = self.answered(queries, key_of_batch(batch), apart)
        if queries:
            self.note(queries)  # not one that has ended the process
        self.check_going_on()
        return Answered(blob, reached, self._in_hand.incarnation)

    def answered(self, queries: Sequence[tuple[str, bytes]], key: bytes, apart: bool) -> tuple[bytes, dict[int, int]]:
        """The answers, pickled as one list, and the positions they were read at."""
        refused = self._refused(queries) if any(map(_is_refused_query, self._in_hand.fallen.values())) else {}
        if refused:
            queries = [query for index, query in enumerate(queries) if index not in refused]

        def encode(answers: list[Any]) -> tuple[bytes, dict[int, int]]:
            for index, error in refused.items():
                answers.insert(index, error)
            return _pickled(answers, apart), dict(self._read_model.positions)

        return self._read_model.answer(queries, encode, key)

    def answer_one(self, query: tuple[str, bytes]) -> tuple[bytes, dict[int, int]]:
        """The answer to one query, pickled by itself, and the positions it was read at."""
        key = key_of_batch(join_queries([PackedQuery(*query)]))
        if any(map(_is_refused_query, self._in_hand.fallen.values())) and (refused := self._refused([query])):
            return pickled_alone(refused[0]), dict(self._read_model.positions)

        def encode(answers: list[Any]) -> tuple[bytes, dict[int, int]]:
            return pickled_alone(answers[0]), dict(self._read_model.positions)

        answer, positions = self._read_model.answer([query], encode, key)
        self.note([query])
        self.check_going_on()
        return answer, positions

    def late(self, after: Mapping[int, int]) -> RayfoldError:
        """What a query gets that has waited, or would wait, for this in vain."""
        reached = self._read_model.positions
        for partition, position in after.items():
            if reached.get(partition, 0) < position:
                return NotYetVisible(self._projection, partition, position, reached.get(partition, 0))
        return Unavailable(self._projection, "no replica answered in time")

    def ends(self, partitions: Collection[int], *, away: bool) -> dict[int, int]:
        """See `OpenModel.ends`."""
        return self._opened.ends(partitions, away=away)

    def is_away(self, partition: int) -> bool:
        """See `OpenModel.is_away`."""
        return self._opened.is_away(partition)

    def read_logs(self, partitions: Collection[int], limit_s: float) -> None:
        """Take in what these logs have. Raises `RayfoldError`."""
        self._opened.read_on(partitions, limit_s)

    def note(self, queries: Sequence[tuple[str, bytes]]) -> None:
        """Keep the last query of a batch, for probing a build that is to take over."""
        name, payload = queries[-1]
        if len(payload) <= _ASKED_BYTES_MAX and (name in self.asked or len(self.asked) < _ASKED_MAX):
            self.asked[name] = payload

    def check_going_on(self) -> None:
        """Raises when this projector ends: then the call has failed, and the caller asks the present projectors."""
        if self._ending.is_set():
            raise Unavailable(self._projector, "it has ended")

    def _refused(self, queries: Sequence[tuple[str, bytes]]) -> dict[int, HandlerFailed]:
        """Those that are not tried again: a process of this projector has ended on them."""
        refused = {}
        for index, (name, payload) in enumerate(queries):
            fallen = self._in_hand.find(key_of_batch(join_queries([PackedQuery(name, payload)])))
            if fallen is not None and fallen.refused:
                what = "it took too long" if fallen.stuck else "the process that answered it ended, more than once"
                what = f"{what}; it is not tried again for {REFUSED_S / 60:g} minutes"
                refused[index] = HandlerFailed(f"{self._projection} @answer", name, what)
        return refused


def _is_refused_query(fallen: Fallen) -> bool:
    """Keys of events have a gap there (`ReadModel`)."""
    return fallen.refused and fallen.key[1:6] != bytes(5)


def pickled_alone(answer: object) -> bytes:
    """An answer that nothing else is pickled with; one that cannot be pickled is the error that names it."""
    if type(answer) in _PLAIN:
        return pickle.dumps(answer)
    try:
        blob: bytes = ray.cloudpickle.dumps(answer)
    except BaseException as error:  # code of the answer's class runs here
        if is_ctrl_c(error):
            raise
        blob = ray.cloudpickle.dumps(HandlerFailed.caused_by("@answer", class_name(answer), error))
    return blob


def _pickled(answers: list[Any], apart: bool) -> bytes:
    """Answers are the user's own objects and go back to the user's own process, inside the cluster: Ray pickles
    them in any case. Here it happens early, under the read model's lock. Nothing of it is ever stored."""
    if apart:
        return pickle.dumps([pickled_alone(answer) for answer in answers])
    if len(answers) == 1 and type(answers[0]) in _PLAIN:
        return pickle.dumps(answers)
    pickled: bytes
    try:
        pickled = ray.cloudpickle.dumps(answers)
    except BaseException as error:  # as above
        if is_ctrl_c(error):
            raise
        pickled = ray.cloudpickle.dumps([_picklable(answer) for answer in answers])
    return pickled


def _picklable(answer: Any) -> Any:
    try:
        ray.cloudpickle.dumps(answer)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        return HandlerFailed.caused_by("@answer", class_name(answer), error)
    return answer
