"""The plain program: the same job in one process, without Ray and without our write loop. The COST baseline.

"Scalability! But at what COST?" (McSherry, Isard, Murray, 2015): a system that scales has to state how many cores it
needs until it beats a good program on one. This is that program. Per command: validate it, look up its id, decide,
encode the event, checksum and chain it, put it, its stream entry and its command entry. Per batch: one LMDB transaction
with the log's own durability (`sync`, `metasync`, no `writemap`) and its own way of putting stream entries late.

Rule kept here: it is no straw man. It shares with the runtime what every program of this kind needs, the messages and
the bytes on the disk (so the same invariants check what it wrote), and nothing of what the runtime adds: no wire, no
envelopes, no catalogue, no residents, no plan. It keeps all accounts in memory and starts with an empty log.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import lmdb
import msgpack

from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import new_command_id
from rayfold.runtime.log.contract import NewEvent
from rayfold.runtime.log.environment import DATABASES_MAX, LMDB_ENGINE, MAP_BYTES_START, READERS_MAX
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.format import (
    CHAIN_START,
    COMMANDS,
    EVENTS,
    META,
    META_INDEXED,
    STREAMS,
    NextRecord,
    chain_of,
    encode_command,
    encode_record,
    encode_stream_entry,
    pack_position,
    stream_id,
)
from rayfold.runtime.log.index_buffer import GROUPS, IndexBuffer, encode_indexed
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId

from .bank import Deposit, Deposited

MAP_BYTES: Final = 64 * MAP_BYTES_START
"""Sparse: large enough never to be grown, which costs the plain program nothing and saves it the code."""


class PlainBank:
    """Accounts over an LMDB file of its own. `lmdb_options` are for tests that break it on purpose."""

    def __init__(self, folder: Path, **lmdb_options: Any) -> None:
        open_log(folder, "plain").close()  # makes the file, with the databases and the format's meta data
        options: dict[str, Any] = {"sync": True, "metasync": True, "writemap": False} | lmdb_options
        self._lmdb = lmdb.open(
            str(folder),
            map_size=MAP_BYTES,
            max_dbs=DATABASES_MAX,
            max_readers=READERS_MAX,
            lib_version=LMDB_ENGINE,
            **options,
        )
        self._events, self._streams, self._commands, self._meta = (
            self._lmdb.open_db(name, create=False) for name in (EVENTS, STREAMS, COMMANDS, META)
        )
        self._head, self._chain = 0, CHAIN_START
        self._recent = IndexBuffer()
        self._recent.learn([0] * GROUPS, [], 0)
        self.accounts: dict[str, tuple[StreamId, bytes, int, int]] = {}
        """Account -> its stream, the stream's key, version and balance."""
        self._pack = msgpack.Packer(autoreset=True).pack

    def deposit_all(self, batch: Iterable[tuple[str, int]]) -> list[Receipt]:
        """Deposits of an amount to an account each, in one transaction; fsynced when this returns."""
        with self._lmdb.begin(write=True) as transaction:
            receipts, events, streams, commands = self._decided(batch, transaction)
            transaction.cursor(self._events).putmulti(events, overwrite=False, append=True)
            due, indexed = self._recent.stage(streams, sum([len(record) for _, record in events]), self._head)
            transaction.cursor(self._streams).putmulti(due, overwrite=False)
            if indexed is not None:
                transaction.put(META_INDEXED, encode_indexed(indexed), db=self._meta)
            transaction.cursor(self._commands).putmulti(sorted(commands), overwrite=False)
        self._recent.commit()
        return receipts

    def _decided(
        self, batch: Iterable[tuple[str, int]], transaction: lmdb.Transaction[bytes]
    ) -> tuple[list[Receipt], list[tuple[bytes, bytes]], list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
        """The hot loop: everything of a batch, with what is to be put into each database."""
        receipts, events, streams, commands = [], [], [], []
        head, chain, accounts, pack = self._head, self._chain, self.accounts, self._pack
        look_up, ids, now_us = transaction.get, self._commands, time.time_ns() // 1000
        for account, amount in batch:
            command = Deposit(amount=amount)
            command_id = new_command_id()
            if look_up(command_id, None, ids) is not None:
                raise ValueError(f"command {command_id.hex()} is stored already")
            stream, key, version, balance = accounts.get(account) or _open_account(account)
            event = Deposited(amount=command.amount)
            head, version = head + 1, version + 1
            payload = encode_message(event)
            record = encode_record(
                NextRecord(head, chain, stream, version, now_us, command_id, b"", b""),
                NewEvent("Deposited", 1, payload),
                pack,
            )
            chain = chain_of(record)
            digest = hashlib.blake2b(b"%b%b%b" % (key, b"Deposit", payload), digest_size=16).digest()
            versioned = key + pack_position(version)
            events.append((pack_position(head), record))
            streams.append((versioned, encode_stream_entry(versioned, head, 1)))
            commands.append((command_id, encode_command(command_id, digest, head, version)))
            accounts[account] = stream, key, version, balance + event.amount
            receipts.append(Receipt(stream, 0, head, version, command_id))
        self._head, self._chain = head, chain
        return receipts, events, streams, commands

    def run(self, source: Iterator[tuple[str, int]], batch: int, seconds: float) -> list[Receipt]:
        """Deposits out of `source` in batches until the time is over."""
        receipts: list[Receipt] = []
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            receipts += self.deposit_all([next(source) for _ in range(batch)])
        return receipts

    def close(self) -> None:
        """Close the file."""
        self._lmdb.close()


def _open_account(account: str) -> tuple[StreamId, bytes, int, int]:
    stream = stream_id("Account", account)
    return stream, stream.key, 0, 0
