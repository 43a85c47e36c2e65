"""Target: the place of a backup. A folder, or any address that fsspec knows (`s3://…`, `gs://…`, `sftp://…`).

Rules kept here:
- a file is there whole or not at all. In a folder it is written beside its place, fsynced and moved there; object
  stores keep the same promise for each object they are given
- what is read is bounded before it is read: a target is in other hands than a store
- a folder has one writer at a time (`backup.lock`), and is never the folder of a store or in one
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from ..durable_files import write_durably
from ..errors import Damaged, StorageFailed, StoreInUse, StoreMismatch
from ..private import check_owner, make_private_folder, open_private
from ..store.store_lock import MANIFEST

__all__ = ["Target", "target_at"]


_LOCK: Final = "backup.lock"
"""In a folder: flocked by a process that writes to it, or reads all of it."""


class Target(Protocol):
    """Named files of bytes."""

    @property
    def address(self) -> str:
        """What errors and people call it."""
        ...

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """The content of a file, or None if it is not there. Raises `StorageFailed`, and `Damaged` for a larger one."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """What is in a folder of the target, by its name in there: bytes of a file, 0 of a folder; empty if there is no
        such folder. Raises `StorageFailed`."""
        ...

    def held(self, *, writing: bool) -> contextlib.AbstractContextManager[None]:
        """No other process writes meanwhile, or none ever, as far as that can be known: not at a remote address. Raises
        `StoreInUse`, `StorageFailed`, and `StoreMismatch` for a folder that must not be written to."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, durably, in place of any of that name. Raises `StorageFailed`."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file that no inventory lists any more; a missing one is not an error. Raises `StorageFailed`."""
        ...


def target_at(address: str | os.PathLike[str]) -> Target:
    """The target at an address. Raises `StorageFailed` for one that nothing here understands."""
    text = os.fspath(address)
    for local in ("file://", "local://"):
        text = text.removeprefix(local)
    if "://" not in text:
        return _Folder(Path(text).absolute())
    try:
        import fsspec
    except ImportError:
        what = "an address other than a folder needs the package fsspec (and the one for its protocol)"
        raise StorageFailed(text, f"{what}: install rayfold[backup]") from None
    try:
        filesystem, path = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise StorageFailed(text, str(error)) from error
    return _Remote(text, filesystem, path.rstrip("/"))


class _Folder:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = str(folder)

    def read(self, name: str, bytes_max: int) -> bytes | None:
        try:
            with (self._folder / name).open("rb") as file:
                content = file.read(bytes_max + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageFailed(str(self._folder / name), f"cannot read: {error.strerror or error}") from error
        return _bounded(content, len(content), bytes_max, str(self._folder / name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self._folder / folder) as found:
                return {one.name: one.stat().st_size if one.is_file() else 0 for one in found}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StorageFailed(str(self._folder / folder), f"cannot read: {error.strerror or error}") from error

    @contextlib.contextmanager
    def held(self, *, writing: bool) -> Iterator[None]:
        path = self._folder / _LOCK
        if writing:
            self._check_is_no_store()
        try:
            if writing:
                check_owner(self._folder)
                if not self._folder.exists():
                    make_private_folder(self._folder)
                descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
            else:  # it may lie where this user cannot write
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if writing:
                raise StorageFailed(str(path), f"cannot open the lock: {error.strerror or error}") from error
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreInUse(self.address, "another backup or restore") from None
            yield
        finally:
            os.close(descriptor)

    def _check_is_no_store(self) -> None:
        for one in (self._folder, *self._folder.parents):
            if (one / MANIFEST).exists():
                what = f"it is in the folder of a store, {one}: what it holds would be lost with that"
                raise StoreMismatch(self.address, what, "choose a place of its own, on another disk at best")

    def write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        try:
            check_owner(self._folder)
            if path.parent != self._folder or not path.parent.exists():  # else it may hold other things of its user
                make_private_folder(path.parent)
            write_durably(path, content)
        except OSError as error:
            raise StorageFailed(str(path), f"cannot write: {error.strerror or error}") from error

    def remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed(str(self._folder / name), f"cannot remove: {error.strerror or error}") from error


class _Remote:
    """Whatever fsspec reaches. Its errors are those of a hundred packages."""

    def __init__(self, address: str, filesystem: Any, path: str) -> None:
        self.address = address
        self._filesystem, self._path = filesystem, path

    def read(self, name: str, bytes_max: int) -> bytes | None:
        path, where = f"{self._path}/{name}", f"{self.address}/{name}"
        try:
            self._filesystem.invalidate_cache()
            size_bytes = self._filesystem.size(path) or 0
            content: bytes = b"" if size_bytes > bytes_max else self._filesystem.cat_file(path)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise StorageFailed(where, f"cannot read: {type(error).__name__}: {error}") from error
        return _bounded(content, max(size_bytes, len(content)), bytes_max, where)

    def sizes(self, folder: str = "") -> dict[str, int]:
        path = f"{self._path}/{folder}".rstrip("/")
        try:
            self._filesystem.invalidate_cache()
            found = self._filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            what = f"cannot read: {type(error).__name__}: {error}"
            raise StorageFailed(f"{self.address}/{folder}", what) from error
        return {one["name"].rstrip("/").rpartition("/")[2]: int(one.get("size") or 0) for one in found}

    def held(self, *, writing: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def write(self, name: str, content: bytes) -> None:
        path = f"{self._path}/{name}"
        try:
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._filesystem.pipe_file(path, content)
        except Exception as error:
            raise StorageFailed(f"{self.address}/{name}", f"cannot write: {type(error).__name__}: {error}") from error

    def remove(self, name: str) -> None:
        try:
            self._filesystem.rm_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise StorageFailed(f"{self.address}/{name}", f"cannot remove: {type(error).__name__}: {error}") from error


def _bounded(content: bytes, size_bytes: int, bytes_max: int, where: str) -> bytes:
    if size_bytes > bytes_max:
        raise Damaged(where, f"it has over {bytes_max:,} bytes")
    return content
