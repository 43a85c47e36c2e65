"""Builds: one building of a read model from the log, and the folder that it keeps its place in.

Beside steps [7] and [8]. A read model is built when the version of its projection is new, and again on request
(`rebuild.py`). Each build has a folder of its own in the store, so that one can be made while another serves::

    projections/Balances-v1/            the first build of version 1
        serves                          it has served: what a start goes on with
        0-0/  0-1/                      part 0, replicas 0 and 1: a checkpoint, or a database
    projections/Balances-v1.2/          the second build of version 1, after a requested rebuild
    projections/Balances-v2/            the first of version 2: perhaps unfinished, to be resumed

Where a store is spread over nodes, each projector has its folder in the share of the node that it runs on, and every
share has the marks (`control/builds.py`).

Rules kept here: a build is chosen by its folder's name and mark alone, so that a crash between any two steps leaves
either the old one or the new one in charge; only what is older than the build that serves is ever removed, and only
once that one serves. Nothing here is the truth: a deleted folder is rebuilt from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ...runtime.domain.projection import Projection
from ...runtime.durable_files import fsync_folder
from ...runtime.errors import StorageFailed
from ...runtime.private import make_private_folder, open_private
from ...runtime.read.stores.memory import FILE

__all__ = [
    "Build",
    "Builds",
    "ProjectionFacts",
    "build_numbered",
    "builds_of",
    "lend_checkpoint",
    "mark_serving",
    "number_to_make",
    "number_to_serve",
    "number_unused",
    "remove_build",
    "remove_older",
]

FOLDER: Final = "projections"
MARK: Final = "serves"
_NAME: Final = re.compile(r"(?P<projection>.+)-v(?P<version>[1-9]\d*)(?:\.(?P<number>[1-9]\d*))?", re.ASCII)


class ProjectionFacts(NamedTuple):
    """What has to be known of a projection's class where it cannot be loaded, since another version of it is."""

    projection_name: str
    projection_version: int
    parts: int

    @classmethod
    def of(cls, projection: type[Projection]) -> ProjectionFacts:
        """Of this class."""
        return cls(projection.projection_name, projection.projection_version, projection.parts)


class Build(NamedTuple):
    """One build of a projection's read model. Those of one projection are ordered: the later is the greater."""

    version: int
    """The version of the projection's class."""
    number: int
    """Which build of that version, from 1."""
    path: Path

    @property
    def order(self) -> tuple[int, int]:
        """What a later build has more of."""
        return self.version, self.number

    @property
    def has_served(self) -> bool:
        """Whether it was complete and in charge once."""
        return (self.path / MARK).exists()

    def folder_of(self, part: int, replica: int) -> Path:
        """Where one projector of this build keeps its place."""
        return self.path / f"{part}-{replica}"


def builds_of(store: Path, projection: str) -> list[Build]:
    """The builds of a projection that the store has folders of, the earliest first."""
    found = []
    for path in (store / FOLDER).glob("*"):
        parsed = _NAME.fullmatch(path.name)
        if parsed is not None and parsed["projection"] == projection and path.is_dir():
            found.append(Build(int(parsed["version"]), int(parsed["number"] or 1), path))
    return sorted(found, key=lambda build: build.order)


def number_to_serve(projection: type[Projection], served: Mapping[tuple[int, int], bool], made: int = 0) -> int:
    """Which number of the class's version serves, of those that there are, and whether they have served.

    made: the number of the build that the present code was deployed with, which serves unless a later one has."""
    numbers = {number: has for (version, number), has in served.items() if version == projection.projection_version}
    latest = max((number for number, has in numbers.items() if has), default=made or min(numbers, default=1))
    return max(latest, made)


def number_unused(version: int, served: Mapping[tuple[int, int], bool]) -> int:
    """A number that no build of this version has."""
    return max((number for of, number in served if of == version), default=0) + 1


def number_to_make(projection: type[Projection], served: Mapping[tuple[int, int], bool], serving: Build) -> int:
    """Which number of the class's version a rebuild makes."""
    version = projection.projection_version
    later = [order[1] for order in served if order[0] == version and order > serving.order]
    return max(later, default=serving.number + 1 if version == serving.version else 1)


def lend_checkpoint(build: Build, part: int, replica: int) -> None:
    """Have a new replica in memory begin with the checkpoint of the first one, if there is any. Linking does for
    copying: a checkpoint is never changed, but replaced by the next."""
    for checkpoint in build.folder_of(part, 0).glob(f"*/{FILE}"):
        folder = build.folder_of(part, replica) / checkpoint.parent.name
        with contextlib.suppress(OSError):  # it may just be replaced, and without one the log is read
            make_private_folder(folder)
            os.link(checkpoint, folder / FILE)


def mark_serving(build: Build) -> None:
    """Write down that this build is complete and in charge. Raises `StorageFailed`."""
    try:
        make_private_folder(build.path)
        descriptor = open_private(build.path / MARK, os.O_CREAT | os.O_WRONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        for folder in (build.path, build.path.parent):
            fsync_folder(folder)
    except OSError as error:
        raise StorageFailed(str(build.path), error.strerror or str(error)) from error


def remove_older(store: Path, projection: str, serving: Build) -> None:
    """Remove the builds before the one that serves. What cannot be removed is left for the next time."""
    for build in builds_of(store, projection):
        if build.order < serving.order:
            remove_build(build)


def remove_build(build: Build) -> None:
    """Remove a build: its mark first, so that half a build is never taken for a whole one."""
    (build.path / MARK).unlink(missing_ok=True)
    shutil.rmtree(build.path, ignore_errors=True)


def build_numbered(store: Path, projection: type[Projection] | ProjectionFacts, number: int) -> Build:
    """The build of the class's version that has this number."""
    version = projection.projection_version
    name = f"{projection.projection_name}-v{version}" + (f".{number}" if number > 1 else "")
    return Build(version, number, store / FOLDER / name)


class Builds:
    """The builds in the directory of a store on this machine. `ClusterBuilds` are those in the shares of its nodes."""

    def __init__(self, store: Path) -> None:
        self._store = store

    async def served(self, projection: type[Projection] | ProjectionFacts) -> dict[tuple[int, int], bool]:
        """The builds of a projection that there are, by version and number, and whether they have served."""
        return {build.order: build.has_served for build in builds_of(self._store, projection.projection_name)}

    async def to_serve(self, projection: type[Projection], made: int = 0) -> Build:
        """The build that a start goes on with: the latest of the class's version that has served, or else the first.

        made: see `number_to_serve`."""
        number = number_to_serve(projection, await self.served(projection), made)
        return build_numbered(self._store, projection, number)

    async def number_unused(self, projection: ProjectionFacts) -> int:
        """See `number_unused`."""
        return number_unused(projection.projection_version, await self.served(projection))

    def numbered(self, projection: ProjectionFacts, number: int) -> Build:
        """See `build_numbered`."""
        return build_numbered(self._store, projection, number)

    async def to_make(self, projection: type[Projection], serving: Build) -> Build:
        """The build that a rebuild makes beside the one that serves: one that was interrupted, or else a new one."""
        number = number_to_make(projection, await self.served(projection), serving)
        return build_numbered(self._store, projection, number)

    async def lend_checkpoint(self, build: Build, part: int, replica: int) -> None:
        """See `lend_checkpoint`."""
        lend_checkpoint(build, part, replica)

    async def mark_serving(self, build: Build) -> None:
        """See `mark_serving`."""
        if not build.has_served:
            mark_serving(build)

    async def remove_older(self, projection: str, serving: Build) -> None:
        """See `remove_older`."""
        await asyncio.to_thread(remove_older, self._store, projection, serving)

    async def remove(self, build: Build) -> None:
        """See `remove_build`."""
        await asyncio.to_thread(remove_build, build)

    async def remove_folder(self, build: Build, part: int, replica: int) -> None:
        """Remove what one projector has saved."""
        await asyncio.to_thread(shutil.rmtree, build.folder_of(part, replica), ignore_errors=True)
