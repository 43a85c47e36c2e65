"""Builds that are broken on purpose, each in one place, made of the real log, write loop and read model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from rayfold import Projection, Receipt, Recorded, answer, project
from rayfold.benchmarks.suites.invariants import balances_in, fsync_violations, log_violations, read_model_violations
from rayfold.benchmarks.workloads.bank import Account, AllBalances, Balances, Deposited, deposits
from rayfold.benchmarks.workloads.keys import names
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.encoding.query_batch import PackedQuery
from rayfold.runtime.log.contract import Append, Appended
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.write.write_loop import WriteLoop

CATALOGUE = Catalogue([Account], [Balances])
BATCHES = 5
BATCH = 20


class BalancesTwice(Projection, name="Balances"):
    """The bank's read model, with a handler that adds each deposit twice."""

    balances: dict[str, int] = {}

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        account = recorded.stream.id
        self.balances[account] = self.balances.get(account, 0) + 2 * event.amount

    @answer
    def all_balances(self, query: AllBalances) -> dict[str, int]:
        return self.balances


class DropsAnEvent:
    """A log that acknowledges a batch and appends all of it but the last event."""

    def __init__(self, log: LmdbLog, at_batch: int) -> None:
        self._log = log
        self._left = at_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        self._left -= 1
        if self._left:
            return self._log.append(epoch, appends)
        appended = self._log.append(epoch, appends[:-1])
        last = appended[-1]
        return [*appended, Appended(last.position + 1, appends[-1].expected_version + 1, ())]


class Bank:
    """One partition and one replica, as a plain program."""

    def __init__(self, folder: Path, log: LmdbLog, writes_to: Any = None, model: type[ReadModel] = ReadModel) -> None:
        self.folder, self.log = folder, log
        self.read_model = model(Balances, CATALOGUE, {0: log})
        self.receipts: list[Receipt] = []
        loop = WriteLoop(0, writes_to or log, CATALOGUE)
        loop.activate()
        envelopes = deposits(names(10), seed=7)
        for _ in range(BATCHES):
            batch = loop.execute([pack(next(envelopes))[0] for _ in range(BATCH)])
            self.receipts += [outcome for outcome in batch.outcomes if isinstance(outcome, Receipt)]

    def violations(self) -> list[str]:
        """All the invariants that a timed run ends with."""
        told = fsync_violations([self.folder / "data.mdb"])
        told += log_violations({0: self.log}, self.receipts)
        self.read_model.catch_up(0)
        query = PackedQuery(AllBalances.message_name, encode_message(AllBalances()))
        answered = self.read_model.answer([query], lambda answers: dict(answers[0]))
        return told + read_model_violations("read model", balances_in([self.log]), answered)


@contextmanager
def opened(folder: Path) -> Iterator[LmdbLog]:
    log = open_log(folder, "partition 0")
    try:
        yield log
    finally:
        log.close()


@contextmanager
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every LMDB file that is opened meanwhile is never synced."""
    real = lmdb.open
    with monkeypatch.context() as patched:
        patched.setattr(lmdb, "open", lambda *args, **kwargs: real(*args, **kwargs | {"sync": False}))
        yield
