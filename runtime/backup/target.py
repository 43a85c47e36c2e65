"""Target: where a backup lies. A folder, or any address that fsspec knows (`s3://…`, `gs://…`, `sftp://…`).

Rule kept here: a file is there whole or not at all. In a folder it is written beside its place, fsynced and moved
there; object stores keep the same promise for each object they are given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from ..errors import StorageFailed
from ..log.durable import write_durably
from ..private import check_owner, make_private_folder

__all__ = ["Target", "target_at"]


class Target(Protocol):
    """Named files of bytes."""

    @property
    def address(self) -> str:
        """What errors and people call it."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if it is not there. Raises `StorageFailed`."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, durably, in place of any of that name. Raises `StorageFailed`."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file that no inventory lists any more; one that is gone is fine. Raises `StorageFailed`."""
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

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageFailed(str(self._folder / name), f"cannot read: {error.strerror or error}") from error

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

    def read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._filesystem.cat_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise StorageFailed(f"{self.address}/{name}", f"cannot read: {type(error).__name__}: {error}") from error
        return content

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
