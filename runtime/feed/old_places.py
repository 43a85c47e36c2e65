"""Old places: what an earlier release has kept of a named subscription in files below the store, read once, to be kept
with the logs from then on (`group_coordinator.py`). The files stay as they are.

Beside the read path.

Layout, below the directory of the store::

    subscriptions/mailer/group.json                    how many members shared the work, and where each began
    subscriptions/mailer/member-00000/positions.json   how far this member has acknowledged

Rule kept here: a file carries a checksum and the id of its store; what decayed is `Damaged`, never a fresh beginning.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from ..durable_files import checksum_of
from ..errors import Damaged, StoreMismatch
from ..private import open_private

__all__ = ["is_old", "member_folder", "old_names", "old_place", "with_remedy"]

_FILE_BYTES_MAX: Final = 65_536
"""1,024 partitions with positions of 19 digits and their links have under 50,000."""

_NAMES_MAX: Final = 1_000
"""Names that are taken over."""

_REMEDY: Final = "put its folder back from a copy, or forget it: rayfold subscriptions ... --forget"

_EARLIER_REMEDY: Final = "; remove the subscription's folder to begin anew"
"""In what a log has kept of an error: removing the folder changes nothing once it does."""


def old_names(files: Path) -> list[str]:
    """The names of which there are files."""
    try:
        return sorted(one.name for one in files.iterdir() if is_old(files, one.name))[:_NAMES_MAX]
    except OSError:
        return []


def is_old(files: Path, name: str) -> bool:
    """Whether there are files of this name."""
    return (files / name / "group.json").exists()


def old_place(files: Path, name: str, partition: int, store_id: str) -> list[tuple[int, str]] | None:
    """Where each member stands in a partition, with the link there; None if there are no files of this name. Raises
    `Damaged`, `StoreMismatch`, `NotPrivate`."""
    folder = files / name
    group = _read(folder / "group.json", name, store_id)
    if group is None:
        return None
    found = []
    for member in range(int(group["members"])):
        saved = _read(member_folder(folder, member) / "positions.json", name, store_id)
        if saved is None or saved["generation"] != group["generation"]:
            saved = group
        positions, links = saved["positions"] if "positions" in saved else saved["start"], saved.get("links", ())
        found.append((int(positions[partition]), str(links[partition]) if links else ""))
    return found


def with_remedy(what: str, name: str) -> str:
    """What is wrong with the files of a name, and what helps."""
    if "forget the subscription" in what:
        return what
    return f"{what.removesuffix(_EARLIER_REMEDY).partition(f'; {_REMEDY}')[0]}; {_REMEDY} {name}"


def member_folder(folder: Path, member: int) -> Path:
    """The folder of one member of a subscription."""
    return folder / f"member-{member:05d}"


def _read(path: Path, name: str, store_id: str) -> dict[str, Any] | None:
    """The facts in a file; None if there is none."""
    try:
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            content = file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    try:
        facts: dict[str, Any] = json.loads(content)
        checksum = facts.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(str(path), with_remedy("it is not what was written", name)) from error
    if checksum != checksum_of(facts):
        raise Damaged(str(path), with_remedy("its checksum is wrong", name))
    if facts["store_id"] != store_id:
        what = f"this is a subscription to the store {facts['store_id']}, not to {store_id}"
        raise StoreMismatch(str(path), what, "remove the subscription's folder, or put the right store back")
    return facts
