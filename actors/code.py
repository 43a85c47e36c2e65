"""Code: the modules of a deployed application, as they were when it was deployed, on every node.

Beside all steps. An application that outlives the program that has deployed it must not depend on that program's files:
a partition that is started again a week later has to find the code that it ran before, and not what the files hold by
then. So the user's modules are packed, put into Ray's own directory under the digest of their content, and unpacked
once on each node, in a folder of that name that comes first where Python looks for modules. Classes then travel by
name, as they do between processes that have the same modules, and an answer of a class of the application's arrives as
that class.

What is packed: of the modules that the application's classes are in, those that are not installed (no site-packages,
not Python's own); the package or file of each, and of whatever else is loaded from the same folder.

Why not Ray's `runtime_env`: it is a matter of a job, an actor's is fixed when the actor is made, and an actor whose
environment cannot be set up is dead for ever (docs/decisions/0011-deployed-code.md).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import site
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ..runtime.catalogue import Catalogue
from ..runtime.errors import DefinitionError, StorageFailed, Unavailable
from .node import data_folder_here

__all__ = ["CODE_BYTES_MAX", "Code", "collect", "make_importable"]

CODE_BYTES_MAX: Final = 16 << 20
"""Of an application's modules, packed: what Ray's directory takes in one piece without being slow for others."""

_KEPT_MAX: Final = 8
"""Versions of the code on a node; older ones are removed."""

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

    `fetch(digest)` is what gives the zip file, if this node has not unpacked it yet. Raises `StorageFailed`,
    `Unavailable` if there is no such code any more.
    """
    folder = str(_unpacked(digest, fetch))
    if folder not in sys.path:
        sys.path.insert(0 if first else len(sys.path), folder)


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
    """The folder of this code, unpacked whole or not at all."""
    home = _home()
    folder = home / digest
    if folder.exists():
        return folder
    packed = fetch(digest)
    if packed is None:
        raise Unavailable(
            "the application's code", f"{digest[:12]} is not in Ray's directory any more; deploy it again"
        )
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        unpacking = Path(tempfile.mkdtemp(prefix=f"{digest[:12]}.", dir=home))
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            archive.extractall(unpacking)
        try:
            unpacking.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(unpacking, ignore_errors=True)
        _remove_old(home, folder)
    except OSError as error:
        raise StorageFailed(str(home), f"cannot unpack the application's code: {error.strerror or error}") from error
    return folder


def _home() -> Path:
    """In the data folder of this node; for a program elsewhere, in a folder of its user's alone."""
    data = data_folder_here()
    return data / FOLDER if data is not None else Path(tempfile.gettempdir()) / f"rayfold-{os.getuid()}" / FOLDER


def _remove_old(home: Path, present: Path) -> None:
    """Keep the last few."""
    folders = sorted((one for one in home.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
    for one in folders[:-_KEPT_MAX]:
        if one != present:
            shutil.rmtree(one, ignore_errors=True)
