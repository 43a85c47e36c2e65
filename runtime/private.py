"""Private: the one place that makes folders and files which only their user may enter, and checks those that exist.

Beside all steps. Everything that a store consists of, and everything that code is imported from, is made and opened
through the functions of this file: logs, locks, subscriptions, checkpoints, node files, sockets, unpacked code, the
token, anchors.

Rules kept here:
- a folder has mode 0700 and a file 0600 from the moment at which it exists: the mode is an argument of the call that
  makes it, and no umask widens it
- what exists already must belong to this user, and must not be a link of another one. It is refused by name, since its
  content cannot be trusted and its owner can change it at any time
- what exists and is open to others is tightened, which is logged once for each store. Only rights of others are taken
  away, only from what belongs to a store or a node, and never through a link in it
- a path that other users can predict, in a folder that they can write to (`/tmp`), is checked up to the root: a folder
  above it that others may rename would let them put a folder of their own in its place (`check_parents`)

Who is trusted: this user, and root, as in SECURITY.md. A process of root opens for writing what belongs to root only.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Final

from .errors import NotPrivate
from .printable import printable_log

__all__ = [
    "FILE_MODE",
    "FOLDER_MODE",
    "check_owner",
    "check_parents",
    "make_private_folder",
    "open_private",
    "private_temporary_folder",
    "tighten",
    "write_private",
]

log = printable_log(__name__)

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_OTHERS: Final = 0o077
"""Every right of the group and of all other users."""

_LINKS_MAX: Final = 40
"""On the way to one folder, as in Linux."""


def make_private_folder(folder: Path) -> None:
    """Make the folder with mode 0700, and each folder above it that is missing; or check and tighten the present one.

    Raises `NotPrivate` if it is another user's, another user's link, or no folder; `OSError`.
    """
    if not folder.parent.exists():
        make_private_folder(folder.parent)
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not folder.is_symlink() and not folder.is_dir():
            raise
        _tighten_one(folder)


def open_private(path: Path, flags: int) -> int:
    """A descriptor of the file, which is made with mode 0600 if `flags` hold `O_CREAT`; else checked and tightened, and
    only then emptied, if they hold `O_TRUNC`.

    Raises `NotPrivate` if it is another user's, a link, or no regular file, or if it has to be emptied and has another
    name as well; `OSError`.
    """
    emptied = bool(flags & os.O_TRUNC)
    try:
        descriptor = os.open(path, (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    except OSError:
        if path.is_symlink():
            raise NotPrivate(str(path), "it is a link, where a file of this user belongs", "remove it") from None
        check_owner(path)
        raise
    try:
        found = os.fstat(descriptor)
        _check(path, found)
        if not stat.S_ISREG(found.st_mode):
            raise NotPrivate(str(path), "it is not a regular file", "remove it")
        if stat.S_IMODE(found.st_mode) & _OTHERS:
            os.fchmod(descriptor, FILE_MODE)
        if emptied and found.st_nlink > 1:
            raise NotPrivate(str(path), "it is the same file as one of another name, which would be lost", "remove it")
        if emptied:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_private(path: Path, content: bytes) -> None:
    """Make `content` the file at `path`, mode 0600. Not durable; `write_durably` is. Raises `NotPrivate`, `OSError`."""
    with os.fdopen(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(content)


def tighten(folder: Path) -> int:
    """Take the rights of others away from an existing folder and all that it holds. Returns how many had some.

    The log has a line if the folder itself was open: what is in a private folder was open to no one. Links in it are
    not followed. Raises `NotPrivate` for what belongs to another user; `OSError`.
    """
    changed = [_tighten_one(folder)]
    for above, folders, files in os.walk(folder, onerror=_raise_unless_passed_over):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):  # another process of this user has just removed it
                changed.append(_tighten_one(Path(above, name), through_links=False))
    number = sum(changed)
    if changed[0]:
        log.warning("%s was open to other users: the modes of %d folders and files were made private", folder, number)
    return number


def check_owner(path: Path) -> None:
    """Raise `NotPrivate` if the file belongs to a user other than this one and root; nothing if it is missing."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        _check(path, path.lstat())


def check_parents(folder: Path) -> None:
    """Raise `NotPrivate` if another user could put something else in the place of this folder.

    That is so if a folder above it, or a link on the way to it, belongs to a user other than this one and root, or may
    be written to by others without a sticky bit. The folder itself must be this user's alone.
    """
    path, links = Path(os.path.abspath(folder)), 0
    done = Path(path.anchor)
    rest = list(path.parts[1:])
    _check_above(done)
    while rest:
        done = done / rest.pop(0)
        found = done.lstat()
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _LINKS_MAX:
                raise NotPrivate(str(folder), "it is behind too many links", "use a path without links")
            _check(done, found)
            there = Path(os.path.normpath(done.parent / os.readlink(done)))
            done, rest = Path(there.anchor), [*there.parts[1:], *rest]
        elif rest:
            _check_above(done)
    _check_is_private(done, done.lstat())


def private_temporary_folder() -> Path:
    """`/tmp/rayfold-UID`: for sockets, and for the code of programs without a data folder. Raises `NotPrivate`,
    `OSError`."""
    folder = Path(tempfile.gettempdir()) / f"rayfold-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=FOLDER_MODE)
    if not folder.is_symlink() and folder.is_dir() and folder.lstat().st_uid == os.geteuid():
        _tighten_one(folder)  # earlier versions have made it with too wide a mode
    _check_is_private(folder, folder.lstat())
    check_parents(folder)
    return folder


def _tighten_one(path: Path, *, through_links: bool = True) -> bool:
    """Check the owner of a folder or file, and take away what others may do. Returns whether they could do anything.

    `through_links`: what a link leads to is tightened as well, not only checked.
    """
    _check(path, path.lstat())  # of a link, the link: what it leads to is checked next
    if path.is_symlink():
        if not path.exists():
            return False
        _check(path, path.stat())
        if not through_links:
            return False
    found = path.stat()
    if found.st_uid != os.geteuid():  # root's, such as a mounted volume: only root can change its mode
        if stat.S_ISDIR(found.st_mode):
            _check_above(path)
        return False
    if not stat.S_IMODE(found.st_mode) & _OTHERS:
        return False
    path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)  # what its user may do stays: a program can be run
    if stat.S_IMODE(path.stat().st_mode) & _OTHERS:
        what = f"it is open to other users, {_shown(found)}, and its file system does not let that be changed"
        raise NotPrivate(str(path), what, "choose a folder on a local Linux file system")
    return True


def _check(path: Path, found: os.stat_result) -> None:
    """Raises `NotPrivate` for what belongs to a user other than this one and root."""
    if found.st_uid not in (os.geteuid(), 0):
        kind = "link" if stat.S_ISLNK(found.st_mode) else "folder" if stat.S_ISDIR(found.st_mode) else "file"
        what = f"this {kind} belongs to {_user(found.st_uid)}, not to {_user(os.geteuid())}"
        raise NotPrivate(str(path), what, "run as its owner, change its owner (chown), or choose another place")


def _check_is_private(folder: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & _OTHERS:
        what = f"it is not a folder of mode 0700 that belongs to {_user(os.geteuid())}, but {_shown(found)}"
        raise NotPrivate(str(folder), what, "remove it, or have its owner do so")


def _check_above(folder: Path) -> None:
    """Raises `NotPrivate` for a folder in which others may rename or remove what is not theirs."""
    found = folder.lstat()
    _check(folder, found)
    if found.st_mode & stat.S_ISVTX:
        return
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_alone_in(found.st_gid)):
        what = f"other users may rename what is in it: it is {_shown(found)}"
        raise NotPrivate(str(folder), what, "take the right to write away from others, or set its sticky bit")


def _is_alone_in(group: int) -> bool:
    """Whether no account of this machine but this user's and root's is in the group: the private group of a user, or
    that of a volume in Kubernetes."""
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    with contextlib.suppress(KeyError):
        for name in grp.getgrgid(group).gr_mem:
            try:
                members.add(pwd.getpwnam(name).pw_uid)
            except KeyError:  # the account was removed
                continue
    return members <= {os.geteuid(), 0}


def _raise_unless_passed_over(error: OSError) -> None:
    """A folder that was just removed, or that is root's and closed to this user (`lost+found`), is passed over."""
    if not isinstance(error, FileNotFoundError | PermissionError):
        raise error


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name} ({number})"
    except KeyError:
        return f"user {number}"


def _shown(found: os.stat_result) -> str:
    kind = "a link" if stat.S_ISLNK(found.st_mode) else "a folder" if stat.S_ISDIR(found.st_mode) else "a file"
    return f"{kind} of mode {stat.S_IMODE(found.st_mode):04o} of {_user(found.st_uid)}"
