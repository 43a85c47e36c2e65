"""The pages of the documentation as tests read them: their code blocks, and why one is not run, if it is not.

A block is run by the tests (`test_code_blocks.py`) unless the comment before it has the reason why not:
`<!-- not run: ... -->`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+?) -->\n+)?^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_TITLE = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """One code block of a page."""

    page: Path
    line: int
    language: str
    title: str
    """The file that the block is, or nothing."""
    words: tuple[str, ...]
    """What else stands behind the three ticks."""
    code: str
    not_run: str
    """Why it is not run; empty if it is."""

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks = []
    for found in _BLOCK.finditer(text):
        title = _TITLE.search(found["info"])
        language, *words = _TITLE.sub("", found["info"]).split() or [""]
        code = "".join(line.removeprefix(found["indent"]) for line in found["code"].splitlines(keepends=True))
        line = text.count("\n", 0, found.start("info")) + 1
        why = " ".join((found["why"] or "").split())
        blocks.append(Block(page, line, language, title[1] if title else "", tuple(words), code, why))
    return blocks


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]
