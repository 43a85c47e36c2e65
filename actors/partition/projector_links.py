"""ProjectorLinks: the Unix sockets over which a partition broadcasts to projectors of its own machine, without Ray in
between.

Step [6] of the write path. Before it: `Broadcast` (`broadcast.py`). After it: the projector's `QueryServer`
(`../projection/query_server.py`), which greets, and its `BroadcastReader`.

What is sent when is decided by `BroadcastClientProtocol` (`broadcast_protocol.py`); here the bytes are moved. The
thread that has committed sends them itself: that takes 35 us, 50 for 64 KiB, where another thread would have
to be woken and to wait for the interpreter. What a socket has no room for is sent by the thread of this file, which
also searches for sockets, greets, and notices when a connection ends.

Rules kept here: the thread that commits never waits for a projector; nothing is sent to a process of another user, or
before the other end has answered the greeting; each search ends, with a link or without, and each link once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from ...runtime.errors import NotPrivate
from ...runtime.printable import printable_log
from ..sockets.handshake import HANDSHAKE_S, Handshake
from ..sockets.listening import check_own_user, closed_in_children
from ..sockets.poll_signal import PollSignal
from .broadcast_protocol import BroadcastClientProtocol

__all__ = ["ProjectorLink", "ProjectorLinks"]

log = printable_log(__name__)

_PAUSE_S: Final = 1.0
"""Between two checks whether a greeting is late."""

_END_S: Final = 1.0

_SENDS_MAX: Final = 8
"""At a time, by a thread for which the next commit may wait."""

Found = Callable[["ProjectorLink | None"], None]


class ProjectorLink:
    """A connection to one projector. Safe from any thread."""

    protocol_class: type[BroadcastClientProtocol] = BroadcastClientProtocol

    def __init__(self, connected: socket.socket, partition: int, wait_for_room: Callable[[bool], None]) -> None:
        """`wait_for_room`: have `send_more` called once there is room, or not any more."""
        self._socket = connected
        self._protocol = self.protocol_class(partition)
        self._wait_for_room = wait_for_room
        self._sending = threading.Lock()
        self._full = self._lost = False

    def put(self, frame: bytes, head: int) -> bool:
        """Send a frame, or have it sent once there is room. False once the connection has ended: it is not sent."""
        with self._sending:
            if not self._lost:
                self._protocol.put(frame, head)
                if not self._full:
                    self._send()
            return not self._lost

    def send_more(self) -> None:
        """There is room."""
        with self._sending:
            if not self._lost:
                self._send()

    def close(self) -> None:
        """End the connection: nothing is sent any more."""
        with self._sending:
            self._end()

    def _send(self) -> None:
        for _ in range(_SENDS_MAX):
            if (unsent := self._protocol.unsent()) is None:
                break
            try:
                sent = self._socket.send(unsent)
            except BlockingIOError:
                break
            except OSError:
                self._end()
                return
            self._protocol.sent(sent)
        full = self._protocol.unsent() is not None
        if full != self._full:
            self._full = full
            self._wait_for_room(full)

    def _end(self) -> None:
        self._lost = True
        with contextlib.suppress(OSError):  # which wakes the thread, and that releases the socket
            self._socket.shutdown(socket.SHUT_RDWR)


class _Search:
    """For the socket of one projector, until there is a link or none."""

    def __init__(self, on_found: Found, on_lost: Callable[[ProjectorLink], None], store_id: str) -> None:
        self.on_found, self.on_lost = on_found, on_lost
        self.handshake = Handshake("broadcast", store_id)
        self.deadline_s = 0.0
        """For the greeting, by `time.monotonic`."""


class ProjectorLinks:
    """All links of one partition, and the thread that attends to them."""

    def __init__(self, partition: int, store_id: str) -> None:
        """Raises `OSError`."""
        self._partition, self._store_id = partition, store_id
        self._paths: deque[tuple[_Search, str]] = deque()
        """Where projectors have reported that they listen."""
        self._searches: dict[int, tuple[socket.socket, _Search]] = {}
        """By descriptor: those that have connected and not been greeted."""
        self._links: dict[int, tuple[socket.socket, ProjectorLink, Callable[[ProjectorLink], None]]] = {}
        self._closing = threading.Event()
        with contextlib.ExitStack() as on_failure:
            self._poll = select.epoll()
            on_failure.callback(self._poll.close)
            self._signal = PollSignal()
            on_failure.callback(self._signal.close)
            self._poll.register(self._signal.descriptor, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="rayfold-projector-links", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # there may be no more threads
                raise OSError(str(error)) from error
            on_failure.pop_all()
        closed_in_children(self)

    def search(self, projector: Any, on_found: Found, on_lost: Callable[[ProjectorLink], None]) -> None:
        """Ask a projector's actor where it listens, and connect, in the background. `on_found`: called once, on any
        thread, with the link, or with None where there is none; `on_lost`: called once after the link has ended."""
        search = _Search(on_found, on_lost, self._store_id)
        try:
            projector.socket_path.remote().future().add_done_callback(partial(self._reported, search))
        except Exception:  # the actor is gone or Ray is shutting down
            on_found(None)

    def close(self) -> None:
        """End all links, and the thread. Closing twice is allowed."""
        self._closing.set()
        self._signal.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(_END_S)

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        for connecting, _ in list(self._searches.values()):
            connecting.close()
        for connected, _, _ in list(self._links.values()):
            connected.close()

    def _reported(self, search: _Search, path: Future[str]) -> None:
        """On a thread of Ray's."""
        if path.exception() is not None or not path.result() or self._closing.is_set():
            search.on_found(None)
            return
        self._paths.append((search, path.result()))
        self._signal.wake()
        if self._closing.is_set():  # meanwhile, so the thread may not come to it
            self._give_up_paths()

    def _give_up_paths(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._paths.popleft()[0].on_found(None)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                for descriptor, event in self._poll.poll(_PAUSE_S if self._searches else -1):
                    if descriptor == self._signal.descriptor:
                        self._signal.clear()
                    elif descriptor in self._searches:
                        self._greet(descriptor)
                    elif descriptor in self._links:
                        self._attend(descriptor, event)
                while self._paths:
                    self._connect(*self._paths.popleft())
                now_s = time.monotonic()
                for descriptor, (_, search) in list(self._searches.items()):
                    if now_s >= search.deadline_s:
                        self._give_up(descriptor, f"no greeting came within {HANDSHAKE_S:g} s")
        except Exception:
            log.exception("partition %d broadcasts through Ray from now on", self._partition)
        finally:
            self._closing.set()
            for descriptor in list(self._links):
                self._lose(descriptor)
            for descriptor in list(self._searches):
                self._give_up(descriptor, "")
            self._give_up_paths()
            self._signal.close()
            self._poll.close()

    def _connect(self, search: _Search, path: str) -> None:
        connecting = socket.socket(socket.AF_UNIX)
        try:
            connecting.setblocking(False)  # one that is stopped, with a full backlog, would have us wait
            connecting.connect(path)
            check_own_user(connecting)
            connecting.send(search.handshake.greeting())
            self._poll.register(connecting.fileno(), select.EPOLLIN)
        except (OSError, NotPrivate) as error:
            log.debug("partition %d: no socket at %s: %s", self._partition, path, error)
            connecting.close()
            search.on_found(None)
            return
        search.deadline_s = time.monotonic() + HANDSHAKE_S
        self._searches[connecting.fileno()] = connecting, search

    def _greet(self, descriptor: int) -> None:
        connected, search = self._searches[descriptor]
        handshake = search.handshake
        try:
            data = connected.recv(handshake.wanted_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._give_up(descriptor, "the projector has ended, or takes no connection")
            return
        handshake.receive(data)
        if handshake.refused:
            self._give_up(descriptor, handshake.refused)
        elif handshake.done:
            del self._searches[descriptor]
            link = ProjectorLink(connected, self._partition, partial(self._wait_for_room, descriptor))
            self._links[descriptor] = connected, link, search.on_lost
            search.on_found(link)

    def _wait_for_room(self, descriptor: int, waits: bool) -> None:
        """On any thread, while the link's lock is held, so that its socket is not closed meanwhile."""
        with contextlib.suppress(OSError, ValueError):  # the thread has ended, and its links with it
            self._poll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT if waits else select.EPOLLIN)

    def _attend(self, descriptor: int, event: int) -> None:
        """There is room, or the connection has ended: a projector sends nothing."""
        connected, link, _ = self._links[descriptor]
        if event & ~select.EPOLLOUT:
            try:
                data = connected.recv(1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                log.warning("partition %d: a projector sends what it was not asked for", self._partition)
            self._lose(descriptor)
        else:
            link.send_more()

    def _give_up(self, descriptor: int, why: str) -> None:
        connected, search = self._searches.pop(descriptor)
        if why:
            log.info("partition %d: a projector's socket is not used, but Ray: %s", self._partition, why)
        self._poll.unregister(descriptor)
        connected.close()
        search.on_found(None)

    def _lose(self, descriptor: int) -> None:
        connected, link, on_lost = self._links.pop(descriptor)
        link.close()
        self._poll.unregister(descriptor)
        connected.close()
        on_lost(link)
