"""One LMDB environment: how it is opened, grown, reopened, and how its errors become ours.

Step [5] of the write path, below the reader and the writer (`reader.py`, `writer.py`), which are made over one.

Rules kept here:
- `sync=True, metasync=True, writemap=False`: of 438 simulated power cuts none lost a commit; without metasync 220
  of 618 did, and with writemap a full disk is a SIGBUS instead of an error
- the engine is named (`lib_version`): the package bundles two with incompatible files
- a reader sees no commit before it is durable: LMDB alone does not keep that (`_is_overtaken`)
- no transaction outlives the call it serves: a reader that stays open pins pages and makes the file grow
- a transaction of this process and a change of its map never meet: reads, growing and closing share one lock. A write
  takes it only to grow, so that no read waits for an fsync and no append for a long read
- an environment whose meta page failed to be written raises `PanicError` at every later call: it is closed and opened
  again, and what the writer had cached of it is read anew
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import Damaged, StorageFailed, StoreError, StoreMismatch
from ..private import FILE_MODE
from .format import DATABASES

if TYPE_CHECKING:
    import lmdb

__all__ = [
    "MAP_BYTES_MAX",
    "MAP_BYTES_START",
    "NOT_OURS",
    "READERS_MAX",
    "Environment",
]

NOT_OURS: Final = "this LMDB environment is not a log of Rayfold"

LMDB_ENGINE: Final = 0
"""`lib_version`: the 0.9 engine. Its files and those of 1.0 are incompatible."""

MAP_BYTES_START: Final = 1 << 30
"""The map of a new log: sparse, costs no disk; doubled whenever it is full."""

MAP_BYTES_MAX: Final = 1 << 42
"""4 TiB: dozens of such maps fit the 128 TiB address space of a process."""

READERS_MAX: Final = 512
"""Read transactions at one moment over all processes: one for each process, so 512 projectors a partition."""

DATABASES_MAX: Final = 16
"""Ours, and room for those of later formats."""

ATTEMPTS_MAX: Final = 64
"""Attempts of one transaction while maps grow: 1 GiB to 4 TiB is 12 doublings, the rest is another process growing
it."""

READER_CHECK_EVERY: Final = 256
"""Number of writes after which the slots of ended readers are freed. Such a reader otherwise keeps its pages
permanently, and the file grows; the check takes some 10 us."""

FULL_BYTES: Final = 1 << 20
"""With less room than this a file system is called full, where a write of several pages has failed."""

COMMIT_WEIGHT: Final = 0.1
"""The weight of the last commit in the moving average of what commits take."""

DESCRIPTORS_OF_A_LOG: Final = 3
"""An open log: its data file, once more for synced writes of a writer, and its lock file."""

DESCRIPTORS_SPARE: Final = 32
"""Left for sockets, files and the next process that is started."""

Result = TypeVar("Result")
Use = Callable[["lmdb.Transaction[bytes]"], Result]


class Environment:
    """An open LMDB environment with the databases of a log, and the two ways to use it: `read` and `write`."""

    def __init__(
        self, path: Path, name: str, *, readonly: bool, map_bytes: int, databases: Sequence[bytes] = DATABASES
    ) -> None:
        global lmdb  # by programs that open a log: those without one import this module too, and need no LMDB
        import lmdb

        self.path = path
        self.name = name
        self.readonly = readonly
        self.commit_s = 0.0
        """What a commit takes, with its fsyncs: a moving average."""
        self._map_bytes = map_bytes
        self._names = databases
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        self._writes = 0
        self._lmdb: lmdb.Environment | None = None
        with self._lock:
            self._open()

    def read(self, use: Use[Result]) -> Result:
        """What `use` makes of a read transaction, which sees one commit and ends with this call."""
        self._check_process()
        with self._lock:
            for _ in range(ATTEMPTS_MAX):
                environment = self._open()
                try:
                    with environment.begin() as transaction:
                        if _is_overtaken(environment, transaction):
                            continue
                        return use(transaction)
                except lmdb.MapResizedError:
                    self._resize(environment, 0)
                except lmdb.BadRslotError:  # a forked child has ended, and gave the slot back: take another
                    continue
                except lmdb.Error as error:
                    raise self.failure(error) from error
        raise StorageFailed(str(self.path), "its map is being resized, or it is written, faster than it can be read")

    def write(self, use: Use[Result]) -> Result:
        """What `use` makes of a write transaction, which is committed and fsynced when this returns.

        `use` runs again when the map had to grow. Whatever is raised: nothing of the transaction is stored. Calls
        must not overlap, nor with `close`.
        """
        self._check_process()
        for _ in range(ATTEMPTS_MAX):
            environment = self._lmdb or self._ensure_open()
            try:
                self._writes += 1
                if self._writes % READER_CHECK_EVERY == 0:
                    environment.reader_check()
                with environment.begin(write=True) as transaction:
                    result = use(transaction)
                    decided_s = time.perf_counter()
                self.commit_s += (time.perf_counter() - decided_s - self.commit_s) * COMMIT_WEIGHT
                return result
            except lmdb.MapFullError as error:
                self._grow(error)
            except lmdb.MapResizedError:
                with self._lock:
                    self._resize(environment, 0)
            except lmdb.Error as error:
                with self._lock:
                    self._shut()
                raise self.failure(error) from error
        raise StorageFailed(str(self.path), "its map is being resized without end")

    def make_writable(self) -> None:
        """Have an environment that was opened to be read take `write` as well, from now on: it is opened again. Raises
        `StorageFailed`, and is as it was."""
        with self._lock:
            if not self.readonly:
                return
            self._shut()
            self.readonly, self._map_bytes = False, MAP_BYTES_START
            try:
                self._open()
            except BaseException:
                self.readonly = True
                raise

    def _ensure_open(self) -> lmdb.Environment:
        """LMDB's environment, opened again if a failure has closed it."""
        with self._lock:
            return self._open()

    def database(self, name: bytes) -> lmdb._Database:
        """The handle of one of the log's databases, good until the environment is opened again."""
        return self._databases[name]

    def map_bytes(self) -> int:
        """The present size of the map: what the log may grow to without asking."""
        with self._lock:
            return int(self._open().info()["map_size"])

    def entries(self, name: bytes) -> int:
        """How many pairs a database holds."""
        return self.read(lambda transaction: int(transaction.stat(self.database(name))["entries"]))

    def close(self) -> None:
        """Release the files. Closing twice is allowed; using it afterwards is `StorageFailed`."""
        with self._lock:
            self._closed = True
            if self._process == os.getpid():
                self._shut()

    def failure(self, error: lmdb.Error) -> StoreError:
        """Our error for one of LMDB's, with what to do where something can be done."""
        what = str(error).removeprefix(f"{self.path}: ")
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            return Damaged(f"{self.name} ({self.path})", f"LMDB reports: {what}")
        if isinstance(error, lmdb.VersionMismatchError):
            return StoreMismatch(str(self.path), f"it was written by another LMDB engine: {what}")
        if isinstance(error, lmdb.ReadersFullError):
            what = f"all {READERS_MAX} reader slots are taken; fewer processes may read one partition at once"
        elif isinstance(error, lmdb.LockError):  # LMDB identifies readers by their process ids
            what = f"{what}; a process of another container may have process id {os.getpid()} too and read this log"
            what = f"{what}: have containers that share a data folder share their process ids (--pid)"
        elif "already open in this process" in what:
            what = "it is already open in this process; use that log, which is a reader too, or close it first"
        elif isinstance(error, lmdb.PanicError):
            what = "an earlier write of its meta page failed; it is opened again at the next call"
        elif os.strerror(errno.EIO) in what and (free := _free_bytes(self.path)) < FULL_BYTES:
            what = f"{what}; its file system is full, with {free:,} bytes free: make room"
        return StorageFailed(str(self.path), what)

    def _check_process(self) -> None:
        """An environment used after a fork is accepted silently by LMDB, and undefined."""
        if self._process != os.getpid():
            what = f"{self.name} was opened by process {self._process}; open it again after a fork"
            raise StorageFailed(str(self.path), what)

    def _open(self) -> lmdb.Environment:
        """The environment, opened if it is not. The caller holds the lock."""
        if self._lmdb is not None:
            return self._lmdb
        if self._closed:
            raise StorageFailed(str(self.path), f"{self.name} was closed")
        _check_descriptors(self.path, self.name)
        try:
            try:
                environment = self._mapped(self._map_bytes_at_open())
            except lmdb.MemoryError:  # no address space for a map with room to grow: one as large as the log is by now
                environment = self._mapped(max(self._file_bytes(), 1))
            try:
                self._check_length(environment)
                environment.reader_check()
                self._databases = self._open_databases(environment)
            except BaseException:
                environment.close()
                raise
        except lmdb.NotFoundError as error:
            raise StoreMismatch(str(self.path), NOT_OURS) from error
        except lmdb.Error as error:
            raise self.failure(error) from error
        except OSError as error:
            raise StorageFailed(str(self.path), str(error)) from error
        self._lmdb = environment
        return environment

    def _mapped(self, map_bytes: int) -> lmdb.Environment:
        return lmdb.open(
            str(self.path),
            map_size=map_bytes,
            readonly=self.readonly,
            create=not self.readonly,
            sync=True,
            metasync=True,
            writemap=False,
            max_readers=READERS_MAX,
            max_dbs=DATABASES_MAX,
            max_spare_txns=1,
            mode=FILE_MODE,
            lib_version=LMDB_ENGINE,
        )

    def _open_databases(self, environment: lmdb.Environment) -> dict[bytes, lmdb._Database]:
        """The handles of the databases; all are made in one transaction if the environment is new, else none."""
        if self.readonly or environment.stat()["entries"]:
            return {name: environment.open_db(name, create=False) for name in self._names}
        with environment.begin(write=True) as transaction:
            return {name: environment.open_db(name, txn=transaction) for name in self._names}

    def _map_bytes_at_open(self) -> int:
        """Twice the file, at least the start: an open for writing leaves room, so that growing stays rare."""
        if self.readonly:
            return 0
        size_bytes, wanted = self._file_bytes(), self._map_bytes
        while wanted < 2 * size_bytes and wanted < MAP_BYTES_MAX:
            wanted *= 2
        return wanted

    def _file_bytes(self) -> int:
        with suppress(FileNotFoundError):
            return (self.path / "data.mdb").stat().st_size
        return 0

    def _check_length(self, environment: lmdb.Environment) -> None:
        """Refuse a file that was cut off: touching its missing pages would kill the process with SIGBUS.

        A shorter file than the last page asks for can be sound (free pages at its end that were never written), so
        LMDB's verifier, which reads the file without mapping it, has the last word. Rare, hence not at every open. It
        does not check the end of a large value: what is missing is filled up with zeros, so that such a value has a
        wrong checksum instead.
        """
        from lmdb import verify as lmdb_verify

        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        present = self._file_bytes()
        if present >= needed:
            return
        if lmdb_verify.verify(str(self.path)):  # type: ignore[no-untyped-call]
            raise Damaged(f"{self.name} ({self.path})", f"data.mdb has {present:,} bytes of {needed:,}: it was cut off")
        with (self.path / "data.mdb").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # never shortens it, even if another process writes

    def _shut(self) -> None:
        """Close LMDB's environment; the next use opens it again. The caller holds the lock."""
        environment, self._lmdb = self._lmdb, None
        if environment is not None:
            environment.close()

    def _grow(self, error: lmdb.Error) -> None:
        """Double the map. No transaction of this process is open: the writer's was aborted, readers hold the lock."""
        with self._lock:
            environment = self._open()
            wanted = environment.info()["map_size"] * 2
            if wanted > MAP_BYTES_MAX:
                raise self.failure(error) from error
            environment.reader_check()
            self._resize(environment, wanted)

    def _resize(self, environment: lmdb.Environment, map_bytes: int) -> None:
        """Change the map; 0 takes the size that another process gave it. The caller holds the lock.

        LMDB gives the old map back before it asks for the new one: what fails here has no map any more.
        """
        try:
            environment.set_mapsize(map_bytes)
        except lmdb.Error as error:
            self._shut()
            raise self.failure(error) from error


def _check_descriptors(path: Path, name: str) -> None:
    """Raise `StorageFailed` unless one more log may be opened: the limit, what is open, and what would be enough.

    A store has up to 1,024 partitions with two files each, and the usual limit of a process is 1,024 files. Without
    this check LMDB reports "Too many open files" in the middle of something else, and so does whatever opens the next
    file or socket of the process. The soft limit is raised to what is needed where the hard limit allows it: that is
    what it is for. 20 us.
    """
    opened = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = opened + DESCRIPTORS_OF_A_LOG + DESCRIPTORS_SPARE
    if soft in (resource.RLIM_INFINITY, -1) or needed <= soft:
        return
    wanted = max(2 * soft, needed)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return
    what = f"{name} is not opened: this process has {opened:,} files open, and may have {hard:,} (ulimit -Hn)"
    remedy = f"a process that reads all partitions needs {DESCRIPTORS_OF_A_LOG} for each and {DESCRIPTORS_SPARE} more"
    raise StorageFailed(str(path), f"{what}; {remedy}: raise the limit (LimitNOFILE= of systemd, ulimit -n)")


def _is_overtaken(environment: lmdb.Environment, transaction: lmdb.Transaction[bytes]) -> bool:
    """Whether commits passed a read transaction while it began, so that it may see what is not durable yet.

    LMDB takes the number N of the last durable commit, and then copies the meta page with the parity of N. A reader
    that is not run between the two, for as long as one whole commit takes, finds commit N + 2 there: its page is
    written before it is synced, and only then it counts as the last one. The next transaction would see N + 1 again.
    While the newest page is N or N + 1, the page of N has not been overwritten. One begin in some million is affected
    on a machine with more to do than cores; to ask costs 0.7 us.
    """
    return int(environment.info()["last_txnid"]) - transaction.id() > 1


def _free_bytes(path: Path) -> int:
    """Free bytes of the file system; LMDB reports a write that was cut short for want of room as an error of the
    disk."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return FULL_BYTES
    return disk.f_bavail * disk.f_frsize
