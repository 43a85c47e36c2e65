"""ProjectorActor: one replica of a projection, as a Ray actor.

Steps [7] and [8]. Before it: the broadcast ([6]) of every partition. After it: the answer to a query. Everything that
matters happens in `runtime/read_model.py`; here are only the roads into it.

Three roads, each a concurrency group with threads of its own, because a plain Ray actor keeps the order of calls
within a group and one group does not wait for another: `apply` (default, one thread), `ask` (one thread), and
`ask_after` (some threads, since such a query may wait for events still on their way).

Rule kept here: no work in `__init__`, since an actor whose `__init__` raises is dead for ever. The first call opens
the logs and catches up, also after a crash and restart, and whoever asks meanwhile waits for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
import ray.cloudpickle

from ..runtime.errors import HandlerFailed, RayfoldError, to_wire
from ..runtime.log.store import Store
from ..runtime.read_model import PackedQuery, ReadModel, split_queries
from .garbage import look_less_often
from .shipping import unship

__all__ = ["ASKING_AFTER_MAX", "ProjectorActor", "ProjectorPlan", "start_projector"]

ASKING_AFTER_MAX: Final = 16
"""Threads for queries that wait for a position; further ones queue in Ray."""


@dataclass(frozen=True, slots=True)
class ProjectorPlan:
    """All that a projector needs to start, and to start again after a crash."""

    projection: str
    """Its name."""
    replica: int
    catalogue: bytes
    """The application's classes; see `shipping.py`."""
    store: Store


class ProjectorActor:
    """A read model that lives in a process of its own."""

    def __init__(self, plan: ProjectorPlan) -> None:
        self._plan = plan
        self._opening = threading.Lock()
        self._read_model: ReadModel | None = None

    @ray.method
    def open(self) -> list[Any]:
        """Open the logs and catch up with them. Returns an error as `to_wire` packs it, or nothing."""
        try:
            self._opened()
        except RayfoldError as error:
            return to_wire(error)
        return []

    @ray.method
    def apply(self, partition: int, first: int, records: Sequence[bytes], head: int) -> None:
        """Step [7]: take in committed records at `first, first + 1, …`, and whatever is missing up to `head`."""
        self._opened().apply(partition, first, records, head)

    @ray.method(concurrency_group="ask")
    def ask(self, batch: bytes) -> tuple[bytes, dict[int, int]]:
        """Step [8]: answers to a batch of queries, pickled as one list, and the positions they were read at."""
        return self._answered(self._opened(), split_queries(batch))

    @ray.method(concurrency_group="ask_after")
    def ask_after(self, query: PackedQuery, after: Mapping[int, int], timeout_s: float) -> tuple[bytes, dict[int, int]]:
        """The same for one query that must see `after` (partition -> position), and waits for it."""
        read_model = self._opened()
        try:
            read_model.wait_for(after, timeout_s)
        except RayfoldError as error:
            return ray.cloudpickle.dumps([error]), dict(read_model.positions)
        return self._answered(read_model, [query])

    @ray.method(concurrency_group="status")
    def status(self) -> tuple[int, dict[int, int], str]:
        """Process id, positions, and why the projection has stopped, if it has."""
        read_model = self._read_model
        if read_model is None:
            return os.getpid(), {}, ""
        return os.getpid(), dict(read_model.positions), str(read_model.failed or "")

    def _answered(self, read_model: ReadModel, queries: Sequence[tuple[str, bytes]]) -> tuple[bytes, dict[int, int]]:
        def encode(answers: list[Any]) -> tuple[bytes, dict[int, int]]:
            return _pickled(answers), dict(read_model.positions)

        return read_model.answer(queries, encode)

    def _opened(self) -> ReadModel:
        if self._read_model is None:
            with self._opening:
                if self._read_model is None:
                    store = self._plan.store
                    readers = {number: store.open_reader(number) for number in range(store.partitions)}
                    catalogue = unship(self._plan.catalogue)
                    read_model = ReadModel(catalogue.projection(self._plan.projection), catalogue, readers)
                    look_less_often()
                    for partition in readers:
                        read_model.catch_up(partition)
                    self._read_model = read_model
        return self._read_model


def _pickled(answers: list[Any]) -> bytes:
    """Answers are the user's own objects and go back to the user's own process, inside the cluster: Ray pickles
    them in any case. Here it happens early, under the read model's lock. Nothing of it is ever stored."""
    pickled: bytes
    try:
        pickled = ray.cloudpickle.dumps(answers)
    except Exception:
        pickled = ray.cloudpickle.dumps([_picklable(answer) for answer in answers])
    return pickled


def _picklable(answer: Any) -> Any:
    try:
        ray.cloudpickle.dumps(answer)
    except Exception as error:
        return HandlerFailed.caused_by("@answer", type(answer).__name__, error)
    return answer


def start_projector(plan: ProjectorPlan, name: str, namespace: str) -> Any:
    """A projector that Ray restarts for ever."""
    remote: Any = ray.remote  # its types do not know concurrency groups
    actor = remote(concurrency_groups={"ask": 1, "ask_after": ASKING_AFTER_MAX, "status": 1})(ProjectorActor)
    options = actor.options(
        name=name,
        namespace=namespace,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        enable_task_events=False,
    )
    return options.remote(plan)
