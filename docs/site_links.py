"""What the site needs beside the pages of this folder: the pages at the top of the checkout, and links that fit both.

The pages are written for a reader of the checkout, whose links lead from file to file. In the site a link to a page
leads to that page, and one to a file that is not a page (sources, tests, results) is shown as its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parent.parent

PAGES_ELSEWHERE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "deploy.md",
}
"""File of the checkout -> page of the site."""

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[((?:[^][]|\[[^][]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from the top of the checkout."""
    for source, page in PAGES_ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page, code blocks aside."""
    sources = {built: source for source, built in PAGES_ELSEWHERE.items()}
    uri = page.file.src_uri
    source = Path(sources.get(uri, f"docs/{uri}"))
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_rewritten(markdown[end : fence.start()], source, uri), fence[0]]
        end = fence.end()
    return "".join([*parts, _rewritten(markdown[end:], source, uri)])


def _rewritten(text: str, source: Path, uri: str) -> str:
    def link(found: re.Match[str]) -> str:
        told, target = found[1], found[2]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        file = os.path.normpath(source.parent / path)
        page = PAGES_ELSEWHERE.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if page is None or not page.endswith(".md"):
            return told
        where = os.path.relpath(page, Path(uri).parent)
        return f"[{told}]({where}{f'#{anchor}' if anchor else ''})"

    return _LINK.sub(link, text)
