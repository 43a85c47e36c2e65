"""Shipping: the application's classes on their way to an actor.

Ray ships classes of `__main__` and of notebooks by value, and pydantic classes are large that way: over 100 KB Ray puts
constructor arguments into its object store, and an actor whose arguments are lost there cannot be restarted. So the
catalogue is packed once, compressed (to about a tenth), and unpacked by the actor at its first call, where an error can
be returned, and not in its `__init__`, where it would end the actor permanently.

The classes of an application that was deployed travel by name, together with the digest of the code that they are in
(`code.py`), which is made importable before they are loaded. All others travel with the folders in which the program
finds modules: what it could import can be imported in its actors, however it found it.

This is code on its way between our own processes, as Ray ships any code. Nothing stored is ever read like this.
"""

from __future__ import annotations

import copyreg
import dataclasses
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgpack

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import DefinitionError, StorageFailed, Unavailable, failure_text
from ...runtime.user_code import is_ctrl_c
from ..cluster.environment import prepare_environment
from ..os_process.watchdog import being_tried
from .class_names import import_path
from .code import make_importable
from .registry import code_of

__all__ = ["digest_of", "ship", "unship"]

_DEATHS_MAX: Final = 3
"""Processes that import the application's modules, one after the other: random kills hit two of them there now and
then."""


def _register_marks_of_dataclasses() -> None:
    """Have `dataclasses` recognise its own marks in classes that travel by value: it compares them with `is`, and they
    are pickled as copies. For all of Ray's pickling in this process, answers included."""
    marks: dict[str, Any] = {
        name: getattr(dataclasses, name)
        for name in ("MISSING", "KW_ONLY", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR", "_HAS_DEFAULT_FACTORY")
        if hasattr(dataclasses, name)
    }
    for kind in {type(mark) for mark in marks.values()}:
        copyreg.pickle(kind, lambda mark: next(name for name, known in marks.items() if known is mark))


_register_marks_of_dataclasses()


def _ray() -> Any:
    """Ray. What it reads from the environment when it is imported is there before, so that a Ray that this process
    starts later keeps to the machine and to its token."""
    if "ray" not in sys.modules:
        prepare_environment()
    import ray.cloudpickle

    return ray


def ship(catalogue: Catalogue, digest: str = "") -> bytes:
    """The catalogue with its classes, as bytes. `digest`: of the deployed code that they are in."""
    try:
        shipped: bytes = msgpack.packb(
            [digest, zlib.compress(_ray().cloudpickle.dumps(catalogue)), [] if digest else import_path()]
        )
        return shipped
    except BaseException as error:  # what a module holds may raise anything when it is packed
        if is_ctrl_c(error):
            raise
        remedy = "move the classes into a module that holds nothing else"
        what = f"cannot be sent to an actor: {failure_text(error)}"
        raise DefinitionError("the application's classes", what, remedy) from error


def digest_of(shipped: bytes) -> str:
    """The digest of the deployed code that classes which `ship` packed are in; empty if they are in none."""
    digest: str = msgpack.unpackb(shipped)[0]
    return digest


def unship(data: bytes, *, code_first: bool = True, importable: str = "") -> Catalogue:
    """The catalogue that `ship` packed. Raises `DefinitionError` if a module of it cannot be imported here.

    `code_first`: take deployed modules rather than those of the same name that this program has itself. `importable`:
    the digest of modules that this process finds already."""
    try:
        digest, packed, import_path = msgpack.unpackb(data)
        sys.path += [folder for folder in import_path if folder not in sys.path]
        if digest and digest != importable:
            make_importable(digest, code_of, first=code_first)
        with _survived():
            catalogue = _ray().cloudpickle.loads(zlib.decompress(packed))
    except (StorageFailed, Unavailable, DefinitionError):
        raise
    except BaseException as error:  # a module may end with sys.exit
        if is_ctrl_c(error):
            raise
        remedy = "the modules that define them must be importable in Ray's workers"
        what = f"cannot be loaded in an actor: {failure_text(error)}"
        raise DefinitionError("the application's classes", what, remedy) from error
    if not isinstance(catalogue, Catalogue):
        what = f"what was shipped is a {type(catalogue).__name__}, and no catalogue of them"
        raise DefinitionError("the application's classes", what)
    return catalogue


@contextmanager
def _survived() -> Iterator[None]:
    """Around the import of modules in an actor: one that ends the process is reported by name, and not tried without
    limit. Raises `DefinitionError` at the process after the third that has ended here; the next one tries again."""
    ray = _ray()
    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    if not actor:  # the import ends this process too
        yield
        return
    with being_tried(f"import in actor {actor}") as deaths:
        if deaths >= _DEATHS_MAX:
            what = f"cannot be loaded in an actor: each of {deaths} processes ended while it imported their modules"
            raise DefinitionError("the application's classes", what, "see what the modules do when they are imported")
        yield
