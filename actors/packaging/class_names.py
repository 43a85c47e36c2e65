"""ClassNames: the classes of an application by the names of their modules, for programs that import them themselves.

Beside all steps. `ship` (`shipping.py`) sends classes to actors as Ray does, by value where they are in `__main__`. A
program without Ray gets names, and imports the modules; nothing is unpickled.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from functools import reduce
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import DefinitionError, RayfoldError, failure_text
from ...runtime.user_code import is_ctrl_c

__all__ = ["ClassNames", "import_path", "names_of_classes"]

_REMEDY: Final = "give connect() your own classes, in an Application: connect(path, application)"


class ClassNames(NamedTuple):
    """What a `Catalogue` is made of, as texts: each class as `module:name`."""

    aggregates: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    """Where the program finds its modules, but for those of its interpreter and what is installed there: a program of
    another one has its own."""
    hidden: str = ""
    """A class that no other program can import, if there is one; then there is nothing else here."""

    def found(self) -> Catalogue:
        """The classes, imported here. Raises `DefinitionError` if that is not possible."""
        if self.hidden:
            raise DefinitionError(self.hidden, "no other program can import this class", _REMEDY)
        sys.path += [folder for folder in self.folders if folder not in sys.path]
        aggregates, projections, events = (
            [_imported(name) for name in names] for names in (self.aggregates, self.projections, self.events)
        )
        processes = [one for one in aggregates if one.is_process]
        others = [one for one in aggregates if not one.is_process]
        return Catalogue(others, projections, events=events, retired=self.retired, processes=processes)


def names_of_classes(catalogue: Catalogue) -> ClassNames:
    """The names of these classes."""
    kinds = catalogue.aggregates, catalogue.projections, catalogue.events
    for kind in kinds:
        for cls in kind.values():
            if not _is_importable(cls):
                return ClassNames(hidden=f"{cls.__module__}.{cls.__qualname__}")
    aggregates, projections, events = (
        tuple(f"{cls.__module__}:{cls.__qualname__}" for cls in kind.values()) for kind in kinds
    )
    folders = tuple(folder for folder in import_path() if not _is_of_interpreter(folder))
    return ClassNames(aggregates, projections, events, tuple(sorted(catalogue.retired)), folders)


def import_path() -> list[str]:
    """Where this program finds its modules, as folders that mean the same in a process with another working directory.
    What stands for a relative folder was found at its first use, also if the program has changed its working directory
    since."""
    found = [getattr(sys.path_importer_cache.get(folder), "path", folder) for folder in sys.path]
    return [os.path.abspath(folder) for folder in found]


def _is_of_interpreter(folder: str) -> bool:
    """Whether it belongs to Python's own library, or has packages that were installed."""
    library = sysconfig.get_path("stdlib")
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return (
        Path(folder).name in {"site-packages", "dist-packages", archive}
        or folder == library
        or folder.startswith(f"{library}/")
    )


def _is_importable(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__":
        return False
    return _named(module, cls.__qualname__) is cls


def _named(module: Any, name: str) -> Any:
    return reduce(lambda found, part: getattr(found, part, None), name.split("."), module)


def _imported(text: str) -> Any:
    module, _, name = text.partition(":")
    try:
        return _named(importlib.import_module(module), name)
    except RayfoldError:
        raise
    except BaseException as error:  # a module may end with sys.exit
        if is_ctrl_c(error):
            raise
        what = f"its module cannot be imported here: {failure_text(error)}"
        raise DefinitionError(f"{module}.{name}", what, _REMEDY) from error
