"""A projector without Ray: a read model over logs in memory, and the server that its clients reach by a socket."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from rayfold.actors.client.replica_pool import ReplicaPool
from rayfold.actors.projection.answers import Answers
from rayfold.actors.projection.open_model import OpenModel
from rayfold.actors.projection.query_server import QueryServer
from rayfold.actors.sockets.listening import open_listening_socket
from rayfold.actors.sockets.query_frames import AnsweredAfter
from rayfold.runtime.domain.projection import Projection
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.query_batch import PackedQuery, split_queries
from rayfold.runtime.in_hand import InHand
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from tests.bank import Account, BalanceOf, Balances, Deposit, Open
from tests.support.arrivals import activated, to

STORE_ID: Final = "0123456789abcdef"
BALANCE: Final = PackedQuery(BalanceOf.message_name, encode_message(BalanceOf(account="alice")))


class HeldLog(MemoryLog):
    """A log that can keep its records to itself, as one whose node does not answer."""

    held = False

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """Nothing while it is held."""
        return [] if self.held else super().read(after, limit, bytes_max)


class Projector:
    """One projector, in this process: events are deposits of 1 to alice's account, at positions from 2 on."""

    def __init__(self, projection: type[Projection] = Balances) -> None:
        self.log = HeldLog()
        catalogue = Catalogue([Account], [projection])
        self._loop = activated(self.log, catalogue=catalogue)
        self._loop.execute([to(Account, "alice", Open(owner="alice"))])
        readers: Any = {0: self.log}
        self.read_model = ReadModel(projection, catalogue, readers)
        self.read_model.open()
        self.ending = threading.Event()
        self.opened = OpenModel(projection.projection_name, self.read_model, readers, self.ending)
        self.opened.catch_up(lambda _: None)
        self.answers = Answers(projection.projection_name, "a projector", self.opened, InHand(None), self.ending)
        listening = open_listening_socket("projector")
        assert listening is not None
        self.server = QueryServer(listening, STORE_ID, self.answers, self.read_model.apply)
        self.read_model.notify_changed = self.server.notify_changed

    def commit(self, events: int = 1) -> tuple[int, list[bytes]]:
        """Have the log hold more events, which are not broadcast. The position of the first, and their records."""
        first = self.log.head() + 1
        self._loop.execute([to(Account, "alice", Deposit(amount=1)) for _ in range(events)])
        return first, MemoryLog.read(self.log, first - 1, events)

    def broadcast(self, first: int, records: list[bytes]) -> None:
        """What a partition does after a commit."""
        self.read_model.apply(0, first, records, first + len(records) - 1)

    def waiting(self) -> int:
        """How many queries are parked."""
        return len(self.server._waiting)

    def close(self) -> None:
        """End it."""
        self.server.close()
        self.read_model.close()


def has_socket(pool: ReplicaPool) -> bool:
    """Whether every replica is asked over a socket now."""
    return all(replica.search.connection is not None for replica in pool._replicas)


class Method:
    """A method of an actor's handle."""

    def __init__(self, do: Callable[..., Any]) -> None:
        self._do = do

    def remote(self, *arguments: Any) -> Method:
        self.told: Future[Any] = Future()
        try:
            self.told.set_result(self._do(*arguments))
        except Exception as error:
            self.told.set_exception(error)
        return self

    def future(self) -> Future[Any]:
        return self.told


class Handle:
    """A projector's handle, as a client without Ray has one: what it calls takes place here."""

    def __init__(self, projector: Projector, actor_id: bytes | None = None) -> None:
        self.projector = projector
        self._actor_id = actor_id
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_") or not hasattr(Handle, f"do_{name}"):
            raise AttributeError(name)
        self.calls.append(name)
        return Method(getattr(self, f"do_{name}"))

    def do_socket_path(self) -> str:
        return str(self.projector.server.path)

    def do_apply(self, partition: int, first: int, records: Sequence[bytes], head: int) -> None:
        self.projector.read_model.apply(partition, first, records, head)

    def do_incarnation(self) -> bytes:
        return self.projector.answers.incarnation

    def do_ask(self, batch: bytes, needs: dict[int, int], alone: bool, apart: bool) -> Any:
        return self.projector.answers.ask(split_queries(batch), batch, needs, apart)

    def do_ask_after(self, batch: bytes, afters: Sequence[Mapping[int, int]], wait_s: float, look: bool) -> Any:
        """At once, whether something can be answered or not."""
        answers, queries = self.projector.answers, split_queries(batch)
        reached = dict(answers.positions)
        ready = [index for index, after in enumerate(afters) if all(reached[one] >= after[one] for one in after)]
        answered = {index: answers.answer_one(queries[index])[0] if queries[index][0] else None for index in ready}
        ends = answers.ends([0], away=look)
        return AnsweredAfter(pickle.dumps(answered), reached, answers.incarnation, ends)
