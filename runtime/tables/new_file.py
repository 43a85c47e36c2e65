"""NewFile: a file that is written beside its place and moved there when it is whole.

Beside the write path, for exports. Before it: `export_files.py`, which writes it.

Rules kept here: at the path itself there is never half a file, whatever ends the writing. A file that exists is
replaced only if the caller has allowed it. Readable to others as far as the umask allows: an export is made to be read
elsewhere. What a killed process leaves is called `.NAME.….new`, and may be removed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from ..durable_files import fsync_folder
from ..errors import CallerError, StorageFailed
from ..private import open_private

__all__ = ["NewFile"]


class NewFile:
    """Write to `file`, `complete` it, and then `publish` it; or `discard` it."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Raises `CallerError` for a path that is taken, `StorageFailed` for one where nothing can be written."""
        self.path = path
        self._overwrite = overwrite
        if path.is_dir() and not path.is_symlink():
            raise CallerError(f"{path} is a folder, which no file replaces; give the path of a file")
        self._check_free()
        self._temporary = path.with_name(f".{path.name}.{token_hex(4)}.new")
        try:
            descriptor = open_private(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            umask = os.umask(0o077)
            os.umask(umask)
            os.fchmod(descriptor, 0o666 & ~umask)
        except OSError as error:
            raise StorageFailed(str(path), f"cannot write there: {error.strerror or error}") from error
        self.file = os.fdopen(descriptor, "wb")

    def complete(self) -> int:
        """Have all of it on the disk, beside its place. Returns its size in bytes. Raises `CallerError`,
        `StorageFailed`."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            size_bytes = os.fstat(self.file.fileno()).st_size
            self.file.close()
        except OSError as error:
            raise StorageFailed(str(self.path), f"cannot write the file: {error.strerror or error}") from error
        self._check_free()  # one came meanwhile
        return size_bytes

    def publish(self) -> None:
        """Move the file, which is complete, to its place, durably. Raises `CallerError`, `StorageFailed`."""
        self._check_free()
        try:
            self._temporary.replace(self.path)
            fsync_folder(self.path.parent)
        except OSError as error:
            raise StorageFailed(str(self.path), f"cannot write the file: {error.strerror or error}") from error

    def discard(self) -> None:
        """Remove what was written, unless it is in its place already. Discarding twice is allowed."""
        with suppress(OSError):  # it has a buffer that cannot be written, such as to a full disk: that was reported
            self.file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _check_free(self) -> None:
        if not self._overwrite and os.path.lexists(self.path):
            how = "choose another place, or allow it to be replaced (overwrite=True, --overwrite)"
            raise CallerError(f"{self.path} exists; {how}")
