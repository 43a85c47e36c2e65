"""Every link of the pages to a file of the checkout leads to one that is there, and to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name_of

FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[(?:[^][]|\[[^][]*\])*\]\(([^)\s]+)\)")


def prose_of(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, with `-` for a space."""
    headings = re.findall(r"^#{1,6} (.+)$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def broken(page: Path, target: str) -> str:
    """Why a link leads nowhere; empty if it leads somewhere."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return "no such file"
    if not file.is_relative_to(ROOT):
        return "outside of the checkout"
    if anchor and (file.suffix != ".md" or anchor not in anchors_of(file)):
        return "no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_to_something(page: Path) -> None:
    targets = [target for target in LINK.findall(prose_of(page)) if not re.match(r"[a-z]+:", target)]
    assert {target: why for target in targets if (why := broken(page, target))} == {}


def test_every_page_is_reached_from_the_readme() -> None:
    """A page that nothing links to is not found by readers."""
    reached, found = set(), [ROOT / "README.md"]
    while found:
        page = found.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        paths = [target.partition("#")[0] for target in LINK.findall(prose_of(page)) if ":" not in target]
        found += [(page.parent / path).resolve() for path in paths if path]
    assert sorted(name_of(page) for page in PAGES if page not in reached) == []


def test_a_link_to_nothing_is_noticed(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    assert broken(page, "docs/index.md") == ""
    assert broken(page, "docs/nowhere.md") == "no such file"
    assert broken(page, "docs/index.md#nowhere") == "no such heading"
    assert broken(page, "docs/index.md#guides") == ""
