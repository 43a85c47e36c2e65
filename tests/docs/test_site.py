"""The site that `make docs` builds: its navigation has every page, and its build is one that notices a broken link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.docs.pages import ROOT

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
FROM_ELSEWHERE = {"readme.md", "contributing.md", "security.md", "changelog.md", "deploy.md"}
"""`docs/site_links.py` adds them from the top of the checkout."""


def pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(one)


def test_the_navigation_has_every_page_but_the_single_decisions() -> None:
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    named = list(pages_of(SITE["nav"]))
    assert len(named) == len(set(named))
    assert set(named) - FROM_ELSEWHERE == {page for page in pages if not re.match(r"decisions/\d", page)}
    assert set(named) >= FROM_ELSEWHERE


def test_the_build_is_strict_and_not_quiet_under_which_it_would_see_no_warning() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs: ")[2].partition("\n\n")[0]
    assert "mkdocs build --strict" in recipe
    assert "--quiet" not in recipe
    assert set(SITE["validation"].values()) == {"warn"}
