"""Faults on the sockets of partitions and projectors: cut, half a frame, late, twice, garbage, and peers that hang.

A proxy that breaks things stands between three clients and each partition; beside it, strangers of the same user send
to the partition's own socket with whatever they have. Ray's calls are the way out that the clients have to find.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from rayfold.actors.sockets.broadcast_frames import BROADCAST_FRAME_BYTES_MAX, COMMITTED, committed_frame
from rayfold.actors.sockets.framing import frame
from rayfold.actors.sockets.handshake import Handshake
from rayfold.actors.sockets.query_frames import ASK, QUERY_FRAME_BYTES_MAX, WAIT
from rayfold.runtime.encoding.frames import REQUEST, REQUEST_BYTES_MAX

from ..bank import AllTotals, Totals
from ..contract import Context, Findings, scenario
from .harness import LocalBank, local_bank

__all__ = ["Faults"]

_ENOUGH_S: Final = 60.0
"""For some 270 frames, by which each kind of fault has happened: less than a second on a quiet machine."""

_AFTER_MS: Final = 30_000.0
"""For a command beside all this, on a busy machine."""

_LOOK_S: Final = 0.1
_FAULTS: Final = ("cut_in_frame", "cut_before_answer", "late", "repeated")
_FAULTY: Final = 0.03
"""The share of frames that something happens to; most of it costs the connection."""

_LATE_S: Final = 0.3
_HANGING: Final = 80
"""Peers that send half a header and no more: over the 64 that a socket server lets in."""

_RSS_GROWTH_MAX_MIB: Final = 200
"""Of a partition: 64 connections with a frame of 1 MiB each, and the load's own records."""


class Faults:
    """What happens to which frame, drawn from the seed: nothing to most, and each kind as often as any other. So that
    nothing is left to luck, kinds come in rounds, each kind once in a round, and the frames between have a bound."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._round: list[str] = []
        self._spared = self._gap()

    def next(self) -> str:
        """Of the next frame: a kind, or nothing."""
        if self._spared:
            self._spared -= 1
            return ""
        self._spared = self._gap()
        self._round = self._round or self._rng.sample(_FAULTS, len(_FAULTS))
        return self._round.pop()

    def _gap(self) -> int:
        return self._rng.randrange(int(2 / _FAULTY))


class Proxied:
    """Stands where a partition's handle does, and returns another path for the partition's socket."""

    def __init__(self, actor: Any, path: Path) -> None:
        self.execute, self.lost = actor.execute, actor.lost
        self.socket_path = self
        self._path = str(path)

    def remote(self) -> Proxied:
        """As a method of an actor."""
        return self

    def future(self) -> Future[str]:
        """As the reference that such a call returns."""
        told: Future[str] = Future()
        told.set_result(self._path)
        return told


class Proxy:
    """Carries frames to a partition and its answers back, and breaks some."""

    def __init__(self, actor: Any, path: Path, rng: random.Random, happened: Counter[str]) -> None:
        self.path, self._actor, self._rng, self._happened = path, actor, rng, happened
        self._faults = Faults(rng)
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Proxied]:
        """Until the end of the block."""
        server = await asyncio.start_unix_server(self._accept, self.path)
        try:
            yield Proxied(self._actor, self.path)
        finally:
            server.close()
            for serving in list(self._serving):
                serving.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """One connection, until something cuts it. The partition may be away: then there is no connection."""
        self._happened["connections"] += 1
        answering: asyncio.Task[None] | None = None
        onward: asyncio.StreamWriter | None = None
        with contextlib.suppress(Exception):  # of Ray's there are many, and of sockets
            path = await asyncio.wrap_future(self._actor.socket_path.remote().future())
            partition, onward = await asyncio.open_unix_connection(path)
            answering = asyncio.create_task(_carry(partition, back))
            await self._carry_frames(client, onward, answering)
        if answering is not None:
            answering.cancel()
        for writer in filter(None, (back, onward)):
            writer.transport.abort()

    async def _carry_frames(
        self, client: asyncio.StreamReader, onward: asyncio.StreamWriter, answering: asyncio.Task[None]
    ) -> None:
        onward.write(await _greeting_of(client))
        while True:
            header = await client.readexactly(REQUEST.size)
            frame = header + await client.readexactly(REQUEST.unpack(header)[0])
            self._happened["frames"] += 1
            fault = self._faults.next()
            if fault:
                self._happened[fault] += 1
            if fault == "late":
                await asyncio.sleep(self._rng.random() * _LATE_S)
            onward.write(frame[: self._rng.randrange(len(frame))] if fault == "cut_in_frame" else frame)
            if fault == "repeated":
                onward.write(frame)
            elif fault == "cut_before_answer":
                answering.cancel()
                await onward.drain()
            if fault.startswith("cut"):
                return


async def _greeting_of(client: asyncio.StreamReader) -> bytes:
    """The greeting of a client, which passes whole: it is the frames that faults happen to."""
    handshake, greeting = Handshake("partition"), b""
    while wanted := handshake.wanted_bytes:
        greeting += (more := await client.readexactly(wanted))
        handshake.receive(more)
    return greeting


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@scenario(
    "hostile-road",
    "the socket to a partition: connections cut, frames cut, late and twice, garbage, peers that hang",
    "I1 I2 I3 I4 I5 I7 I8 I9 I10 I11 I12",
    times=(12, 30, 1),
)
async def socket_faults(context: Context, findings: Findings) -> None:
    """A load through the proxies, and strangers at the sockets."""
    happened: Counter[str] = Counter(dict.fromkeys(_FAULTS, 0))
    async with contextlib.AsyncExitStack() as proxies, local_bank(context, findings) as bank:
        folder = Path(proxies.enter_context(tempfile.TemporaryDirectory(prefix="rayfold-")))  # paths have to be short
        pids = [one.pid for one in (await bank.runtime.status()).partitions]
        grown_mib = await bank.memory()
        proxied = []
        for number in range(2):
            rng = random.Random(context.rng.getrandbits(64))  # what happens at one does not hang on the other
            proxy = Proxy(bank.actor(number), folder / str(number), rng, happened)
            proxied.append(await proxies.enter_async_context(proxy.listening()))
        bank.begin_load(actors=proxied)
        for _ in context.rounds():
            await _strangers(bank, context.rng, happened)
        end_s = time.monotonic() + _ENOUGH_S
        while min(happened[fault] for fault in _FAULTS) < 1 and time.monotonic() < end_s:
            await asyncio.sleep(_LOOK_S)
        after_ms = max(await bank.probe(0), await bank.probe(1))
        findings.check("I12", after_ms < _AFTER_MS, f"a command was acknowledged after {after_ms:.0f} ms only")
        grown = grown_mib()
        await bank.end_load()
        findings.check("I11", [one.pid for one in (await bank.runtime.status()).partitions] == pids, "one has ended")
    findings.figures["rss_growth_mib_max"] = grown
    findings.check("I11", grown < _RSS_GROWTH_MAX_MIB, f"a partition grew by {grown} MiB")
    findings.figures.update(happened)
    for fault in ("frames", *_FAULTS):
        findings.reach(happened[fault] > 0, f"no fault of the kind {fault} happened")


async def _strangers(bank: LocalBank, rng: random.Random, happened: Counter[str]) -> None:
    """Garbage, a length beyond the limit, a batch that is none, and more hanging peers than a socket server lets in."""
    for number in range(2):
        path = await asyncio.wrap_future(bank.actor(number).socket_path.remote().future())
        client, greeting = os.urandom(16), Handshake("partition").greeting()
        sent = {
            "garbage": rng.randbytes(4_096),
            "another_purpose": Handshake("projector").greeting(),
            "too_long": greeting + REQUEST.pack(REQUEST_BYTES_MAX + 1, client, 1, 0),
            "no_batch": greeting + REQUEST.pack(100, client, 1, 0) + rng.randbytes(100),
        }
        for kind, data in sent.items():
            happened[kind] += 1
            ended = await asyncio.to_thread(_ended_after, path, data)
            bank.findings.check("I10", ended, f"partition {number} answered a stranger that sent {kind}")
        hanging = [await asyncio.to_thread(_hang, path) for _ in range(_HANGING)]
        happened["hanging"] += len(hanging)
        await bank.probe(number)
        for one in filter(None, hanging):
            one.close()
    await _strangers_at_projectors(bank, rng, happened)


async def _strangers_at_projectors(bank: LocalBank, rng: random.Random, happened: Counter[str]) -> None:
    """The same at the sockets for queries and broadcasts, before the greeting and after it; records that are none, or
    of elsewhere, and broadcasts that stop in the middle; and whether what was just written is seen beside them."""
    greeting, broadcasts = Handshake("projector").greeting(), Handshake("broadcast").greeting()
    sent = {
        "garbage": rng.randbytes(4_096),
        "too_long": greeting + frame(1, ASK, bytes(QUERY_FRAME_BYTES_MAX + 1))[:64],
        "no_call": greeting + frame(1, WAIT, rng.randbytes(100)),
        "broadcast_too_long": broadcasts + frame(0, COMMITTED, bytes(BROADCAST_FRAME_BYTES_MAX + 1))[:64],
        "no_broadcast": broadcasts + frame(0, COMMITTED, rng.randbytes(100)),
        "unknown_partition": broadcasts + committed_frame(2, 1, [], 1),
    }
    false = [committed_frame(number, 1 + rng.randrange(1_000), [rng.randbytes(200)] * 3, 900) for number in range(2)]
    for _, parts, _ in bank.runtime._here.client.projections_reached():
        for actor in (actor for part in parts for actor in part):
            path = await asyncio.wrap_future(actor.socket_path.remote().future())
            for kind, data in sent.items():
                happened[f"query_{kind}"] += 1
                service = "broadcast" if data.startswith(broadcasts) else "projector"
                ended = await asyncio.to_thread(_ended_after, path, data, service)
                bank.findings.check("I10", ended, f"a projector did not cut off a stranger that sent {kind}")
            hanging = [await asyncio.to_thread(_hang, path, broadcasts + one + one[:-1]) for one in false]
            happened["false_records"] += len(false)
            hanging += [await asyncio.to_thread(_hang, path) for _ in range(_HANGING)]
            began_s = time.monotonic()
            await bank.runtime.ask(Totals, AllTotals(), after=await bank.runtime.heads())
            took_ms = (time.monotonic() - began_s) * 1000
            bank.findings.check("I12", took_ms < _AFTER_MS, f"a query was answered after {took_ms:.0f} ms only")
            for one in filter(None, hanging):
                one.close()


def _ended_after(path: str, data: bytes, service: str = "partition") -> bool:
    """Whether the connection is ended without more than a greeting."""
    handshake = Handshake(service)
    with socket.socket(socket.AF_UNIX) as stranger, contextlib.suppress(ConnectionError):
        stranger.settimeout(10)
        stranger.connect(path)
        stranger.sendall(data)
        while wanted := handshake.wanted_bytes:
            if not (greeting := stranger.recv(wanted)):
                return True
            handshake.receive(greeting)
        try:
            return stranger.recv(1) == b""
        except TimeoutError:
            return False
    return True


def _hang(path: str, sent: bytes = b"half") -> socket.socket | None:
    stranger = socket.socket(socket.AF_UNIX)
    stranger.settimeout(1)
    try:
        stranger.connect(path)
        stranger.send(sent)
    except OSError:
        stranger.close()
        return None
    return stranger
