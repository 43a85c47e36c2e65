"""Held projector: a program with a projector's socket and a log that it can be made to hold back; and a socket that
returns what it gets.

For the read suite, which measures queries beside thousands that wait. In a running system a query never waits for long:
either its event comes or the log has none. Here the log's end is known and its events are not given, as that of a node
which does not answer, for as long as the suite has set. All else is what a projector runs: the read model, the server,
the table of what waits.

The program (`run`) listens for echoes at a path, prints the path of its socket, and obeys one line after the other,
each with an answer: `commit` has the log get an event that it holds back (its position), `release` gives it to the
projector, `threads` counts the program's.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

from ...actors.projection.answers import Answers
from ...actors.projection.open_model import OpenModel
from ...actors.projection.query_server import QueryServer
from ...actors.sockets.listening import open_listening_socket
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.envelope import Envelope, join, pack, unpack_batch
from ...runtime.in_hand import InHand
from ...runtime.log.memory import MemoryLog
from ...runtime.read.read_model import ReadModel
from ...runtime.write.write_loop import WriteLoop
from ..workloads.bank import Account, Balances, Deposit

__all__ = ["HeldLog"]


class HeldLog(MemoryLog):
    """A log that can keep its records to itself."""

    held = False

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """Nothing while it is held."""
        return [] if self.held else super().read(after, limit, bytes_max)


def run(echo_path: str) -> None:
    """Until standard input ends."""
    log, catalogue, ending = HeldLog(), Catalogue([Account], [Balances]), threading.Event()
    loop = WriteLoop(0, log, catalogue)
    loop.activate()
    readers: Any = {0: log}
    read_model = ReadModel(Balances, catalogue, readers)
    opened = OpenModel("Balances", read_model, readers, ending)
    opened.catch_up(lambda _: None)
    listening = open_listening_socket("held-projector")
    assert listening is not None
    server = QueryServer(listening, "", Answers("Balances", "Balances", opened, InHand(None), ending), read_model.apply)
    read_model.notify_changed = server.notify_changed
    echoing = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    echoing.bind(echo_path)
    echoing.listen(1)
    threading.Thread(target=_echo, args=(echoing,), daemon=True).start()
    print(server.path, flush=True)
    for line in sys.stdin:
        if line.strip() == "commit":
            log.held = True
            loop.execute(list(unpack_batch(join([pack(Envelope(Account, "a", Deposit(amount=1)))[1]]))))
            answer = log.head()
        elif line.strip() == "release":
            log.held = False
            answer = log.head()
            read_model.apply(0, answer, MemoryLog.read(log, answer - 1, 1), answer)
        else:
            answer = threading.active_count()
        print(answer, flush=True)
    server.close()


def _echo(listening: socket.socket) -> None:
    """Return what comes, to one client after the other."""
    while True:
        client, _ = listening.accept()
        with client:
            while data := client.recv(65_536):
                client.sendall(data)
