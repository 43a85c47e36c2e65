"""The folder of a read store: one for each version of the code, so that no code reads what other code wrote.

Before step [7]: made when a read model is opened. The name is the fingerprint of the projection
(`saved_state.state_fingerprint`): after a change of a handler, a field, the store or the parts there is an empty
folder, and the read model is made from the log.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from ...errors import StorageFailed
from ...private import make_private_folder, open_private, tighten

__all__ = ["discard_at_next_opening", "empty_folder", "folder_of_code"]

DISCARD: Final = "discard"
"""A file of this name marks the store as damaged: the next opening starts over."""


def folder_of_code(directory: Path, fingerprint: bytes) -> Path:
    """The folder of this code in `directory`, made if it is not there. Those of other code are removed, and one that is
    to be discarded is emptied. Raises `StorageFailed`."""
    mine = directory / fingerprint.hex()
    try:
        make_private_folder(directory)
        for folder in directory.iterdir():
            of_code = len(folder.name) == len(mine.name) and folder.is_dir()
            if of_code and (folder != mine or (folder / DISCARD).exists()):
                shutil.rmtree(folder)
        make_private_folder(mine)
        tighten(mine)
    except OSError as error:
        raise StorageFailed(str(mine), f"cannot make the folder: {error.strerror or error}") from error
    return mine


def empty_folder(folder: Path) -> None:
    """Remove what is in it. Raises `StorageFailed`."""
    try:
        shutil.rmtree(folder)
        make_private_folder(folder)
    except OSError as error:
        raise StorageFailed(str(folder), f"cannot empty the folder: {error.strerror or error}") from error


def discard_at_next_opening(folder: Path) -> None:
    """Remember that what is in the folder is damaged."""
    os.close(open_private(folder / DISCARD, os.O_WRONLY | os.O_CREAT))
