"""Builds: which folder a read model is kept in, and which of several is in charge after a crash at any point."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rayfold import Projection
from rayfold.actors.packaging.builds import (
    Build,
    Builds,
    builds_of,
    mark_serving,
    remove_build,
    remove_older,
)
from tests.bank import Balances
from tests.support.read_models import BalancesInMills


class Dotted(Projection, name="Balances-v2.3"):
    """A projection whose name looks like a build of another one."""


def build_to_serve(store: Path, projection: type[Projection]) -> Build:
    return asyncio.run(Builds(store).to_serve(projection))


def build_to_make(store: Path, projection: type[Projection], serving: Build) -> Build:
    return asyncio.run(Builds(store).to_make(projection, serving))


def made(build: Build) -> Build:
    """It has been begun: a projector has made its folder."""
    build.folder_of(0, 0).mkdir(parents=True)
    return build


def names(store: Path) -> list[str]:
    return [build.path.name for build in builds_of(store, "Balances")]


def test_a_first_start_serves_the_first_build_of_the_version(tmp_path: Path) -> None:
    build = build_to_serve(tmp_path, Balances)
    assert build == Build(1, 1, tmp_path / "projections" / "Balances-v1")
    assert build.folder_of(2, 1) == tmp_path / "projections" / "Balances-v1" / "2-1"
    assert not build.has_served
    assert not build.path.exists(), "to choose it makes nothing"


def test_a_rebuild_of_the_same_version_is_a_second_build_and_that_of_a_later_version_its_first(tmp_path: Path) -> None:
    serving = build_to_serve(tmp_path, Balances)
    assert build_to_make(tmp_path, Balances, serving) == Build(1, 2, tmp_path / "projections" / "Balances-v1.2")
    assert build_to_make(tmp_path, BalancesInMills, serving) == Build(2, 1, tmp_path / "projections" / "Balances-v2")


def test_a_crash_before_the_new_build_is_marked_leaves_the_old_one_in_charge_and_the_new_one_to_be_resumed(
    tmp_path: Path,
) -> None:
    old = made(build_to_serve(tmp_path, Balances))
    mark_serving(old)
    new = made(build_to_make(tmp_path, Balances, old))
    assert build_to_serve(tmp_path, Balances) == old
    remove_older(tmp_path, "Balances", old)
    assert build_to_make(tmp_path, Balances, old) == new
    assert names(tmp_path) == ["Balances-v1", "Balances-v1.2"]


def test_a_crash_after_the_new_build_is_marked_leaves_it_in_charge_and_the_old_one_to_be_removed(
    tmp_path: Path,
) -> None:
    old = made(build_to_serve(tmp_path, Balances))
    mark_serving(old)
    new = made(build_to_make(tmp_path, Balances, old))
    mark_serving(new)
    assert build_to_serve(tmp_path, Balances) == new
    remove_older(tmp_path, "Balances", new)
    assert names(tmp_path) == ["Balances-v1.2"]
    assert build_to_make(tmp_path, Balances, new).number == 3


def test_a_start_with_the_later_version_goes_on_with_what_an_interrupted_rebuild_has_made(tmp_path: Path) -> None:
    old = made(build_to_serve(tmp_path, Balances))
    mark_serving(old)
    begun = made(build_to_make(tmp_path, BalancesInMills, old))
    assert build_to_serve(tmp_path, Balances) == old
    assert build_to_serve(tmp_path, BalancesInMills) == begun
    mark_serving(begun)
    remove_older(tmp_path, "Balances", begun)
    assert names(tmp_path) == ["Balances-v2"]


def test_builds_of_a_projection_with_a_similar_name_are_left_alone(tmp_path: Path) -> None:
    like = made(build_to_serve(tmp_path, Dotted))
    assert like.path.name == "Balances-v2.3-v1"
    later = made(Build(4, 1, tmp_path / "projections" / "Balances-v4"))
    (tmp_path / "projections" / "notes.txt").touch()
    assert builds_of(tmp_path, "Balances") == [later]
    remove_older(tmp_path, "Balances", Build(9, 1, tmp_path / "projections" / "Balances-v9"))
    assert builds_of(tmp_path, "Balances") == []
    assert like.folder_of(0, 0).is_dir()


@pytest.mark.parametrize("served", [False, True])
def test_a_build_is_removed_whole_and_removing_it_twice_is_fine(tmp_path: Path, served: bool) -> None:
    build = made(build_to_serve(tmp_path, Balances))
    if served:
        mark_serving(build)
    assert build.has_served == served
    remove_build(build)
    remove_build(build)
    assert not build.path.exists()
