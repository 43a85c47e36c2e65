"""The pages of the documentation as tests read them: their code blocks, and what is said about each.

A block is run by the tests unless the comment before it says why not (`<!-- not run: ... -->`) or which test runs it
(`<!-- run by: tests/... -->`). What a page's blocks need and a reader does not want to see stands in a comment
(`<!-- setup` on a line of its own, code, `-->`).
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
    r"(?:^<!-- (?P<mark>not run|run by): (?P<why>[^>]+?) -->\n+)?"
    r"(?:^<!-- setup\n(?P<setup>.*?)^-->|^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$)",
    re.DOTALL | re.MULTILINE,
)


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
    run_by: str
    """The test that runs it, if that is not the one of its page."""

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks = []
    for found in _BLOCK.finditer(text):
        info = "python" if found["setup"] is not None else found["info"]
        title = re.search(r'title="([^"]+)"', info)
        language, *words = re.sub(r'title="[^"]+"', "", info).split() or [""]
        code = found["setup"] if found["setup"] is not None else found["code"]
        indent = found["indent"] or ""
        code = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        start = found.start("setup") if found["setup"] is not None else found.start("info")
        line = text.count("\n", 0, start) + 1
        why = {found["mark"]: " ".join((found["why"] or "").split())}
        blocks.append(
            Block(
                page,
                line,
                language,
                title[1] if title else "",
                tuple(words),
                code,
                why.get("not run", ""),
                why.get("run by", ""),
            )
        )
    return blocks


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]
