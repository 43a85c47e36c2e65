"""docs/architecture.md names every room of the sources, and no file that is not there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["actors", "runtime"])
def test_every_room_has_its_line(folder: str) -> None:
    rooms = {
        f"{path.parent.relative_to(ROOT / folder).as_posix()}/" for path in (ROOT / folder).glob("*/**/__init__.py")
    }
    table = PAGE.partition(f"| `{folder}/` | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_/]+/)`", table)) == rooms


def test_every_file_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:actors|runtime)/[a-z_/]+\.py)`", PAGE))
    assert len(named) > 15
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_it_has_two_pages() -> None:
    """Of some sixty lines each: what does not fit belongs to another page."""
    assert len(PAGE.splitlines()) <= 130
