"""NewFile: a file that is written beside its place and moved there when it is whole.

Beside the write path, for exports. Before it: `export_files.py`, which writes it.

Rules kept here: at the path itself there is never half a file, whatever ends the writing. A file that exists is
replaced only if the caller has allowed it. Readable to others as far as the umask allows: an export is made to be read
elsewhere. What a killed process leaves is called `.NAME.….new`, and may be removed.
"""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

from ..durable_files import fsync_folder
from ..errors import CallerError, StorageFailed
from ..private import open_private

__all__ = ["NewFile", "taken"]


class NewFile:
    """Write to `file`, and then `publish` it or `discard` it."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Raises `CallerError` for a path that is taken, `StorageFailed` for one where nothing can be written."""
        self.path = path
        self._overwrite = overwrite
        if not overwrite and os.path.lexists(path):
            raise taken(path)
        self._temporary = path.with_name(f".{path.name}.{token_hex(4)}.new")
        try:
            descriptor = open_private(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            umask = os.umask(0o077)
            os.umask(umask)
            os.fchmod(descriptor, 0o666 & ~umask)
        except OSError as error:
            raise StorageFailed(str(path), f"cannot write there: {error.strerror or error}") from error
        self.file = os.fdopen(descriptor, "wb")

    def publish(self) -> int:
        """Move the file to its place, durably. Returns its size in bytes. Raises `CallerError`, `StorageFailed`."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            size_bytes = os.fstat(self.file.fileno()).st_size
            self.file.close()
            if not self._overwrite and os.path.lexists(self.path):  # it came meanwhile
                raise taken(self.path)
            self._temporary.replace(self.path)
            fsync_folder(self.path.parent)
        except OSError as error:
            raise StorageFailed(str(self.path), f"cannot write the file: {error.strerror or error}") from error
        return size_bytes

    def discard(self) -> None:
        """Remove what was written, unless it is in its place already. Discarding twice is allowed."""
        try:
            self.file.close()
        finally:
            self._temporary.unlink(missing_ok=True)


def taken(path: Path) -> CallerError:
    """The error for a file that exists and is not to be replaced."""
    return CallerError(f"{path} exists; choose another place, or allow it to be replaced (overwrite=True, --overwrite)")
