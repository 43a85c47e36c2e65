"""Code: the modules of a deployed application, as they were when it was deployed, on every node.

Beside all steps. An application that outlives the program that has deployed it must not depend on that program's files:
a partition that is started again a week later has to find the code that it ran before, and not what the files hold by
then. So the user's modules are packed, put into Ray's own directory under the digest of their content, and unpacked
once on each node, in a folder of that name that comes first on Python's module path. Classes then travel by name, as
they do between processes that have the same modules, and an answer of a class of the application's arrives as that
class.

What is packed: of the modules that the application's classes are in, those that are not installed (no site-packages,
not Python's own); the package or file of each, and of whatever else is loaded from the same folder.

Rules kept here: code is imported only from a folder that is this user's alone, and in whose place no other user can put
one (`runtime/private.py`). What was unpacked is synced before it is used, and compared with its digest at each use:
after a power cut a file may be there and empty. Code from which a process still imports is not removed.

Why not Ray's `runtime_env`: it is a matter of a job, an actor's is fixed when the actor is made, and an actor whose
environment cannot be set up stays dead (docs/decisions/0011-deployed-code.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import site
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ...runtime.durable_files import fsync_folder, write_durably
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import Damaged, DefinitionError, StorageFailed, Unavailable
from ...runtime.printable import printable_log
from ...runtime.private import (
    FILE_MODE,
    FOLDER_MODE,
    check_parents,
    make_private_folder,
    open_private,
    private_temporary_folder,
)
from ..cluster.node import data_folder_here

log = printable_log(__name__)

__all__ = ["CODE_BYTES_MAX", "Code", "collect", "kept_code", "make_importable"]

CODE_BYTES_MAX: Final = 16 << 20
"""The packed size of an application's modules: what Ray's directory takes in one piece without slowing others."""

_KEPT_MAX: Final = 8
"""Versions of the code on a node; older ones are removed, once no process imports from them."""

_LOCK: Final = "code.lock"
"""Held while folders of code are made or removed."""

_UNPACKING: Final = "unpacking."
"""What the name of a folder begins with that is not complete."""

FOLDER: Final = "code"
"""In a node's data folder."""


Fetch = Callable[[str], bytes | None]
"""Gives the packed code of a digest."""


class Code(NamedTuple):
    """The modules of an application."""

    digest: str
    """SHA-256 of what is in it, in hexadecimal; empty if all of it is installed."""
    packed: bytes
    """A zip file."""


def collect(catalogue: Catalogue) -> Code:
    """The user's modules that these classes need. Raises `DefinitionError` if they are too many, or in no file."""
    names = {cls.__module__.partition(".")[0] for cls in _classes(catalogue)}
    roots = {root for name in names if (root := _root_of(name)) is not None}
    if not roots:
        return Code("", b"")
    files = dict(sorted(_files(roots)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    packed = buffer.getvalue()
    if len(packed) > CODE_BYTES_MAX:
        what = f"its modules have {len(packed):,} bytes, packed, over {CODE_BYTES_MAX:,}"
        raise DefinitionError("the application", what, "install them on the nodes, or keep data out of the packages")
    return Code(hashlib.sha256(packed).hexdigest(), packed)


def make_importable(digest: str, fetch: Fetch, *, first: bool) -> None:
    """Have Python find the modules of this digest in this process: `first`, or after everything else.

    `fetch(digest)` is what gives the zip file, if this node does not have it yet. Raises `StorageFailed`, `NotPrivate`,
    `Damaged` if what is fetched is of another digest, and `Unavailable` if there is no such code any more.
    """
    folder = str(_unpacked(digest, fetch))
    if folder not in sys.path:
        sys.path.insert(0 if first else len(sys.path), folder)


def kept_code(digest: str) -> bytes | None:
    """The packed code as an earlier process of this node has kept it; None if there is none. Raises what
    `make_importable` does."""
    return _kept(_home(), digest)


def _classes(catalogue: Catalogue) -> Iterator[type]:
    yield from catalogue.aggregates.values()
    yield from catalogue.projections.values()
    yield from catalogue.events.values()
    for aggregate in catalogue.aggregates.values():
        yield from aggregate.deciders
    for projection in catalogue.projections.values():
        yield from projection.answers


def _root_of(name: str) -> Path | None:
    """The folder in which Python found this module or package; none if it is installed."""
    module = sys.modules.get(name)
    if name == "__main__" or module is None:
        what = "it is defined in the program itself, which no other process can import"
        raise DefinitionError("the application", what, "move its classes into a module: rayfold deploy MODULE:NAME")
    place = _place_of(module)
    if place is None or name == "rayfold":
        return None
    return None if any(place.is_relative_to(one) for one in _installed()) else place.parent


def _installed() -> list[Path]:
    """Where installed modules are."""
    paths = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()]
    ours = Path(__file__).resolve().parents[1]
    return [Path(one).resolve() for one in paths if one] + [ours / "actors", ours / "runtime", ours / "benchmarks"]


def _files(roots: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Every file of the packages and modules that are loaded from these folders, with its name in the archive."""
    for name, module in list(sys.modules.items()):
        if "." in name or name in ("__main__", "rayfold"):
            continue
        path = _place_of(module)
        if path is None or path.parent not in roots:
            continue
        for one in path.rglob("*") if path.is_dir() else [path]:
            if one.is_file() and "__pycache__" not in one.parts and not one.name.startswith("."):
                yield str(one.relative_to(path.parent)), one


def _place_of(module: object) -> Path | None:
    """The file of a module, the folder of a package; none of what is in neither."""
    file = getattr(module, "__file__", None)
    if file is None:
        folder = next(iter(getattr(module, "__path__", None) or []), None)
        return Path(folder).resolve() if folder else None
    path = Path(file).resolve()
    return path.parent if path.name == "__init__.py" else path


def _unpacked(digest: str, fetch: Fetch) -> Path:
    """The folder of this code, with exactly what was deployed in it."""
    home = _home()
    packed = _kept(home, digest) or _fetched(digest, fetch)
    try:
        with _locked(home / _LOCK):
            _remove_interrupted(home)
            _unpack(home, digest, packed)
            _use(home, digest)
            _remove_unused(home, digest)
    except OSError as error:
        raise StorageFailed(str(home), f"cannot unpack the application's code: {error.strerror or error}") from error
    return home / digest


def _fetched(digest: str, fetch: Fetch) -> bytes:
    packed = fetch(digest)
    if packed is None:
        what = f"{digest[:12]} is not in Ray's directory any more; deploy it again"
        raise Unavailable("the application's code", what)
    if hashlib.sha256(packed).hexdigest() != digest:
        raise Damaged(f"the application's code {digest[:12]}", "what Ray's directory has is of another digest")
    return packed


def _home() -> Path:
    """In the data folder of this node; for a program elsewhere, in a folder of its user's alone.

    Raises `NotPrivate` if another user has made it, or could put another one in its place.
    """
    try:
        data = data_folder_here()
        home = (data if data is not None else private_temporary_folder()) / FOLDER
        make_private_folder(home)
        check_parents(home)
    except OSError as error:
        raise StorageFailed(FOLDER, f"cannot make a folder for code: {error}") from error
    return home


def _kept(home: Path, digest: str) -> bytes | None:
    """The packed code as an earlier process has kept it; None if there is none, or it is not what was written."""
    try:
        with os.fdopen(open_private(home / f"{digest}.zip", os.O_RDONLY), "rb") as file:
            packed = file.read(CODE_BYTES_MAX + 1)
    except OSError:  # it is missing, or cannot be read: then it is fetched
        return None
    return packed if hashlib.sha256(packed).hexdigest() == digest else None


def _unpack(home: Path, digest: str, packed: bytes) -> None:
    """Have the folder hold what was packed and nothing else, on the disk, before anything is imported from it."""
    folder, archive = home / digest, zipfile.ZipFile(io.BytesIO(packed))
    with archive:
        if _holds(folder, archive):
            return
        if folder.exists():
            log.warning("%s is not what was deployed, and is unpacked again", folder)
        unpacking = Path(tempfile.mkdtemp(prefix=_UNPACKING, dir=home))
        archive.extractall(unpacking)
    for above, folders, files in os.walk(unpacking):
        for name in files:
            _sync(Path(above, name))
        for name in folders:
            Path(above, name).chmod(FOLDER_MODE)
        fsync_folder(Path(above))
    write_durably(home / f"{digest}.zip", packed)
    if folder.exists():
        folder.rename(Path(tempfile.mkdtemp(prefix=_UNPACKING, dir=home)) / "was")
    unpacking.rename(folder)
    fsync_folder(home)
    _remove_interrupted(home)


def _sync(path: Path) -> None:
    path.chmod(FILE_MODE)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(folder: Path, archive: zipfile.ZipFile) -> bool:
    """Whether the folder holds the files of the archive, byte for byte, and no other one that could be imported."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    wanted = {info.filename for info in archive.infolist()}
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for above, folders, files in os.walk(folder):
        links = [name for name in (*folders, *files) if Path(above, name).is_symlink()]
        if links:
            return False
        if Path(above).name == "__pycache__":  # Python does not sync these: those from before a power cut may be torn
            for name in files:
                if Path(above, name).stat().st_mtime < booted_s:
                    Path(above, name).unlink()
        elif any(str(Path(above, name).relative_to(folder)) not in wanted for name in files):
            return False
    try:
        return all((folder / name).read_bytes() == archive.read(name) for name in wanted)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time changes the folders of code."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


_used: Final[dict[Path, int]] = {}
"""Locks of the code that this process imports from, held until it ends. Bounded by the deployments that it sees."""


def _use(home: Path, digest: str) -> None:
    """Show the other processes of this user that this one imports from there."""
    path = home / f"{digest}.lock"
    if path not in _used:
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(path)
        _used[path] = descriptor


def _remove_interrupted(home: Path) -> None:
    """Remove what interrupted unpackings have left. The caller holds the lock, so none is under way."""
    for one in home.glob(f"{_UNPACKING}*"):
        shutil.rmtree(one, ignore_errors=True)


def _remove_unused(home: Path, present: str) -> None:
    """Keep the last few, and of the older ones those from which a process still imports: it holds their lock."""
    locks = sorted(home.glob("*.lock"), key=lambda one: one.stat().st_mtime)
    for lock in [one for one in locks if one.name != _LOCK][:-_KEPT_MAX]:
        if lock.stem == present:
            continue
        descriptor = open_private(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            (home / f"{lock.stem}.zip").unlink(missing_ok=True)
            shutil.rmtree(home / lock.stem, ignore_errors=True)
            lock.unlink()
        finally:
            os.close(descriptor)
